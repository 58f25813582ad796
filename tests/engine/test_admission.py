"""What can never be served is refused with the numbers, before anything changes."""

import re
from typing import Any

import pytest

from distkv_jax.engine.sequence import Sequence
from distkv_jax.errors import ConfigError, PromptTooLong, QueueFull, RequestError
from tests.engine.fakes import (
    EOS,
    VOCAB,
    byte_tokenizer,
    make_admission,
    make_request,
    model_config,
)
from tests.engine.loop import make_sequence

NO_TOKENIZER = "the checkpoint has no tokenizer.json: send token ids, or add tokenizer.json to it"


def make_waiting(count: int, num_samples: int = 1) -> list[Sequence]:
    return [
        make_sequence(name=f"waiting-{number}", index=index)
        for number in range(count)
        for index in range(num_samples)
    ]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ((), {}, "prompt is empty, must have at least 1 token"),
        ((3, -1), {}, f"prompt has token id -1, the model has 0..{VOCAB - 1}"),
        ((3, VOCAB), {}, f"prompt has token id {VOCAB}, the model has 0..{VOCAB - 1}"),
        ((3,), {"stop": "a"}, NO_TOKENIZER),
        ((3,), {"bad_words": ["a"]}, NO_TOKENIZER),
        (
            (3,),
            {"stop_token_ids": [VOCAB]},
            f"stop_token_ids has token id {VOCAB}, the model has 0..{VOCAB - 1}",
        ),
    ],
)
def test_a_wrong_request_is_refused_by_what_is_wrong(
    prompt: tuple[int, ...], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        make_admission().check(make_request(prompt, **params))


def test_the_largest_and_the_smallest_token_id_are_taken() -> None:
    assert make_admission().check(make_request((0, VOCAB - 1), max_tokens=3)) == 3


def test_a_bad_word_that_is_too_long_is_refused_before_the_queue() -> None:
    admission = make_admission(tokenizer=byte_tokenizer())

    with pytest.raises(RequestError, match="bad word 'bad words' has 9 tokens, allowed 1..8"):
        admission.check(make_request(3, bad_words=["bad words"]))


def test_a_bad_word_whose_tokens_the_model_lacks_is_refused() -> None:
    admission = make_admission(tokenizer=byte_tokenizer(), model=model_config(vocab_size=40))

    message = r"bad_words have token id \d+, the model has 0\.\.39"
    with pytest.raises(RequestError, match=message):
        admission.check(make_request(3, bad_words=["a"]))


def test_a_prompt_as_long_as_the_model_leaves_no_room_for_a_token() -> None:
    admission = make_admission(num_blocks=100)

    assert admission.check(make_request(99, max_tokens=None)) == 1
    message = "prompt has 100 tokens, the model's limit is 100 with at least 1 generated token"
    with pytest.raises(PromptTooLong, match=message) as caught:
        admission.check(make_request(100, max_tokens=1))
    assert (caught.value.given, caught.value.limit) == (100, 99)


def test_what_needs_more_slots_than_the_mesh_has_is_refused_with_the_numbers() -> None:
    admission = make_admission(num_instances=2, num_blocks=4)

    # The last token generated needs no slot.
    assert admission.check(make_request(30, max_tokens=3)) == 3
    message = (
        "prompt of 30 tokens with max_tokens=4 needs 33 KV slots, "
        "2 instances together hold 32 for one request"
    )
    with pytest.raises(PromptTooLong, match=message) as caught:
        admission.check(make_request(30, max_tokens=4))
    assert (caught.value.given, caught.value.limit) == (33, 32)


def test_without_pooling_one_instance_must_hold_a_request() -> None:
    admission = make_admission(num_instances=2, num_blocks=4, pooling=False)

    assert admission.check(make_request(16, max_tokens=1)) == 1
    message = "needs 17 KV slots, 2 instances alone hold 16 for one request"
    with pytest.raises(PromptTooLong, match=message):
        admission.check(make_request(17, max_tokens=1))


def test_a_lend_cap_counts_for_the_others_only() -> None:
    admission = make_admission(num_instances=3, num_blocks=4, lend_cap=1)

    assert admission.max_slots == (4 + 1 + 1) * 4


@pytest.mark.parametrize(("prompt", "expected"), [(30, 3), (32, 1)])
def test_without_max_tokens_the_output_takes_what_the_mesh_has(prompt: int, expected: int) -> None:
    assert make_admission().check(make_request(prompt, max_tokens=None)) == expected


def test_without_max_tokens_a_prompt_over_the_mesh_is_refused() -> None:
    message = "prompt of 33 tokens with max_tokens=None needs 33 KV slots, 2 instances together"

    with pytest.raises(PromptTooLong, match=message):
        make_admission().check(make_request(33, max_tokens=None))


def test_max_tokens_past_the_models_limit_are_cut() -> None:
    admission = make_admission(num_blocks=100, max_model_len=50)

    assert admission.check(make_request(40, max_tokens=1000)) == 10


def test_a_limit_above_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len=101 must be at most the model's 100"):
        make_admission(max_model_len=101)


def test_a_window_that_fits_lets_any_length_in_and_one_that_does_not_none() -> None:
    fits = make_admission(num_blocks=2, model=model_config(sliding_window=8))
    too_wide = make_admission(num_blocks=2, model=model_config(sliding_window=9))

    assert fits.check(make_request(60, max_tokens=30)) == 30
    assert too_wide.check(make_request(10, max_tokens=7)) == 7
    message = "prompt of 60 tokens with max_tokens=30 needs 89 KV slots, 2 instances together hold"
    with pytest.raises(PromptTooLong, match=message):
        too_wide.check(make_request(60, max_tokens=30))


def test_one_wrong_request_of_several_takes_none_in() -> None:
    admission = make_admission()
    requests = (make_request(3, "good"), make_request(50, "long", max_tokens=1))

    with pytest.raises(PromptTooLong):
        admission.take_in(requests, (), [])
    (first,) = admission.take_in(requests[:1], (), [])[0]

    assert first.order == (0, 1, 0)


def test_a_name_in_use_is_refused() -> None:
    admission = make_admission()
    twice = (make_request(3, "a"), make_request(4, "a"))

    with pytest.raises(RequestError, match="request_id 'a' is in use by a live request"):
        admission.take_in(twice[:1], {"a"}, [])
    with pytest.raises(RequestError, match="request_id 'a' is in use by a live request"):
        admission.take_in(twice, (), [])


def test_a_queue_takes_as_many_as_its_limit_says() -> None:
    admission = make_admission(max_num_queued_reqs=3)
    two = (make_request(3, "a"), make_request(3, "b"))

    assert len(admission.take_in(two, (), make_waiting(1))) == 2
    with pytest.raises(QueueFull, match="2 requests behind 2 waiting, limit 3"):
        admission.take_in(two, (), make_waiting(2))


def test_samples_of_one_request_wait_as_one() -> None:
    admission = make_admission(max_num_queued_reqs=3)

    taken = admission.take_in((make_request(3, "a", n=5),), (), make_waiting(2, num_samples=4))

    assert len(taken[0]) == 5
    with pytest.raises(QueueFull, match="1 requests behind 3 waiting, limit 3"):
        admission.take_in((make_request(3, "a"),), (), make_waiting(3, num_samples=4))


def test_samples_share_a_parent_and_differ_in_seed() -> None:
    (sequences,) = make_admission().take_in((make_request(3, n=3, seed=5),), (), [])

    assert [one.parent for one in sequences] == [None, sequences[0], sequences[0]]
    assert len({one.seed_words for one in sequences}) == 3
    assert sequences[0].order < sequences[1].order < sequences[2].order


def test_a_seed_is_kept_and_without_one_the_engines_draws() -> None:
    def words(admission_seed: int, **params: Any) -> list[tuple[int, int]]:
        admission = make_admission(seed=admission_seed)
        requests = (make_request(3, "a", **params), make_request(3, "b", **params))
        return [one.seed_words for (one,) in admission.take_in(requests, (), [])]

    first, second = words(0)
    assert first != second
    assert words(0) == [first, second] != words(1)
    assert words(0, seed=9) == words(1, seed=9) == [(9, 0)] * 2


def test_priority_orders_only_under_its_policy() -> None:
    urgent, patient = make_request(3, "a", priority=-1), make_request(3, "b", priority=1)

    for policy, expected in (("priority", ["a", "b"]), ("fcfs", ["b", "a"])):
        admission = make_admission(scheduling_policy=policy)
        taken = admission.take_in((patient, urgent), (), [])
        ordered = sorted((one for (one,) in taken), key=lambda one: one.order)

        assert [one.key.request_id for one in ordered] == expected


def test_end_tokens_stop_unless_ignored_and_stop_tokens_always() -> None:
    def stop_ids(**params: Any) -> frozenset[int]:
        return make_admission().take_in((make_request(3, **params),), (), [])[0][0].stop_ids

    assert stop_ids() == {EOS}
    assert stop_ids(stop_token_ids=[4]) == {EOS, 4}
    assert stop_ids(stop_token_ids=[4], ignore_eos=True) == {4}


def test_end_tokens_that_the_model_lacks_are_left_out() -> None:
    admission = make_admission(model=model_config(eos_token_ids=(3, VOCAB)))

    ((sequence,),) = admission.take_in((make_request(3),), (), [])

    assert sequence.stop_ids == {3}
