"""One token is found in a context that is spread over eight pools and many chunks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.needle import find
from benchmarks.needle_models import NEEDLES, Needle
from distkv_jax import LLM

BLOCK_SIZE = 16
CONTEXT = 900


@pytest.fixture(scope="module", params=NEEDLES)
def needle(request: pytest.FixtureRequest) -> Needle:
    return NEEDLES[request.param]


@pytest.fixture(scope="module")
def llm(needle: Needle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path = tmp_path_factory.mktemp(needle.name)
    needle.write(folder)
    with LLM(
        folder,
        mesh="cpu-8",
        dtype="float32",
        block_size=BLOCK_SIZE,
        num_blocks=9,
        max_num_seqs=1,
        max_num_batched_tokens=2 * BLOCK_SIZE,
        warm_up=False,
    ) as llm:
        yield llm


@pytest.mark.slow
@pytest.mark.parametrize(("num_depths", "align"), [(3, None), (8, BLOCK_SIZE)])
def test_needle_is_found_at_every_depth_and_at_block_borders(
    llm: LLM, needle: Needle, num_depths: int, align: int | None
) -> None:
    depths = [number / (num_depths - 1) for number in range(num_depths)]

    for finding in find(llm, needle, CONTEXT, depths, align):
        assert finding.got == finding.answer, finding
        assert len(finding.kv_shares) == 8
        assert max(finding.kv_shares.values()) < 1 / 5
