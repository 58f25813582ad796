"""Makes the Python code of the `.proto` files; `python -m serve.proto.make` writes it in place.

With `--release` it also writes the descriptors of the released API, which a test holds later ones
against: do that when a version is released, never to make that test pass.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "serve/proto/distkv/v1"
FILES = (f"{FOLDER}/control.proto", f"{FOLDER}/inference.proto")
INTERNAL_FOLDER = "serve/proto/distkv/internal/v1"
INTERNAL_FILES = (f"{INTERNAL_FOLDER}/world.proto",)
RELEASED = ROOT / "serve/proto/distkv_v1.binpb"


def make(target: Path) -> None:
    """Write the Python code of all files below `target`.

    Raises:
        SystemExit: The compiler refuses a file.
    """
    outputs = (f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}")
    _compile(FILES + INTERNAL_FILES, *outputs)


def make_descriptors(target: Path) -> None:
    """Write the descriptors of the files for clients, without comments, to a file.

    Raises:
        SystemExit: The compiler refuses a file.
    """
    _compile(FILES, f"--descriptor_set_out={target}", "--include_imports")


def _compile(files: tuple[str, ...], *outputs: str) -> None:
    # An extra, for who changes the API.
    from grpc_tools import protoc

    if protoc.main(["protoc", f"-I{ROOT}", *outputs, *(str(ROOT / file) for file in files)]):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    make(ROOT)
    if "--release" in sys.argv[1:]:
        make_descriptors(RELEASED)
