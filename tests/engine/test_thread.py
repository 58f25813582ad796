"""Every accepted request hears the end of each of its samples once, whatever becomes of the engine.

The engine here is a script: each step gives the updates, or raises the error, that a test put in.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from distkv_jax.engine.engine import Engine
from distkv_jax.engine.outputs import Update
from distkv_jax.engine.request import Request
from distkv_jax.engine.thread import EngineThread
from distkv_jax.errors import EngineStopped, InvariantError, QueueFull, RequestError, WorldLost
from tests.engine.fakes import make_request

TIMEOUT_S = 20


class ScriptedEngine(Engine):
    """Has work while a request is open.

    Attributes:
        script: What the next steps give or raise; nothing where it is empty.
        gate: Steps wait for it.
        is_in_step: Set once a step waits for the gate.
        refusal: Raised by `submit`.
        close_error: Raised by `close`.
        log: What was called, and on which thread.
    """

    def __init__(self) -> None:
        self.script: queue.SimpleQueue[list[Update] | Exception] = queue.SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.is_in_step = threading.Event()
        self.refusal: Exception | None = None
        self.close_error: Exception | None = None
        self.log: list[tuple[str, str]] = []
        self.live: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def submit(self, requests: tuple[Request, ...]) -> None:
        self._note("submit")
        if self.refusal is not None:
            raise self.refusal
        self.live |= {request.request_id: request for request in requests}

    def cancel(self, request_id: str) -> list[Update]:
        self._note("cancel")
        request = self.live.pop(request_id, None)
        return [] if request is None else end_of(request, "cancelled")

    def step(self) -> list[Update]:
        self._note("step")
        self.is_in_step.set()
        assert self.gate.wait(TIMEOUT_S)
        try:
            what = self.script.get(timeout=0.005)
        except queue.Empty:
            return []
        if isinstance(what, Exception):
            raise what
        for update in what:
            if update.finish_reason is not None and update.index == update.request.params.n - 1:
                del self.live[update.request.request_id]
        return what

    def close(self) -> list[Update]:
        self._note("close")
        if self.close_error is not None:
            raise self.close_error
        return [update for name in tuple(self.live) for update in self.cancel(name)]

    def _note(self, what: str) -> None:
        self.log.append((what, threading.current_thread().name))


class Heard:
    """A sink that a test can wait on."""

    def __init__(self) -> None:
        self.groups: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()

    def __call__(self, group: list[Update]) -> None:
        self.groups.put(group)

    def next(self) -> list[Update]:
        return self.groups.get(timeout=TIMEOUT_S)

    def ends(self) -> list[tuple[str, int, str | None]]:
        """Name, sample and reason of each end heard so far."""
        ends = []
        while not self.groups.empty():
            for update in self.next():
                if update.finish_reason is not None:
                    ends.append((update.request.request_id, update.index, update.finish_reason))
        return ends


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def thread(engine: ScriptedEngine) -> Iterator[EngineThread]:
    thread = EngineThread(engine)
    yield thread
    engine.gate.set()
    # A failure that a test did not look at would be raised here.
    thread.close()


def end_of(request: Request, reason: str = "length") -> list[Update]:
    return [Update(request, index, finish_reason=reason) for index in range(request.params.n)]


def within_time(do: Callable[[], Any]) -> Any:
    """Run something that must not hang."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(do())
        except Exception as error:
            box.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    runner.join(TIMEOUT_S)
    assert box, "it hangs"
    return box[0]


