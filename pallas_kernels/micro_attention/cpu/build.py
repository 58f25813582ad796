"""Building the CPU kernel: once, at first use, with the system's compiler, into a cache folder."""

import ctypes
import hashlib
import importlib.metadata
import importlib.resources
import logging
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

TARGET = "distkv_micro_attention"
SYMBOL = "DistkvMicroAttention"
COMPILERS = ("c++", "g++", "clang++")
# The library is built on the machine that runs it, so it may use all that its processor has.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-w",
)
# Compilers hold back from the widest vectors, which would pay here.
X86_FLAGS = ("-mprefer-vector-width=512",)
BUILD_TIMEOUT_S = 300

# Kept for as long as the process: XLA calls into it.
_loaded: list[ctypes.CDLL] = []

logger = logging.getLogger(__name__)


def load(cache_folder: Path) -> bool:
    """Make the implementation "cpu" usable, building it where the cache has none.

    Args:
        cache_folder: Where libraries are kept, by a digest of all that went into them.

    Returns:
        Whether it is usable. Where it cannot be built one log line says why, and the caller goes
        on with "xla".
    """
    if is_loaded():
        return True
    try:
        library = ctypes.CDLL(str(build(cache_folder)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no native CPU attention, XLA's is used: %s", first_line(error))
        return False
    handler = jax.ffi.pycapsule(getattr(library, SYMBOL))
    jax.ffi.register_ffi_target(TARGET, handler, platform="cpu")
    _loaded.append(library)
    return True


def is_loaded() -> bool:
    """Whether the implementation "cpu" is usable in this process."""
    return bool(_loaded)


def build(cache_folder: Path) -> Path:
    """Compile the kernel, or find it compiled.

    Returns:
        The shared library; it is complete, also when several processes build at once.

    Raises:
        OSError: There is no compiler, or the folder cannot be written.
        subprocess.SubprocessError: The compiler failed or took too long.
    """
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler found, looked for {', '.join(COMPILERS)}")
    source = (
        importlib.resources.files("pallas_kernels.micro_attention.cpu")
        .joinpath("kernel.cc")
        .read_text()
    )
    library = cache_folder / f"micro_attention-{digest(source, compiler)}.so"
    if library.exists():
        return library
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
        unfinished = Path(folder) / library.name
        command = [compiler, *flags(), "-isystem", jax.ffi.include_dir(), "-x", "c++", "-"]
        subprocess.run(
            [*command, "-o", str(unfinished)],
            input=source,
            text=True,
            capture_output=True,
            check=True,
            timeout=BUILD_TIMEOUT_S,
        )
        unfinished.replace(library)
    return library


def digest(source: str, compiler: str) -> str:
    """Name everything a library depends on: another processor must not load this one's."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    parts = (source, version, " ".join(flags()), importlib.metadata.version("jaxlib"), processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def flags() -> tuple[str, ...]:
    """The compiler's flags on this machine."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return (*FLAGS, *X86_FLAGS) if is_x86 else FLAGS


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
