"""A command that went over the wire is the command that was sent, bit for bit."""

import numpy as np
import pytest

from distkv_jax.engine.commands import Command, FillSlot, Move, Reset, Step
from distkv_jax.engine.moves import Round
from distkv_jax.engine.plan import empty_buffer, host_views
from distkv_jax.engine.sampler_state import empty_row, slot_row
from distkv_jax.engine.sampling_params import SamplingParams
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.world.wire import Wire, changed, changes_of
from tests.world.running import SHAPE

VOCAB = 64


def wire() -> Wire:
    return Wire(num_blocks=16, num_slots=4, vocab_size=VOCAB)


def there_and_back(command: Command) -> Command | None:
    data = wire().order_of(command).SerializeToString()
    return wire().command_of(pb.Order.FromString(data))


def a_plan(seed: int) -> np.ndarray:
    """A plan with something in every array, here and there."""
    rng = np.random.default_rng(seed)
    buffer = empty_buffer(SHAPE, num_blocks=16, num_slots=4)
    for view in host_views(buffer, SHAPE).values():
        chosen = rng.random(view.shape) < rng.choice([0, 0.1, 0.9])
        view[chosen] = rng.integers(-(2**31), 2**31 - 1, view.shape).astype(view.dtype)[chosen]
    return buffer


@pytest.mark.parametrize("seed", range(20))
def test_a_step_arrives_bit_for_bit(seed: int) -> None:
    buffer = a_plan(seed)

    found = there_and_back(Step(7, SHAPE, buffer))

    assert isinstance(found, Step)
    assert found[:2] == (7, SHAPE)
    np.testing.assert_array_equal(found.buffer, buffer)


def test_a_step_in_which_nothing_runs_is_a_few_bytes() -> None:
    buffer = empty_buffer(SHAPE, num_blocks=16, num_slots=4)

    assert len(wire().order_of(Step(7, SHAPE, buffer)).SerializeToString()) < 64 < buffer.nbytes


def test_moves_arrive() -> None:
    rounds = tuple(
        Round(*np.random.default_rng(seed).integers(0, 99, (2, 2, 2, 2)).astype(np.int32))
        for seed in range(3)
    )

    found = there_and_back(Move(8, rounds))

    assert isinstance(found, Move)
    assert found.number == 8
    np.testing.assert_array_equal(found.rounds, rounds)
    assert there_and_back(Move(9, ())) == Move(9, ())


def test_a_slot_arrives_with_its_infinities() -> None:
    row = slot_row(
        SamplingParams(logit_bias={3: 1.5}, allowed_token_ids=[3, 5], min_tokens=1),
        prompt_ids=[1, 2],
        output_ids=[3, 3],
        stop_ids=[2],
        vocab=VOCAB,
    )

    found = there_and_back(FillSlot(9, 2, row))

    assert isinstance(found, FillSlot)
    assert found[:2] == (9, 2)
    for sent, came in zip(row, found.row, strict=True):
        assert (sent.dtype, sent.shape) == (came.dtype, came.shape)
        np.testing.assert_array_equal(came, sent)


def test_a_reset_arrives() -> None:
    assert there_and_back(Reset(10)) == Reset(10)


def test_minus_zero_is_not_zero() -> None:
    base = empty_row(VOCAB).bias
    array = base.copy()
    array[3] = -0.0

    assert np.signbit(changed(base, changes_of(array, base))[3])


def test_changes_of_another_size_are_refused() -> None:
    changes = changes_of(np.ones(8, np.int32), np.zeros(8, np.int32))

    with pytest.raises(ValueError, match="cover 8 of 9 words"):
        changed(np.zeros(9, np.int32), changes)
