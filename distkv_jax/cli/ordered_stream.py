"""Several streams at once, printed one after the other: the first live, the rest caught up."""

import asyncio
import contextlib
from collections.abc import Sequence

from distkv_jax.cli.write_text import TextWriter
from distkv_jax.engine.outputs import RequestOutput
from distkv_jax.engine.prompt import Prompt
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.errors import DistKVError
from distkv_jax.llm import LLM


async def print_streams(
    llm: LLM, prompts: Sequence[Prompt], params: SamplingParams, writer: TextWriter
) -> list[RequestOutput]:
    """Generate for all prompts together and print each sample's tokens as soon as it is its turn.

    Returns:
        One finished output for each prompt.

    Raises:
        DistKVError: A prompt was refused; the others are cancelled.
    """
    latest: dict[int, RequestOutput] = {}
    has_news = asyncio.Event()

    async def follow(position: int) -> None:
        try:
            stream = llm.generate_async(prompts[position], params)
            async with contextlib.aclosing(stream) as outputs:
                async for output in outputs:
                    latest[position] = output
                    has_news.set()
        except DistKVError as error:
            if len(prompts) > 1:
                error.add_note(f"in prompt {position} of {len(prompts)}")
            raise

    async def show() -> None:
        for position in range(len(prompts)):
            for index in range(params.n):
                while position not in latest:
                    await _next(has_news)
                output = latest[position]
                writer.begin(position, output, output.outputs[index])
                num_written = writer.write_new(output.outputs[index], 0)
                while (output := latest[position]).outputs[index].finish_reason is None:
                    await _next(has_news)
                    num_written = writer.write_new(latest[position].outputs[index], num_written)
                writer.end(output.outputs[index])

    try:
        async with asyncio.TaskGroup() as tasks:
            for position in range(len(prompts)):
                tasks.create_task(follow(position))
            tasks.create_task(show())
    except BaseExceptionGroup as group:
        # The first failure cancelled the rest: it is the one to tell.
        raise group.exceptions[0] from None
    return [latest[position] for position in range(len(prompts))]


async def _next(event: asyncio.Event) -> None:
    event.clear()
    await event.wait()