def test_a_steps_updates_reach_each_sink_together(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    a, b, c = (make_request(name=name) for name in "abc")
    shared, own = Heard(), Heard()
    thread.submit([a, b], shared)
    thread.submit([c], own)

    engine.script.put([Update(a, 0, (1,)), Update(c, 0, (2,)), Update(b, 0, (3,))])

    assert [update.request for update in shared.next()] == [a, b]
    assert [update.request for update in own.next()] == [c]


def test_messages_are_handled_before_the_next_step_on_the_engines_thread(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    engine.gate.clear()
    thread.submit([make_request(name="a")], Heard())
    assert engine.is_in_step.wait(TIMEOUT_S)
    waiting = thread.submit_soon([make_request(name="b")], Heard())
    thread.cancel("nobody")
    assert not waiting.done()

    engine.gate.set()
    waiting.result(TIMEOUT_S)
    thread.call(str)

    assert [what for what, _ in engine.log[:4]] == ["submit", "step", "submit", "cancel"]
    assert {name for _, name in engine.log} == {"distkv-engine"}


@pytest.mark.parametrize("error", [RequestError("no"), QueueFull("full")], ids=repr)
def test_a_refusal_reaches_who_submitted_and_the_engine_goes_on(
    engine: ScriptedEngine, thread: EngineThread, error: Exception
) -> None:
    engine.refusal = error
    with pytest.raises(type(error), match=str(error)):
        thread.submit([make_request()], Heard())

    engine.refusal = None
    thread.submit([make_request()], Heard())


def test_an_error_that_is_no_refusal_reaches_who_submitted_and_stops(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    engine.refusal = InvariantError("a bug")

    error = within_time(lambda: thread.submit([make_request()], Heard()))

    assert isinstance(error, InvariantError)
    with pytest.raises(InvariantError, match="a bug"):
        thread.close()


def test_cancel_is_heard_once(engine: ScriptedEngine, thread: EngineThread) -> None:
    heard = Heard()
    thread.submit([make_request(name="a", n=2)], heard)
    thread.cancel("a")
    thread.cancel("a")
    thread.close()

    assert heard.ends() == [("a", 0, "cancelled"), ("a", 1, "cancelled")]


def test_a_call_reads_the_engine_on_its_thread_and_its_error_is_the_callers(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    assert thread.call(lambda given: given) is engine
    assert thread.call(lambda _: threading.current_thread().name) == "distkv-engine"
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda _: 1 / 0)

    assert thread.call(lambda _: 5) == 5


def test_close_cancels_what_is_left_and_a_second_one_does_nothing(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    heard = Heard()
    thread.submit([make_request(name="a")], heard)

    thread.close()
    thread.close()

    assert heard.ends() == [("a", 0, "cancelled")]
    assert [what for what, _ in engine.log].count("close") == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda thread: thread.submit([make_request()], Heard()),
        lambda thread: thread.submit_soon([make_request()], Heard()),
        lambda thread: thread.call(lambda engine: engine),
    ],
    ids=["submit", "submit_soon", "call"],
)
def test_after_close_every_use_says_so(
    thread: EngineThread, use: Callable[[EngineThread], object]
) -> None:
    thread.close()

    with pytest.raises(EngineStopped, match="the engine takes no requests: it was closed"):
        use(thread)


def test_cancel_after_close_is_no_error_since_everything_has_ended(thread: EngineThread) -> None:
    thread.close()

    thread.cancel("a")


def test_a_broken_promise_ends_every_open_sample_with_the_error(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    a, b = make_request(name="a", n=2), make_request(name="b")
    heard = Heard()
    thread.submit([a, b], heard)
    engine.script.put([Update(a, 0, finish_reason="length")])
    engine.script.put(InvariantError("block 3 is held and free"))

    assert heard.next()[0].finish_reason == "length"
    ended = heard.next()
    assert [(one.request, one.index, one.finish_reason) for one in ended] == [
        (a, 1, "error"),
        (b, 0, "error"),
    ]
    assert {one.error for one in ended} == {"the engine failed: block 3 is held and free"}
    with pytest.raises(InvariantError, match="block 3 is held and free"):
        thread.close()
    with pytest.raises(EngineStopped, match="takes no requests: it failed: block 3 is held"):
        thread.submit([make_request()], heard)


def test_who_asks_while_the_engine_fails_is_answered(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    engine.gate.clear()
    thread.submit([make_request(name="a")], Heard())
    assert engine.is_in_step.wait(TIMEOUT_S)
    late = thread.submit_soon([make_request(name="b")], Heard())
    taken_back = thread.submit_soon([make_request(name="c")], Heard())
    assert taken_back.cancel()
    engine.script.put(InvariantError("a bug"))
    engine.gate.set()

    with pytest.raises(EngineStopped, match="takes no requests: it failed: a bug"):
        late.result(TIMEOUT_S)
    with pytest.raises(InvariantError, match="a bug"):
        thread.close()


class Broken:
    """Its method is a sink that always fails."""

    def sink(self, group: list[Update]) -> None:
        raise ValueError("nobody listens")


def test_a_broken_sink_hears_nothing_more_its_requests_end_and_the_others_are_served(
    engine: ScriptedEngine, thread: EngineThread, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = (make_request(name=name) for name in "abc")
    broken, heard = Broken(), Heard()
    for one in (a, b):
        thread.submit([one], broken.sink)
    thread.submit([c], heard)

    engine.script.put([Update(a, 0, (1,)), Update(c, 0, (2,))])

    assert [update.request for update in heard.next()] == [c]
    # Cancelled behind what was in the queue by then.
    assert thread.call(lambda _: True)
    assert thread.call(lambda _: [*engine.live]) == ["c"]
    assert "a sink failed, its requests are cancelled" in caplog.text


def test_a_leak_found_at_close_is_raised_and_open_requests_still_end(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    heard = Heard()
    thread.submit([make_request(name="a")], heard)
    engine.close_error = InvariantError("2 of 8 blocks held")

    with pytest.raises(InvariantError, match="2 of 8 blocks held"):
        thread.close()

    assert heard.ends() == [("a", 0, "error")]


def test_a_submission_that_is_taken_back_is_not_made(
    engine: ScriptedEngine, thread: EngineThread
) -> None:
    engine.gate.clear()
    thread.submit([make_request(name="a")], Heard())
    assert engine.is_in_step.wait(TIMEOUT_S)
    late = thread.submit_soon([make_request(name="b")], Heard())
    assert late.cancel()

    engine.gate.set()

    assert thread.call(lambda _: [*engine.live]) == ["a"]
    with pytest.raises(CancelledError):
        late.result(TIMEOUT_S)


def test_close_on_the_engines_own_thread_does_not_wait_for_itself(
    thread: EngineThread,
) -> None:
    assert within_time(lambda: thread.call(lambda _: thread.close())) is None

    with pytest.raises(EngineStopped, match="it was closed"):
        thread.call(str)


def test_an_abandoned_engine_ends_requests_while_its_thread_waits_for_devices(
    engine: ScriptedEngine,
) -> None:
    thread, request, late = EngineThread(engine), make_request(n=2), make_request(name="late")
    heard = Heard()
    engine.gate.clear()
    thread.submit([request], heard)
    assert engine.is_in_step.wait(TIMEOUT_S)
    waiting = thread.submit_soon([late], heard)

    within_time(lambda: thread.abandon(WorldLost("rank 1 has gone")))

    name = request.request_id
    assert heard.ends() == [(name, 0, "error"), (name, 1, "error")]
    with pytest.raises(EngineStopped, match="rank 1 has gone"):
        waiting.result(TIMEOUT_S)
    with pytest.raises(EngineStopped, match="rank 1 has gone"):
        thread.submit([late], heard)
    # It waits for nobody, and what the engine says when it comes back reaches nobody.
    assert isinstance(within_time(lambda: raised(thread.close)), WorldLost)
    engine.script.put(end_of(request))
    engine.gate.set()
    thread._thread.join(0.5)
    assert heard.ends() == []


def raised(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
