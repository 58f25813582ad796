"""OpenAI's own client gets what the engine gives, whole and in pieces."""

from typing import Any

import openai
import pytest

from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.llm import LLM
from tests.llm.text_checkpoint import text_of
from tests.serve.http.asking import changed, client_of
from tests.serve.running import Running

GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=2)
MESSAGES: Any = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]},
]
TEMPLATED = "system: be brief\nuser: hi\nyou\n"


def output_of(llm: LLM, prompt: Any, params: SamplingParams = GREEDY) -> Any:
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    return output


def test_a_completion_is_the_engines(
    client: openai.OpenAI, door: Running, body: dict[str, Any]
) -> None:
    expected = output_of(door.llm, "hello")
    answer = client.completions.create(**body)

    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.outputs[0].text, "length")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 6, 11)
    assert (answer.object, answer.model) == ("text_completion", "small")
    assert answer.id == f"cmpl-{answer._request_id}"


@pytest.mark.parametrize(
    "prompt", [["hello", "you"], [[75, 72], [5, 6, 7]]], ids=["texts", "lists of ids"]
)
def test_several_prompts_and_samples_have_their_places(
    client: openai.OpenAI, door: Running, body: dict[str, Any], prompt: Any
) -> None:
    texts = [output_of(door.llm, one).outputs[0].text for one in prompt]
    answer = client.completions.create(**changed(body, prompt=prompt), n=2)

    assert [(one.index, one.text) for one in answer.choices] == [
        (0, texts[0]), (1, texts[0]), (2, texts[1]), (3, texts[1])
    ]  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == sum(map(len, prompt))


def test_token_ids_are_a_prompt(client: openai.OpenAI, door: Running, body: Any) -> None:
    answer = client.completions.create(
        **changed(body, prompt=[75, 72]), extra_body={"return_token_ids": True}
    )
    expected = output_of(door.llm, [75, 72]).outputs[0]

    assert answer.choices[0].text == expected.text
    extra = answer.choices[0].model_extra
    assert extra is not None
    assert (extra["token_ids"], extra["prompt_token_ids"]) == (expected.token_ids, [75, 72])


def test_echo_with_logprobs_is_what_the_engine_says(
    client: openai.OpenAI, door: Running, body: dict[str, Any]
) -> None:
    expected = output_of(door.llm, "hello")
    answer = client.completions.create(**body, echo=True, logprobs=2)

    (choice,) = answer.choices
    sample, told = expected.outputs[0], choice.logprobs
    assert choice.text == f"hello{sample.text}"
    assert told is not None and told.top_logprobs is not None
    positions = [*expected.prompt_logprobs, *sample.logprobs]
    ids = [*expected.prompt_token_ids, *sample.token_ids]
    assert told.tokens == [text_of([token]) for token in ids]
    assert told.text_offset == [len(text_of(ids[:place])) for place in range(len(ids))]
    assert told.token_logprobs is not None and told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    for place, position in enumerate(positions[1:], start=1):
        assert told.token_logprobs[place] == pytest.approx(position[ids[place]].logprob)
        assert told.top_logprobs[place] == pytest.approx(
            {text_of([token]): entry.logprob for token, entry in position.items()}
        )


