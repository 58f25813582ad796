"""Each process keeps its own instances' blocks in its memory; the leader knows by messages alone.

Real processes, real sockets, gloo between them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from distkv_jax.cache.messages import Entry, FromHost, Heartbeat, Loan, NotSaved, Saved
from distkv_jax.cache.performance import Profile
from distkv_jax.engine.commands import NOT_WANTED, Command, Fetch, Forget, Save
from distkv_jax.engine.sampling_params import SamplingParams
from serve.client import Client
from serve.proto.distkv.internal.v1 import world_pb2 as pb
from serve.world.host_messages import from_wire, to_wire
from serve.world.wire import Wire
from tests.llm.engines import make_llm, mixed_prompts
from tests.llm.text_checkpoint import write_text_checkpoint
from tests.world.running import Service, wait_until, world

PROMPTS = [prompt["prompt_token_ids"] for prompt in mixed_prompts(longest=110)]
PARAMS = [
    SamplingParams(temperature=float(index % 2), seed=index, max_tokens=60, ignore_eos=True)
    for index in range(len(PROMPTS))
]
HEARTBEAT = Heartbeat(
    instance=1,
    number=7,
    is_full=True,
    num_free=3,
    num_held=4,
    num_reserved=5,
    num_lendable=6,
    loans=(Loan(debtor=0, num_blocks=8),),
    entries=(Entry(request_id="a", home=0, num_blocks=9),),
    batch=10,
)
MESSAGES: list[FromHost] = [
    HEARTBEAT,
    Saved(instance=1, save_id=2),
    NotSaved(instance=1, save_id=2, num_free=3),
]
COMMANDS: list[Command] = [
    Save(1, 2, "a", 1, ((3, 4), ())),
    Fetch(2, 2, ((NOT_WANTED, 5), ())),
    Forget(3, 2),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_what_a_host_says_arrives(message: FromHost) -> None:
    assert from_wire(pb.FromHost.FromString(to_wire(message).SerializeToString())) == message


def test_a_message_of_an_unknown_kind_is_none() -> None:
    assert from_wire(pb.FromHost()) is None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: type(one).__name__)
def test_what_the_leader_orders_arrives(command: Command) -> None:
    wire = Wire(num_blocks=16, num_slots=4, vocab_size=8)

    assert wire.command_of(pb.Order.FromString(wire.order_of(command).SerializeToString())) == (
        command
    )


def test_every_message_is_heard_once_and_in_order() -> None:
    with world() as one:
        heard: list[FromHost] = []

        def hear() -> int:
            heard.extend(one.leader.hear())
            return len(heard)

        for message in MESSAGES:
            one.link.said([message])
        wait_until(lambda: hear() == 3, "all is heard")
        one.link.said(MESSAGES)
        wait_until(lambda: hear() == 6, "all is heard again")

        assert heard == MESSAGES * 2
        assert one.leader.hear() == []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two processes whose pools are so small that sequences are preempted."""
    model = write_text_checkpoint(tmp_path_factory.mktemp("model"))
    profile = tmp_path_factory.mktemp("profile") / "linear.json"
    Profile.linear().save(profile)
    service = Service(
        model,
        *("--block-size", "8", "--num-blocks", "12", "--max-num-seqs", "8"),
        *("--max-num-batched-tokens", "32", "--host-blocks", "40"),
        *("--step-profile", str(profile)),
    )
    try:
        with service.connect() as client:
            yield client
    finally:
        service.close()


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What one process with room for everything gives."""
    with make_llm(mesh="cpu-1", num_blocks=64) as llm:
        prompts = [{"prompt_token_ids": tokens} for tokens in PROMPTS]
        outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def serve(client: Client, look: Callable[[], None]) -> list[list[int]]:
    """Generate for all prompts at once; meanwhile look again and again."""
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        jobs = [threads.submit(client.generate, *one) for one in zip(PROMPTS, PARAMS, strict=True)]
        while not all(job.done() for job in jobs):
            look()
        return [job.result().outputs[0].token_ids for job in jobs]


def is_free(client: Client) -> bool:
    return all(one.free == one.total == 40 for one in client.pool().hosts)


def test_preempted_sequences_come_back_in_both_processes(
    client: Client, expected: list[list[int]]
) -> None:
    # Heard of before anything is in it.
    wait_until(lambda: is_free(client), "all is heard of")
    held = {0: 0, 1: 0}

    def look() -> None:
        for one in client.pool().hosts:
            held[one.instance] = max(held[one.instance], one.held)

    assert serve(client, look) == expected
    assert client.load().num_preemptions > 0
    assert client.load().num_fetched_tokens > 0
    # Heartbeats of rank 1 have told of its memory.
    assert all(held.values())
    wait_until(lambda: is_free(client), "all is forgotten")
