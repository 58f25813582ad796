"""`LLM`: generate text in this process, over a KV cache pooled across a device mesh."""

import asyncio
import contextlib
import dataclasses
import itertools
import queue
import time
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax.numpy as jnp

from distkv_jax.cache.coordinator import Usage
from distkv_jax.engine.commands import World
from distkv_jax.engine.compile_cache import use_compile_cache
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.engine import Engine, EngineStats
from distkv_jax.engine.outputs import (
    RequestOutput,
    Update,
    apply_update,
    new_output,
    snapshot,
)
from distkv_jax.engine.progress import Capacity, Progress
from distkv_jax.engine.prompt import Prompt, is_single, parse_prompt
from distkv_jax.engine.request import Known, Request
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.engine.thread import EngineThread
from distkv_jax.errors import ConfigError, RequestError
from distkv_jax.mesh import MeshConfig, load_mesh_config
from distkv_jax.models.tokenizer import Tokenizer, require_tokenizer
from distkv_jax.world.loader import Loader

SIMULATED_STEP_TOKENS = 128
DTYPES = ("auto", "float32", "bfloat16", "float16")


class PoolView(NamedTuple):
    """Where blocks are now.

    Attributes:
        usage: Blocks of each instance by state.
        placement: Blocks of each request by instance.
        host: Blocks of each instance's host memory by state; none where there are none.
    """

    usage: list[Usage]
    placement: dict[str, dict[int, int]]
    host: Sequence[Usage] = ()


