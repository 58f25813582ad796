"""Names: a parameter's path here, and what a checkpoint calls the same tensor."""

from collections.abc import Iterable

from flax import nnx

Path = tuple[str | int, ...]

# Tensors some checkpoints carry though they follow from the config.
DERIVED = ("rotary_emb.inv_freq",)


def flat_params(params: nnx.State) -> list[tuple[Path, nnx.Variable]]:
    """List parameters with their paths, sorted by path."""
    return [
        (tuple(part if isinstance(part, int) else str(part) for part in path), leaf)
        for path, leaf in nnx.to_flat_state(params)
    ]


def checkpoint_name(path: Path) -> str:
    """Name a parameter as Hugging Face checkpoints do."""
    *modules, leaf = (str(part) for part in path)
    name = ".".join([*modules, "weight" if leaf == "kernel" else leaf])
    return name if name.startswith("lm_head.") else f"model.{name}"


def is_transposed(path: Path) -> bool:
    """Say whether the checkpoint stores the parameter with its two axes swapped."""
    return path[-1] == "kernel"


def unexpected_names(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """List tensors that have no parameter, leaving out those that follow from others.

    An output projection beside tied embeddings is a copy that transformers ignores too.
    """
    known = {*expected, "lm_head.weight"}
    return sorted(name for name in found if name not in known and not name.endswith(DERIVED))
