"""An output is the sum of its updates, and a snapshot of it stays as it was."""

from distkv_jax.engine.outputs import Logprob, Update, apply_update, new_output, snapshot
from tests.engine.fakes import make_request


def entry(token: int, logprob: float) -> dict[int, Logprob]:
    return {token: Logprob(logprob=logprob, rank=1, decoded_token=None)}


def test_updates_add_up_for_each_sample() -> None:
    request = make_request(3, n=2, logprobs=0)
    output = new_output(request)

    apply_update(output, Update(request, 1, (5,), "a", (entry(5, -1.5),)), 10.0)
    apply_update(output, Update(request, 1, (6,), "b", (entry(6, -2.0),)), 11.0)

    first, second = output.outputs
    assert (first.token_ids, first.text, first.cumulative_logprob, first.logprobs) == (
        [],
        "",
        0,
        [],
    )
    assert (second.token_ids, second.text) == ([5, 6], "ab")
    assert second.cumulative_logprob == -3.5
    assert second.logprobs == [entry(5, -1.5), entry(6, -2.0)]
    assert output.prompt_token_ids == [0, 1, 2]


def test_it_is_finished_when_every_sample_is_and_not_before() -> None:
    request = make_request(n=2)
    output = new_output(request)

    apply_update(output, Update(request, 0, finish_reason="stop", stop_reason="x"), 10.0)
    assert not output.finished
    assert output.metrics.finished_time is None
    apply_update(output, Update(request, 1, finish_reason="length"), 12.0)

    assert output.finished
    assert output.metrics.finished_time == 12.0
    assert [one.finish_reason for one in output.outputs] == ["stop", "length"]
    assert [one.stop_reason for one in output.outputs] == ["x", None]


def test_the_first_token_has_a_time_and_updates_without_tokens_do_not_count() -> None:
    request = make_request()
    output = new_output(request)

    apply_update(output, Update(request, 0), 9.0)
    apply_update(output, Update(request, 0, (5,)), 10.0)
    apply_update(output, Update(request, 0, (6,)), 11.0)

    assert output.metrics.first_token_time == 10.0
    assert output.metrics.arrival_time == request.arrival


def test_what_came_once_stays() -> None:
    request = make_request(n=2)
    output = new_output(request)

    apply_update(
        output,
        Update(
            request,
            0,
            prompt_logprobs=(None, entry(1, -1.0)),
            finish_reason="error",
            error="a device burnt down",
            instances_used=(2, 1),
            remote_kv_tokens=8,
        ),
        10.0,
    )
    apply_update(output, Update(request, 1, instances_used=(0,), remote_kv_tokens=4), 11.0)

    assert output.prompt_logprobs == [None, entry(1, -1.0)]
    assert output.error == "a device burnt down"
    assert output.instances_used == (0, 1, 2)
    assert output.remote_kv_tokens == 8


def test_a_snapshot_stays_as_it_was() -> None:
    request = make_request(logprobs=0)
    output = new_output(request)
    apply_update(output, Update(request, 0, (5,), "a", (entry(5, -1.0),)), 10.0)
    before = snapshot(output)
    assert before == output

    apply_update(
        output, Update(request, 0, (6,), "b", (entry(6, -1.0),), finish_reason="length"), 11.0
    )

    assert not before.finished
    assert before.metrics.finished_time is None
    assert before.outputs[0].token_ids == [5]
    assert before.outputs[0].text == "a"
    assert before.outputs[0].logprobs == [entry(5, -1.0)]
    assert before.outputs[0].finish_reason is None
