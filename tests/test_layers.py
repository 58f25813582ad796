"""Imports point one way: a file uses only layers to its left, and what all layers share."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    "pallas_kernels",
    "distkv_jax.attention",
    "distkv_jax.models",
    "distkv_jax.cache",
    "distkv_jax.engine",
    "distkv_jax.world",
    "distkv_jax.llm",
    "serve",
    "distkv_jax.cli",
]
# Below every layer: these import nothing of ours but each other.
SHARED = [
    "distkv_jax.errors",
    "distkv_jax.environment",
    "distkv_jax.config",
    "distkv_jax.mesh",
    "mesh_configs",
]
PRIVATE = "jax._src"  # named here to be forbidden: JAX's insides change without notice
# What has no public way, each with its reason where it is used; a line that nobody needs is red.
ALLOWED = {"distkv_jax.engine.compile_cache": [PRIVATE]}
FILES = sorted(
    path for top in ("distkv_jax", "pallas_kernels", "serve") for path in (ROOT / top).rglob("*.py")
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int | None:
    """Give a module's place: -1 shared, 0 and up a layer, None not of this project."""
    if module in SHARED:
        return -1
    for place, layer in enumerate(LAYERS):
        if module == layer or module.startswith(f"{layer}."):
            return place
    # The package itself re-exports its public names: as high as the highest of them.
    return LAYERS.index("distkv_jax.llm") if module.partition(".")[0] == "distkv_jax" else None


def imports_of(source: str, module: str) -> set[str]:
    """List the modules that `source` imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (package, node.module) if part)
            for alias in node.names:
                # `from a import b` is an import of a.b where that is a module, else of a; JAX's
                # insides are named in full, since no code here may use them.
                inner = f"{origin}.{alias.name}"
                found.add(inner if is_module(inner) or inner == PRIVATE else origin)
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def upward_imports(source: str, module: str) -> list[str]:
    """List the imports that `module` may not have."""
    here = layer_of(module)
    assert here is not None
    places = {name: layer_of(name) for name in imports_of(source, module)}
    return sorted(name for name, place in places.items() if place is not None and place > here)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    assert upward_imports(path.read_text(), module_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_private_of_jax_is_imported(path: Path):
    module = module_of(path)
    names = imports_of(path.read_text(), module)

    private = [name for name in names if f"{name}.".startswith(f"{PRIVATE}.")]
    assert private == ALLOWED.get(module, [])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pallas_kernels.micro_attention.xla", "import distkv_jax.engine"),
        ("pallas_kernels.micro_attention.xla", "from distkv_jax import LLM"),
        ("distkv_jax.models.llama", "from distkv_jax import LLM"),
        ("distkv_jax.models.llama", "def late():\n    from distkv_jax.engine import step"),
        ("distkv_jax.cache.ledger", "from ..engine import step"),
        ("distkv_jax.mesh", "from distkv_jax.models import registry"),
        ("distkv_jax.llm", "import serve"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, source: str):
    assert upward_imports(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("distkv_jax.engine.step", "from distkv_jax.cache import block"),
        ("distkv_jax.engine.step", "import jax\nfrom distkv_jax.errors import ConfigError"),
        ("distkv_jax.cli", "from distkv_jax import LLM\nimport serve"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str):
    assert upward_imports(source, module) == []


def test_private_imports_of_jax_are_seen_in_every_form():
    for source in (f"import {PRIVATE}.config", f"from {PRIVATE} import x", "from jax import _src"):
        names = imports_of(source, "distkv_jax.mesh")
        assert any(name.startswith(PRIVATE) for name in names), source
