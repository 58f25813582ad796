"""What comes through a socket, whole or in pieces, is what `LLM.generate` gives."""

import asyncio
from typing import Any

import pytest

from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import AsyncClient
from serve.proto.distkv.v1 import inference_pb2 as pb
from tests.llm.text_checkpoint import MAX_TOKENS
from tests.serve.running import Running, request_of

PROMPT = "a long time ago there was a king"
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True},
    "seeded samples": {"n": 3, "seed": 2**64 - 5, "max_tokens": 9, "top_k": 40, "top_p": 0.9},
    "log-probabilities": {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
    "penalties": {
        "temperature": 0.0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.3,
        "min_p": 0.0,
        "max_tokens": 10,
    },
    "to the model's limit": {"temperature": 0.0, "max_tokens": None, "ignore_eos": True},
    "allowed tokens": {
        "temperature": 0.0,
        "allowed_token_ids": [10, 11, 12],
        "logit_bias": {11: 5.5},
        "min_tokens": 2,
        "max_tokens": 6,
    },
    "stop token": {"temperature": 0.0, "stop_token_ids": list(range(20, 128)), "max_tokens": 40},
    "stop string": {
        "temperature": 0.0,
        "stop": ["e", "a", "t", "o", "k", "x", "B", "C", "D", "9", "z", "y"],
        "max_tokens": 40,
        "include_stop_str_in_output": True,
        "bad_words": ["q"],
    },
    "no text": {"temperature": 0.0, "detokenize": False, "skip_special_tokens": False},
}


def comparable(output: RequestOutput) -> dict[str, Any]:
    """Everything of an output but its name and its times."""
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "prompt_logprobs": output.prompt_logprobs,
        "outputs": output.outputs,
        "finished": output.finished,
        "instances_used": output.instances_used,
        "remote_kv_tokens": output.remote_kv_tokens,
    }


@pytest.mark.parametrize("case", CASES)
def test_streamed_whole_and_in_process_are_the_same(service: Running, case: str) -> None:
    params = SamplingParams(**CASES[case])
    (expected,) = service.llm.generate([PROMPT], params, use_tqdm=False)

    whole = service.client.generate(PROMPT, params)
    *pieces, streamed = service.client.stream(PROMPT, params)

    assert comparable(whole) == comparable(expected)
    assert comparable(streamed) == comparable(expected)
    assert not any(piece.finished for piece in pieces)


def test_the_async_client_gives_the_same(service: Running) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=1)
    expected = service.client.generate([5, 6, 7], params)

    async def both() -> tuple[RequestOutput, RequestOutput]:
        async with AsyncClient(service.address) as client:
            whole = await client.generate([5, 6, 7], params)
            streamed = [output async for output in client.stream([5, 6, 7], params)]
            assert (await client.model_info()).model == "small"
            return whole, streamed[-1]

    for output in service.loop.run(both()):
        assert comparable(output) == comparable(expected)


def test_what_is_not_set_is_the_models_default(service: Running) -> None:
    message = pb.GenerateRequest(text="hello")
    message.sampling.ignore_eos = True
    answer = service.inference.Generate(message)

    assert len(answer.outputs[0].token_ids) == MAX_TOKENS
    assert answer.outputs[0].finish.reason == pb.FINISH_REASON_LENGTH
    assert service.client.model_info().default_sampling.max_tokens == MAX_TOKENS


def test_zero_is_not_unset(service: Running) -> None:
    """Were temperature 0 taken for unset, draws would differ."""
    first, second = (
        service.client.generate([3, 4], {"temperature": 0, "max_tokens": 20, "ignore_eos": True})
        for _ in range(2)
    )

    assert first.outputs == second.outputs


def test_the_pieces_of_a_stream_put_together_are_the_whole_answer(service: Running) -> None:
    request = request_of(7, 8, 9, request_id="pieces", n=2, seed=1, temperature=1.0, max_tokens=5)
    request.return_prompt_token_ids = True
    whole = service.inference.Generate(request)
    pieces = list(service.inference.GenerateStream(request))

    assert pieces[0].request_id == "pieces"
    assert list(pieces[0].prompt.token_ids) == [7, 8, 9]
    assert all(not piece.HasField("prompt") for piece in pieces[1:])
    assert [piece.HasField("usage") for piece in pieces].index(True) == len(pieces) - 1
    for index in range(2):
        parts = [one for piece in pieces for one in piece.outputs if one.index == index]
        (full,) = (one for one in whole.outputs if one.index == index)
        assert [token for part in parts for token in part.token_ids] == list(full.token_ids)
        assert "".join(part.text for part in parts) == full.text
    assert whole.usage.prompt_tokens == 3
    assert whole.usage.completion_tokens == sum(len(one.token_ids) for one in whole.outputs)


def test_many_at_once_are_each_as_alone(service: Running) -> None:
    prompts = [[token, token + 1, token + 2] for token in range(10, 34)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected = [service.llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]

    async def all_at_once() -> list[RequestOutput]:
        async with AsyncClient(service.address) as client:
            return await asyncio.gather(*(client.generate(prompt, params) for prompt in prompts))

    found = service.loop.run(all_at_once())

    assert [one.outputs[0].token_ids for one in found] == [
        one.outputs[0].token_ids for one in expected
    ]


def test_pool_and_load_show_a_request_while_it_runs(service: Running) -> None:
    stream = service.client.stream(
        [5] * 100, {"max_tokens": None, "ignore_eos": True}, request_id="long"
    )
    next(stream)
    pool, load = service.client.pool(), service.client.load()
    stream.close()

    assert load.num_requests == 1
    assert load.num_blocks == 96
    assert load.num_free_blocks == sum(one.free for one in pool.instances) or load.num_steps
    (entry,) = pool.requests
    assert entry.request_id == "long"
    assert sum(entry.blocks.values()) == sum(one.held for one in pool.instances) >= 13
    for one in pool.instances:
        assert one.total == one.free + one.held + one.reserved
        assert one.lent == sum(debt.num_blocks for debt in one.debts)