def test_a_prompt_can_be_judged_alone(client: openai.OpenAI, body: dict[str, Any]) -> None:
    answer = client.completions.create(**changed(body, max_tokens=0), echo=True, logprobs=1)

    assert answer.choices[0].text == "hello"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == list("hello")
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_a_stream_joins_to_the_whole(
    client: openai.OpenAI, door: Running, body: dict[str, Any]
) -> None:
    whole = client.completions.create(
        **changed(body, prompt=["hello", "you"]), echo=True, logprobs=2
    )
    pieces = list(
        client.completions.create(
            **changed(body, prompt=["hello", "you"]),
            echo=True,
            logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert len(pieces) > 3
    for choice in whole.choices:
        mine = [
            one.choices[0] for one in pieces if one.choices and one.choices[0].index == choice.index
        ]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine] == [None] * (len(mine) - 1) + ["length"]
        assert choice.logprobs is not None
        for name in ("tokens", "text_offset", "token_logprobs"):
            told = [x for one in mine if one.logprobs for x in getattr(one.logprobs, name)]
            assert told == getattr(choice.logprobs, name)
    assert [one.usage for one in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices == []
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 12
    assert len({one.id for one in pieces}) == 1


def test_a_chat_is_written_by_the_models_template(client: openai.OpenAI, door: Running) -> None:
    expected = output_of(door.llm, TEMPLATED).outputs[0]
    answer = client.chat.completions.create(
        model="small",
        messages=MESSAGES,
        temperature=0,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=2,
    )

    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.logprobs is not None and choice.logprobs.content is not None
    for told, token, position in zip(
        choice.logprobs.content, expected.token_ids, expected.logprobs, strict=True
    ):
        assert told.token == text_of([token])
        assert told.bytes == list(told.token.encode())
        assert told.logprob == pytest.approx(position[token].logprob)
        assert [one.logprob for one in told.top_logprobs] == pytest.approx(
            sorted((one.logprob for one in position.values() if one.rank <= 2), reverse=True)
        )


def test_a_streamed_chat_tells_its_role_first(client: openai.OpenAI, door: Running) -> None:
    expected = output_of(door.llm, TEMPLATED).outputs[0]
    pieces = client.chat.completions.create(
        model="small", messages=MESSAGES, temperature=0, max_tokens=6, n=2, stream=True
    )
    deltas: dict[int, list[Any]] = {0: [], 1: []}
    for piece in pieces:
        deltas[piece.choices[0].index].append(piece.choices[0].delta)

    for mine in deltas.values():
        assert [one.role for one in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert "".join(one.content or "" for one in mine) == expected.text


@pytest.mark.parametrize("is_plain", [False, True], ids=["message", "dict"])
def test_an_answer_is_sent_back_as_a_turn(
    client: openai.OpenAI, door: Running, is_plain: bool
) -> None:
    first = client.chat.completions.create(
        model="small", messages=MESSAGES, temperature=0, max_tokens=4
    )
    message: Any = first.choices[0].message
    turns = [*MESSAGES, message.model_dump() if is_plain else message]
    turns.append({"role": "user", "content": "go"})
    second = client.chat.completions.create(
        model="small", messages=turns, temperature=0, max_tokens=4
    )

    written = f"{TEMPLATED}assistant: {message.content}\nuser: go\n"
    params = SamplingParams(temperature=0, max_tokens=4)
    assert second.choices[0].message.content == output_of(door.llm, written, params).outputs[0].text


def test_the_asynchronous_client_streams_too(door: Running, body: dict[str, Any]) -> None:
    async def text() -> str:
        url = f"http://127.0.0.1:{door.server.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            stream = await client.completions.create(**body, stream=True)
            return "".join([piece.choices[0].text async for piece in stream])

    assert door.loop.run(text()) == output_of(door.llm, "hello").outputs[0].text


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data

    assert (model.id, model.owned_by) == ("small", "distkv")
    assert model.model_extra == {"max_model_len": 256, "vocab_size": 128}
    assert client.models.retrieve("small") == model
    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
        client.models.retrieve("other")


def test_vllms_fields_reach_the_engine(client: openai.OpenAI, body: dict[str, Any]) -> None:
    extra: dict[str, Any] = {
        "allowed_token_ids": [75],
        "ignore_eos": True,
        "top_k": 3,
        "min_p": 0.1,
    }
    answer = client.completions.create(**body, extra_body=extra | {"repetition_penalty": 1.1})

    assert answer.choices[0].text == text_of([75] * 6)
    answer = client.completions.create(
        **body,
        logit_bias={"75": 100},
        extra_body={"stop_token_ids": [75], "prompt_logprobs": 1, "return_token_ids": True},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == 75
    first, *others = choice.model_extra["prompt_logprobs"]
    assert first is None
    assert all({"logprob", "rank", "decoded_token"} == set(one[k]) for one in others for k in one)


def test_the_client_needs_no_more_than_an_address(door: Running) -> None:
    with client_of(door) as client:
        answer = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hi"}]
        )

    assert answer.choices[0].message.content
