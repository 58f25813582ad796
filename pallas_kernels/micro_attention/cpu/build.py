"""Building the CPU kernels: once, at first use, with the system's compiler, into a cache folder."""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.resources
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

TARGETS = {
    "distkv_micro_attention": "DistkvMicroAttention",
    "distkv_kv_write": "DistkvKvWrite",
}
"""Names that XLA calls, to symbols of the library."""

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-w",
)
PER_SET = "attend.cc"
"""Compiled once per instruction set; every other .cc once, for any processor of its kind."""

AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = (*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
# Best first.
X86_SETS = {
    "avx512bf16": (*AVX512_FLAGS, "-mavx512bf16"),
    "avx512": AVX512_FLAGS,
    "avx2": AVX2_FLAGS,
}
# Elsewhere one set: the library is built on the machine that runs it.
OTHER_SETS = {"native": ("-march=native",)}
BUILD_TIMEOUT_S = 300

# Kept for as long as the process: XLA calls into it.
_loaded: list[ctypes.CDLL] = []

logger = logging.getLogger(__name__)


def load(cache_folder: Path) -> bool:
    """Make the implementation "cpu" usable, building it where the cache has none.

    Args:
        cache_folder: Where libraries are kept, by a digest of all that went into them.

    Returns:
        Whether it is usable; one log line says with which instruction set. Where it cannot be
        built, or the processor is too old, it says why, and the caller goes on with "xla".
    """
    if is_loaded():
        return True
    try:
        library = ctypes.CDLL(str(build(cache_folder)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no native CPU attention, XLA's is used: %s", first_line(error))
        return False
    sets = sets_of(library)
    if not sets:
        logger.warning(
            "no native CPU attention, XLA's is used: the processor has none of %s",
            ", ".join(instruction_sets_of_machine()),
        )
        return False
    for target, symbol in TARGETS.items():
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    _loaded.append(library)
    logger.info("native CPU attention: %s", sets[0])
    return True


def is_loaded() -> bool:
    """Whether the implementation "cpu" is usable in this process."""
    return bool(_loaded)


def instruction_sets() -> tuple[str, ...]:
    """Name the sets that can run here, best first; none before `load`."""
    return sets_of(_loaded[0]) if _loaded else ()


def sets_of(library: ctypes.CDLL) -> tuple[str, ...]:
    """Ask a library which of its instruction sets this processor has."""
    names = library.DistkvInstructionSets
    names.restype = ctypes.c_char_p
    return tuple(name for name in names().decode().split(",") if name)


def build(cache_folder: Path) -> Path:
    """Compile the kernels, or find them compiled.

    Returns:
        The shared library; it is complete, also when several processes build at once.

    Raises:
        OSError: There is no compiler, or the folder cannot be written.
        subprocess.SubprocessError: The compiler failed or took too long.
    """
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler found, looked for {', '.join(COMPILERS)}")
    code = sources()
    library = cache_folder / f"micro_attention-{digest(code, compiler)}.so"
    if library.exists():
        return library
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as name:
        folder = Path(name)
        for file, text in code.items():
            (folder / file).write_text(text)
        run = functools.partial(run_compiler, compiler, folder)
        objects = units(code)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda unit: run([*objects[unit], "-c", "-o", unit]), objects))
        run([*FLAGS, "-shared", "-o", library.name, *objects])
        (folder / library.name).replace(library)
    return library


def sources() -> dict[str, str]:
    """Read every C++ file of this package."""
    files = importlib.resources.files("pallas_kernels.micro_attention.cpu").iterdir()
    named = {file.name: file for file in files if file.name.endswith((".cc", ".h"))}
    return {name: named[name].read_text() for name in sorted(named)}


def units(code: Mapping[str, str]) -> dict[str, list[str]]:
    """List what to compile: object file to arguments."""
    include = ["-isystem", jax.ffi.include_dir()]
    once = {
        f"{file}.o": [*FLAGS, *include, file]
        for file in code
        if file.endswith(".cc") and file != PER_SET
    }
    per_set = {
        f"{name}.o": [*FLAGS, *flags, f"-DDISTKV_SET={name}", PER_SET]
        for name, flags in instruction_sets_of_machine().items()
    }
    return per_set | once


def run_compiler(compiler: str, folder: Path, arguments: Sequence[str]) -> None:
    """Run the compiler in a folder; see `build` for what it raises."""
    subprocess.run(
        [compiler, *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )


def instruction_sets_of_machine() -> dict[str, tuple[str, ...]]:
    """Name the sets that are compiled on this kind of machine, each with its flags."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return X86_SETS if is_x86 else OTHER_SETS


def digest(code: Mapping[str, str], compiler: str) -> str:
    """Name everything a library depends on: another processor must not load this one's."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    flags = repr((FLAGS, instruction_sets_of_machine()))
    jaxlib = importlib.metadata.version("jaxlib")
    parts = (*code, *code.values(), version, flags, jaxlib, processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """The processor's features, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))


def first_line(error: Exception) -> str:
    """What went wrong, in one line; of a compiler's output the first."""
    output = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    return (output or str(error)).strip().splitlines()[0]
