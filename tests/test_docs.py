"""What the documents say about the code is in the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED_TESTS = sorted(
    set(re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs/guarantees.md").read_text()))
)
MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


def strings_of(path: Path) -> list[str]:
    """List a file's string literals; `…` stands for each value filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append("".join(map(str, parts)))
    return found


@pytest.fixture(scope="module")
def literals() -> list[str]:
    tops = (ROOT / top for top in ("distkv_jax", "serve"))
    return [text for top in tops for path in top.rglob("*.py") for text in strings_of(path)]


@pytest.mark.parametrize(("file", "name"), NAMED_TESTS)
def test_every_guarantee_names_a_test_that_exists(file: str, name: str):
    tree = ast.parse((ROOT / file).read_text())

    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_explained_is_one_the_code_has(message: str, literals: list[str]):
    pieces = [piece for piece in message.split("…") if piece.strip()]
    pattern = ".*".join(re.escape(piece.strip()) for piece in pieces)

    assert any(re.search(pattern, text) for text in literals)


def test_links_between_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