class LLM:
    """A model on a mesh whose instances share one pool of KV blocks.

    Safe to use from several threads. Close it, or use it in a `with`, to stop its engine.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        mesh: str | Path | MeshConfig = "auto",
        dtype: str = "auto",
        show_progress: bool = False,
        world: World | None = None,
        **engine_args: Any,
    ) -> None:
        """Load a model and compile its programs.

        Args:
            model: `tiny`, a folder in the Hugging Face layout, or one that `distkv convert` wrote.
            mesh: Name of a mesh config, a TOML file, `auto` for the devices there are, or what one
                of them says.
            dtype: Of weights and KV; `auto` is the checkpoint's own, on CPU float32.
            show_progress: Draw progress bars and print the KV capacity.
            world: The processes that share the mesh, led by this one; None where it is alone.
            **engine_args: Fields of `EngineConfig`.

        Raises:
            ConfigError: The model, the mesh or a setting cannot work; says what is allowed.
        """
        mesh_config = mesh if isinstance(mesh, MeshConfig) else load_mesh_config(mesh)
        config = engine_config(engine_args, mesh_config)
        weight_dtype = dtype_on(dtype, mesh_config)
        use_compile_cache()
        self.platform = mesh_config.platform
        self._loader = Loader(
            model, mesh=mesh_config, dtype=weight_dtype, config=config, world=world
        )
        with Progress(show_progress) as progress:
            loaded, engine = self._loader.load(weights=progress.weights, programs=progress.programs)
        self.config = config
        self.model_config = loaded.config
        self._admission = engine.admission
        self.max_model_len = engine.admission.max_model_len
        self._tokenizer = loaded.tokenizer
        self._default_sampling: dict[str, Any] = {**loaded.sampling}
        self._names = itertools.count()
        self._thread = EngineThread(engine)
        # Also when it is forgotten, or the interpreter exits: a thread must not outlive JAX.
        self._close = weakref.finalize(self, self._thread.close)
        if show_progress:
            progress.print_capacity(self.capacity, self.max_model_len)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and stop the engine; checks that no block leaked."""
        self._close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Generate for all prompts at once; results in their order.

        Args:
            prompts: One prompt or a list: text, token ids, `{"prompt": …}`,
                `{"prompt_token_ids": …}`.
            sampling_params: One for all, or one for each; None for the model's defaults.
            use_tqdm: Draw a progress bar.
            priority: One number for each prompt, lower first, under
                `scheduling_policy="priority"`.

        Returns:
            One output for each prompt. A request that was accepted and could not be finished has
            finish reason "error", and the others are not touched by it.

        Raises:
            RequestError: A prompt or its parameters cannot be served, named by its place in the
                list; none of the list was started.
        """
        requests = self._requests(prompts, sampling_params, priority)
        updates: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        outputs = {request.request_id: new_output(request) for request in requests}
        with Progress(use_tqdm) as progress, self._cancel_on_error(requests):
            self._thread.submit(requests, updates.put)
            num_done = num_tokens = 0
            while num_done < len(requests):
                for update in updates.get():
                    output = outputs[update.request.request_id]
                    apply_update(output, update, time.monotonic())
                    num_tokens += len(update.token_ids)
                    num_done += output.finished and update.finish_reason is not None
                progress.requests(num_done, len(requests), num_tokens)
        return list(outputs.values())

    def chat(
        self,
        messages: Sequence[Mapping[str, object]] | Sequence[Sequence[Mapping[str, object]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generate the next turn of one conversation or of several.

        Args:
            messages: A list of `{"role": …, "content": …}`, or a list of such lists.
            sampling_params: As in `generate`.
            use_tqdm: Draw a progress bar.

        Raises:
            RequestError: The model has no chat template or no tokenizer, or as in `generate`.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        many: Sequence[Any] = [messages] if is_one else messages
        prompts: list[Prompt] = [self.chat_tokens(one) for one in many]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def chat_tokens(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Tokens of a conversation as the model's template writes it.

        Raises:
            RequestError: The model has no chat template or no tokenizer.
        """
        tokenizer = require_tokenizer(self._tokenizer)
        text = tokenizer.apply_chat_template(messages)
        return tokenizer.encode(text, add_special_tokens=False)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Generator[RequestOutput, None, None]:
        """Generate for one prompt, giving the output so far after every step.

        The request starts with the first output that is asked for. Closing the iterator early
        cancels it.

        Raises:
            RequestError: As in `generate`, by this call itself.
        """
        (request,) = self._requests([prompt], sampling_params, [priority])
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[RequestOutput, None, None]:
        updates: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        output = new_output(request)
        with self._cancel_on_error([request]):
            self._thread.submit([request], updates.put)
            while not output.finished:
                for update in updates.get():
                    apply_update(output, update, time.monotonic())
                yield snapshot(output)

    def generate_async(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncGenerator[RequestOutput, None]:
        """Stream like `stream`, without blocking the event loop.

        Raises:
            RequestError: As in `generate`.
        """
        (request,) = self._requests([prompt], sampling_params, [priority])
        return self._stream_async(request)

    async def _stream_async(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[list[Update]] = asyncio.Queue()

        def sink(group: list[Update]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under the request
                loop.call_soon_threadsafe(updates.put_nowait, group)

        output = new_output(request)
        with self._cancel_on_error([request]):
            await asyncio.wrap_future(self._thread.submit_soon([request], sink))
            while not output.finished:
                for update in await updates.get():
                    apply_update(output, update, time.monotonic())
                yield snapshot(output)

    @property
    def can_renew(self) -> bool:
        """Whether it goes on when processes of its world are lost or come."""
        return self._loader.can_renew

    @property
    def mesh_shape(self) -> Mapping[str, int]:
        """Devices along each axis of the mesh as it is now."""
        return self._loader.mesh_shape

    @property
    def capacity(self) -> Capacity:
        """Tokens of KV that fit in the engine as it is now."""
        return self._loader.capacity

    @property
    def thread(self) -> EngineThread:
        """The engine's thread, for who waits in a way of its own: the service."""
        return self._thread

    @property
    def has_tokenizer(self) -> bool:
        """Whether prompts may be text."""
        return self._tokenizer is not None

    def make_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        deadline: float | None = None,
        resumed: tuple[Known, ...] = (),
    ) -> Request:
        """Tokenise and check a request, to be submitted to `thread`.

        Raises:
            RequestError: It can never be served.
        """
        text, token_ids = parse_prompt(prompt, self._tokenizer, self.max_model_len)
        request = Request(
            request_id=request_id,
            prompt=text,
            prompt_token_ids=token_ids,
            params=self._without_text(sampling_params),
            priority=priority,
            deadline=deadline,
            resumed=resumed,
        )
        self._admission.check(request)
        return request

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            RequestError: The checkpoint has none.
        """
        return require_tokenizer(self._tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint recommends, else the defaults of `SamplingParams`."""
        return SamplingParams(**self._default_sampling)

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._thread.call(lambda engine: dataclasses.replace(engine.stats))

    def pool(self) -> PoolView:
        """Where blocks are now."""
        return self._thread.call(view_of)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> list[Request]:
        """Check everything there is to check before anything is started."""
        many: list[Any] = [prompts] if is_single(prompts) else list(prompts)
        each = self._params_of_each(params, len(many))
        if priority is not None and len(priority) != len(many):
            raise RequestError(f"{len(priority)} priorities for {len(many)} prompts")
        requests = []
        for index, (prompt, one) in enumerate(zip(many, each, strict=True)):
            try:
                request = self.make_request(
                    prompt,
                    one,
                    request_id=f"request-{next(self._names)}",
                    priority=0 if priority is None else priority[index],
                )
            except RequestError as error:
                if len(many) > 1:
                    error.add_note(f"in prompt {index} of {len(many)}; none was started")
                raise
            requests.append(request)
        return requests

    def _params_of_each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise RequestError(f"{len(params)} sampling_params for {count} prompts")
        return params

    def _without_text(self, params: SamplingParams) -> SamplingParams:
        """Without a tokenizer there is no text to make."""
        if self._tokenizer is None and not params.stop_strings:
            return dataclasses.replace(params, detokenize=False)
        return params

    @contextlib.contextmanager
    def _cancel_on_error(self, requests: Sequence[Request]) -> Iterator[None]:
        """Cancel requests whose caller goes away: an interrupt, a closed iterator, an error."""
        try:
            yield
        except BaseException:
            for request in requests:
                self._thread.cancel(request.request_id)
            raise


def dtype_on(dtype: str, mesh: MeshConfig) -> jnp.dtype | None:
    """The type of weights on a mesh; None for the checkpoint's own.

    Raises:
        ConfigError: It is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    if dtype == "auto" and mesh.platform == "cpu":
        dtype = "float32"
    return None if dtype == "auto" else jnp.dtype(dtype)


def engine_config(engine_args: Mapping[str, Any], mesh: MeshConfig) -> EngineConfig:
    """Make an `EngineConfig` of keywords.

    Raises:
        ConfigError: A keyword is unknown, or a value is not allowed.
    """
    known = [field.name for field in dataclasses.fields(EngineConfig)]
    unknown = sorted(set(engine_args) - set(known))
    if unknown:
        raise ConfigError(f"unknown arguments {', '.join(unknown)}, known: {', '.join(known)}")
    if mesh.simulated and mesh.instance > 1:
        # Simulated instances share the same cores, padding of all of them included.
        engine_args = {"max_num_batched_tokens": SIMULATED_STEP_TOKENS, **engine_args}
    return EngineConfig(**engine_args)


def view_of(engine: Engine) -> PoolView:
    """Read an engine's pools."""
    coordinator = engine.coordinator
    return PoolView(coordinator.usage(), coordinator.placement(), engine.host_usage())
