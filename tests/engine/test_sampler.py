"""A sampled token is the one a slow reference draws, whoever else is in the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from distkv_jax.engine.sampler import RowParams, Sampled, sample, seed_words
from distkv_jax.engine.sampler_state import (
    SamplerState,
    commit,
    empty_state,
    set_slot,
    slot_row,
    state_bytes,
)
from distkv_jax.engine.sampling_params import SamplingParams
from distkv_jax.mesh import load_mesh_config, make_mesh

VOCAB = 40
SLOTS = 10
ROWS = 6
MAX_LOGPROBS = 5
END = 7

run = jax.jit(sample, static_argnames="max_logprobs")


def make_params(rows: int, **columns: Any) -> RowParams:
    """Build greedy rows in slots 0, 1, ...; a scalar column is the same in each row."""
    defaults: dict[str, np.ndarray] = dict(
        slot=np.arange(rows, dtype=np.int32),
        position=np.arange(100, 100 + rows, dtype=np.int32),
        seed=np.arange(2 * rows, dtype=np.uint32).reshape(rows, 2),
        temperature=np.zeros(rows, np.float32),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        presence_penalty=np.zeros(rows, np.float32),
        frequency_penalty=np.zeros(rows, np.float32),
        repetition_penalty=np.ones(rows, np.float32),
        top_k=np.zeros(rows, np.int32),
        target=np.full(rows, -1, np.int32),
        ban_stop=np.zeros(rows, bool),
        adjust=np.zeros(rows, bool),
        wants_logprobs=np.zeros(rows, bool),
    )
    for name, value in columns.items():
        old = defaults[name]
        defaults[name] = np.broadcast_to(value, old.shape).astype(old.dtype)
    return RowParams(**{name: jnp.asarray(column) for name, column in defaults.items()})


def make_logits(rows: int, vocab: int = VOCAB, seed: int = 0) -> jax.Array:
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(rows, vocab)), jnp.float32)


def draw(logits: jax.Array, state: SamplerState, params: RowParams) -> Sampled:
    return run(logits, state, params, max_logprobs=MAX_LOGPROBS)


def reference(
    logits: np.ndarray,
    *,
    asked: SamplingParams,
    prompt: list[int],
    output: list[int],
    bad_words: list[list[int]],
    noise: np.ndarray,
) -> int:
    """Choose one row's token in float64, token by token and by sorting."""
    x = logits.astype(np.float64)
    for token in range(VOCAB):
        too_early = len(output) < asked.min_tokens and token == END
        bad = any(
            word[-1] == token and output[len(output) - len(word) + 1 :] == word[:-1]
            for word in bad_words
            if len(output) >= len(word) - 1
        )
        allowed = asked.allowed_token_ids is None or token in asked.allowed_token_ids
        if too_early or bad or not allowed:
            x[token] = -np.inf
        x[token] += (asked.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in output:
            x[token] *= 1 / asked.repetition_penalty if x[token] > 0 else asked.repetition_penalty
        x[token] -= asked.frequency_penalty * output.count(token)
        x[token] -= asked.presence_penalty * (token in output)
    if asked.temperature == 0:
        return int(np.argmax(x))
    x /= asked.temperature
    kept = kept_tokens(x, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p)
    return max(kept, key=lambda token: x[token] + noise[token])


def kept_tokens(x: np.ndarray, *, top_k: int, top_p: float, min_p: float) -> list[int]:
    """Tokens that min-p, then top-k, then top-p leave, best first."""
    order = [token for token in np.argsort(-x, kind="stable") if x[token] > -np.inf]
    order = [token for token in order if np.exp(x[token] - x[order[0]]) >= min_p]
    if top_k > 0:
        order = order[:top_k]
    weights = np.exp(x[order] - x[order[0]])
    before = np.cumsum(weights) - weights
    return [
        token for token, mass in zip(order, before / weights.sum(), strict=True) if mass < top_p
    ]


def noise_of(seed: np.ndarray, position: int, vocab: int = VOCAB) -> np.ndarray:
    key = jax.random.wrap_key_data(jnp.asarray(seed), impl="threefry2x32")
    return np.asarray(jax.random.gumbel(jax.random.fold_in(key, position), (vocab,)))


PROMPT = [1, 2, 3, 3, 30, 31]
OUTPUT = [4, 5, 4, 6, 2, 4, 9, 11, 4]
BAD_WORDS = [[20], [4, 21], [11, 4, 22], [12, 4, 23], [4, 5, 4, 6, 2, 4, 9, 24]]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_k_of_minus_one": {"top_k": -1},
    "top_k_past_the_vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "top_p_that_underflows": {"top_p": 1e-60},
    "min_p": {"min_p": 0.2},
    "all_cuts": {"temperature": 2, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
    "presence": {"temperature": 0, "presence_penalty": 1.9},
    "frequency": {"temperature": 0, "frequency_penalty": -1.5},
    "repetition": {"temperature": 0, "repetition_penalty": 0.3},
    "repetition_up": {"temperature": 0, "repetition_penalty": 40},
    "bias": {"temperature": 0, "logit_bias": {33: 9, 34: 8.9, 2: -100}},
    "allowed": {"temperature": 0, "allowed_token_ids": [8, 9, 10, 11]},
    "min_tokens": {"temperature": 0, "min_tokens": 10, "logit_bias": {END: 100}},
    "min_tokens_reached": {"temperature": 0, "min_tokens": 9, "logit_bias": {END: 100}},
    "bad_words": {"temperature": 0, "bad_words": ["any"], "logit_bias": {20: 99, 21: 98, 22: 97}},
    "bad_word_not_met": {"temperature": 0, "bad_words": ["any"], "logit_bias": {23: 99}},
    "bad_word_of_eight_not_met": {"temperature": 0, "bad_words": ["any"], "logit_bias": {24: 99}},
    "everything": {
        "temperature": 1.7,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.001,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.3,
        "min_tokens": 10,
        "bad_words": ["any"],
        "logit_bias": {7: 9.0, 21: 8.0, 13: 3.0},
        "allowed_token_ids": list(range(30)),
        "max_tokens": None,
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_sample_equals_the_slow_reference(case):
    asked = SamplingParams(**case)
    bad_words = BAD_WORDS if asked.bad_words else []
    # Row r has sampled r + 4 tokens; in the last row the whole of OUTPUT.
    outputs = [OUTPUT[: 4 + row] for row in range(ROWS)]
    params = make_params(
        ROWS,
        slot=np.array([3, 9, 0, 5, 1, 8]),
        temperature=asked.temperature,
        top_p=asked.top_p,
        min_p=asked.min_p,
        top_k=asked.top_k,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        ban_stop=[len(output) < asked.min_tokens for output in outputs],
        adjust=asked.adjusts_logits,
    )
    state = empty_state(SLOTS, VOCAB)
    for slot, output in zip(params.slot.tolist(), outputs, strict=True):
        row = slot_row(
            asked,
            prompt_ids=PROMPT,
            output_ids=output,
            stop_ids=[END],
            vocab=VOCAB,
            bad_words=bad_words,
        )
        state = set_slot(state, slot, row)

    for seed in range(10):
        # Where all logits are negative, a penalty that should multiply must not divide.
        logits = make_logits(ROWS, seed=seed) - 12 * (seed % 2)
        expected = [
            reference(
                np.asarray(logits[row]),
                asked=asked,
                prompt=PROMPT,
                output=outputs[row],
                bad_words=bad_words,
                noise=noise_of(np.asarray(params.seed[row]), int(params.position[row])),
            )
            for row in range(ROWS)
        ]
        assert draw(logits, state, params).ids.tolist() == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.5, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.3, "min_p": 0.2},
        {"temperature": 2.0, "min_p": 0.3, "top_k": 10},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.7},
        {"temperature": 2.0, "min_p": 0.3, "top_p": 0.7},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_frequencies_are_the_distributions(asked):
    draws, vocab = 4000, 12
    x = np.random.default_rng(3).normal(size=vocab).astype(np.float32)
    cuts = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | asked
    logits = jnp.asarray(np.tile(x, (draws, 1)))
    params = make_params(draws, slot=0, seed=np.array([5, 6]), position=np.arange(draws), **cuts)

    ids = draw(logits, empty_state(1, vocab), params).ids

    scaled = x.astype(np.float64) / cuts.pop("temperature")
    kept = kept_tokens(scaled, **cuts)
    expected = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum() * draws
    seen = np.bincount(ids, minlength=vocab)
    assert seen[kept].sum() == draws
    chi_square = float(((seen[kept] - expected) ** 2 / expected).sum())
    # Mean df, deviation sqrt(2 df): four deviations is a chance below 1 in 1,000 for a right
    # sampler (the seeds are fixed), and a 10 % error in one token's share of a fifth exceeds it.
    df = len(kept) - 1
    assert chi_square < df + 4 * np.sqrt(2 * df)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_banned_token_is_never_sampled(data):
    allowed = data.draw(st.sets(st.integers(0, VOCAB - 1), min_size=1))
    single = data.draw(st.sets(st.integers(0, VOCAB - 1), max_size=5))
    last = data.draw(st.integers(0, VOCAB - 1))
    ends = data.draw(st.sets(st.integers(0, VOCAB - 1), max_size=3))
    legal = allowed - single - {last} - ends
    row = slot_row(
        SamplingParams(allowed_token_ids=tuple(allowed), bad_words=["any"]),
        prompt_ids=[1],
        output_ids=[2, 3],
        stop_ids=tuple(ends),
        vocab=VOCAB,
        bad_words=[*([token] for token in single), [2, 3, last]],
    )
    params = make_params(
        ROWS,
        slot=2,
        temperature=data.draw(st.sampled_from([0.0, 0.01, 1.0, 100.0])),
        top_p=data.draw(st.sampled_from([1.0, 0.5, 1e-6])),
        top_k=data.draw(st.integers(0, VOCAB + 1)),
        min_p=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        repetition_penalty=data.draw(st.sampled_from([0.01, 1.0, 100.0])),
        frequency_penalty=data.draw(st.sampled_from([-2.0, 0.0, 2.0])),
        position=data.draw(st.integers(0, 2**31 - 1 - ROWS)) + np.arange(ROWS),
        adjust=True,
        ban_stop=True,
    )
    logits = make_logits(ROWS, seed=data.draw(st.integers(0, 99)))

    ids = draw(logits, set_slot(empty_state(SLOTS, VOCAB), 2, row), params).ids

    assert set(ids.tolist()) <= (legal or {0})


def test_top_k_of_one_is_greedy():
    logits = make_logits(ROWS)
    state = empty_state(SLOTS, VOCAB)

    hot = draw(logits, state, make_params(ROWS, temperature=5, top_k=1)).ids

    assert hot.tolist() == draw(logits, state, make_params(ROWS)).ids.tolist()
    assert hot.tolist() == np.argmax(logits, axis=-1).tolist()


@pytest.mark.parametrize("vocab", [7, 130, 384])
def test_greedy_is_the_first_of_the_largest(vocab):
    x = np.random.default_rng(0).integers(0, 9, (16, vocab)).astype(np.float32)

    ids = run(jnp.asarray(x), empty_state(16, vocab), make_params(16), max_logprobs=1).ids

    assert ids.tolist() == np.argmax(x, axis=-1).tolist()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_draw_depends_on_seed_and_position_alone(rows):
    vocab, neighbours = 301, 20
    logits = make_logits(neighbours, vocab)
    state = empty_state(neighbours, vocab)
    columns = {
        "slot": np.arange(neighbours),
        "temperature": np.tile([1.0, 0.7, 0.0, 3.0], 5),
        "top_p": np.tile([1.0, 0.5, 1.0, 0.9, 1.0], 4),
        "top_k": np.tile([0, 8], 10),
        "seed": np.random.default_rng(1).integers(0, 2**32, (neighbours, 2)),
        "position": np.arange(7, 7 + neighbours),
    }
    together = draw(logits, state, make_params(neighbours, **columns)).ids
    order = np.random.default_rng(rows).permutation(neighbours)

    for start in range(0, neighbours - rows + 1, rows):
        some = order[start : start + rows]
        few = {name: column[some] for name, column in columns.items()} | {"slot": some[::-1]}
        ids = draw(logits[some], state, make_params(rows, **few)).ids
        assert ids.tolist() == together[some].tolist()


@pytest.mark.parametrize("changed", [{"seed": [0, 9]}, {"seed": [9, 1]}, {"position": 101}])
def test_another_seed_or_position_is_another_draw(changed):
    logits = jnp.zeros((1, 4001), jnp.float32)
    state = empty_state(1, 4001)
    one = draw(logits, state, make_params(1, temperature=1))
    other = draw(logits, state, make_params(1, temperature=1, **changed))

    assert one.ids != other.ids


def test_the_seeds_of_samples_differ_and_wrap():
    assert seed_words(5, 0) == (5, 0)
    assert seed_words(5, 2) == (7, 0)
    assert seed_words(-1, 0) == (2**32 - 1, 2**32 - 1)
    assert seed_words(2**64 - 1, 1) == (0, 0)
    assert seed_words(3 << 32, 0) == (0, 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_logits_still_give_a_token_of_the_model(value, temperature):
    logits = make_logits(ROWS).at[0].set(value).at[1:, 3:20].set(value)
    cuts = {"top_k": [3, 3, 0, 0, 0, 3], "top_p": [0.5, 1, 0.5, 1, 1, 0.5]}
    cuts["min_p"] = [0.1, 0, 0, 0.1, 0, 0.1]
    params = make_params(ROWS, temperature=temperature, **cuts)

    ids = draw(logits, empty_state(SLOTS, VOCAB), params).ids.tolist()

    assert all(0 <= token < VOCAB for token in ids)
    if value == np.inf:
        assert all(3 <= token < 20 for token in ids[1:])
    if temperature and np.isnan(value):
        without = jnp.nan_to_num(logits, nan=-jnp.inf)
        assert ids == draw(without, empty_state(SLOTS, VOCAB), params).ids.tolist()


def test_rows_without_adjustments_ignore_what_their_slot_has_left():
    logits = make_logits(ROWS)
    state = empty_state(SLOTS, VOCAB)
    leavings = state._replace(bias=state.bias.at[:, 1:].set(-jnp.inf), counts=state.counts + 1)
    adjust = np.arange(ROWS) == 3
    params = make_params(ROWS, temperature=[0, 1, 0, 1, 1, 0], presence_penalty=2, adjust=adjust)

    ids = draw(logits, leavings, params).ids.tolist()

    expected = draw(logits, state, params._replace(adjust=jnp.zeros(ROWS, bool))).ids.tolist()
    assert ids[3] == 0 != expected[3]
    assert ids[:3] + ids[4:] == expected[:3] + expected[4:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_everything_banned_the_first_token_is_taken(temperature):
    state = empty_state(SLOTS, VOCAB)
    state = state._replace(bias=jnp.full_like(state.bias, -jnp.inf))
    params = make_params(ROWS, temperature=temperature, top_k=3, top_p=0.5, min_p=0.1, adjust=True)

    assert not draw(make_logits(ROWS), state, params).ids.any()


def test_padding_rows_yield_zeros_and_report_nothing():
    slot = np.array([0, SLOTS, 2, SLOTS, 4, 5])
    params = make_params(ROWS, slot=slot, temperature=1, adjust=True, wants_logprobs=True)

    sampled = draw(make_logits(ROWS), empty_state(SLOTS, VOCAB), params)

    padding = slot == SLOTS
    assert all(not np.asarray(field)[padding].any() for field in sampled)
    assert np.asarray(sampled.logprob)[~padding].all()


def test_logprobs_are_of_the_raw_logits():
    logits = make_logits(ROWS)
    state = empty_state(SLOTS, VOCAB)
    state = state._replace(bias=state.bias.at[:, :35].set(-jnp.inf))
    wants = np.arange(ROWS) != 2
    params = make_params(ROWS, temperature=0.3, adjust=True, wants_logprobs=wants)

    sampled = jax.tree.map(np.asarray, draw(logits, state, params))

    x = np.asarray(logits, np.float64)
    logprobs = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    for row in range(ROWS):
        best = np.argsort(-x[row])[:MAX_LOGPROBS]
        token = sampled.ids[row]
        assert token >= 35
        if not wants[row]:
            assert not any(field[row].any() for field in sampled[1:])
            continue
        np.testing.assert_allclose(sampled.logprob[row], logprobs[row, token], atol=1e-5)
        assert sampled.rank[row] == 1 + (x[row] > x[row, token]).sum()
        assert sampled.top_ids[row].tolist() == best.tolist()
        np.testing.assert_allclose(sampled.top_logprobs[row], logprobs[row, best], atol=1e-5)


def test_rows_with_a_target_report_it_and_sample_nothing():
    logits = make_logits(ROWS)
    target = [17, 0, 39, 1, 1, 5]
    params = make_params(ROWS, slot=SLOTS, target=target, temperature=1, wants_logprobs=True)

    sampled = draw(logits, empty_state(SLOTS, VOCAB), params)

    assert sampled.ids.tolist() == target
    expected = jax.nn.log_softmax(logits)[jnp.arange(ROWS), jnp.array(target)]
    np.testing.assert_allclose(sampled.logprob, expected, atol=1e-5)


def test_tied_tokens_share_a_rank():
    logits = jnp.full((ROWS, VOCAB), 1.0).at[:, :5].set(jnp.array([[3.0, 5.0, 3.0, 1.0, 5.0]]))
    params = make_params(ROWS, slot=SLOTS, target=[0, 1, 2, 3, 4, 5], wants_logprobs=True)

    ranks = draw(logits, empty_state(SLOTS, VOCAB), params).rank

    assert ranks.tolist() == [3, 1, 3, 5, 1, 5]


def test_greedy_rows_pay_for_nothing_else():
    """Outside of branches that are skipped at run time there is neither draw, search nor sort."""
    closed = jax.make_jaxpr(functools.partial(sample, max_logprobs=MAX_LOGPROBS))(
        make_logits(ROWS), empty_state(SLOTS, VOCAB), make_params(ROWS)
    )

    outside, inside = primitives_of(closed.jaxpr)
    expensive = {"exp", "log", "random_bits", "scan", "while", "top_k", "gather"}
    assert not expensive & outside
    assert {"exp", "random_bits", "top_k"} <= inside
    assert "sort" not in inside | outside


def primitives_of(jaxpr: Any) -> tuple[set[str], set[str]]:
    """Names of the primitives outside and inside of the branches of a jaxpr."""
    outside, inside = set(), set()
    for eqn in jaxpr.eqns:
        outside.add(eqn.primitive.name)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if not hasattr(inner, "eqns"):
                    continue
                below, deeper = primitives_of(inner)
                inside |= deeper
                if eqn.primitive.name == "cond":
                    inside |= below
                else:
                    outside |= below
    return outside, inside


def test_commit_remembers_tokens_and_drops_padding():
    state = jax.jit(commit)(
        empty_state(SLOTS, VOCAB), jnp.array([3, SLOTS, 0, -1, 99]), jnp.array([5, 6, 7, 8, 9])
    )

    expected = np.zeros((SLOTS, VOCAB))
    expected[3, 5] = expected[0, 7] = 1
    np.testing.assert_array_equal(state.counts, expected)
    assert state.last_token.tolist() == [7, 0, 0, 5, 0, 0, 0, 0, 0, 0]
    assert state.recent[3].tolist() == [-1, -1, -1, -1, -1, -1, 5]
    assert state.recent[9].tolist() == [-1] * 7


@pytest.mark.parametrize("num_output", [0, 1, 6, 7, 9])
def test_set_slot_after_a_preemption_restores_what_commit_built(num_output):
    asked = SamplingParams(logit_bias={3: 2.0}, bad_words=["any"], presence_penalty=1)
    make_row = functools.partial(
        slot_row, asked, prompt_ids=PROMPT, stop_ids=[END], vocab=VOCAB, bad_words=BAD_WORDS
    )
    state = set_slot(empty_state(SLOTS, VOCAB), 4, make_row(output_ids=[]))
    for token in OUTPUT[:num_output]:
        state = commit(state, jnp.array([4]), jnp.array([token]))
    # The slot it comes back to has another sequence's leavings.
    other = commit(empty_state(SLOTS, VOCAB), jnp.array([6]), jnp.array([30]))
    restored = set_slot(other, 6, make_row(output_ids=OUTPUT[:num_output]))

    for name, built, again in zip(SamplerState._fields, state, restored, strict=True):
        np.testing.assert_array_equal(built[4], again[6], err_msg=name)


def test_state_bytes_are_those_of_the_state():
    state = empty_state(SLOTS, VOCAB)

    assert state_bytes(SLOTS, VOCAB) == sum(leaf.nbytes for leaf in state)


def test_eight_instances_sample_what_one_does_without_a_collective():
    mesh = make_mesh(load_mesh_config("cpu-8"))
    everywhere = jax.sharding.NamedSharding(mesh, P())
    rows = 2 * mesh.shape["instance"]
    logits = make_logits(rows)
    columns = {"temperature": np.tile([0.0, 1.0, 1.0, 0.0], rows // 4), "adjust": True}
    columns |= {"top_k": np.repeat([0, 5], rows // 2), "wants_logprobs": np.arange(rows) < 4}
    params = make_params(rows, presence_penalty=1, **columns)
    state = jax.jit(empty_state, static_argnums=(0, 1), out_shardings=everywhere)(rows, VOCAB)
    row = slot_row(
        SamplingParams(allowed_token_ids=[5]),
        prompt_ids=[],
        output_ids=[],
        stop_ids=[],
        vocab=VOCAB,
    )
    state = set_slot(state, 1, row)
    one = run(logits, jax.device_get(state), params, max_logprobs=MAX_LOGPROBS)

    per_instance = jax.jit(
        jax.shard_map(
            functools.partial(sample, max_logprobs=MAX_LOGPROBS),
            mesh=mesh,
            in_specs=(P("instance"), P(), P("instance")),
            out_specs=P("instance"),
            axis_names={"instance"},
            check_vma=False,
        )
    )
    compiled = per_instance.lower(logits, state, params).compile()
    many = compiled(logits, state, params)

    assert state.bias.sharding.is_equivalent_to(everywhere, 2)
    assert many.ids[1] == 5
    jax.tree.map(np.testing.assert_array_equal, many, one)
    assert "conditional" in (text := str(compiled.as_text()))
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "permute("))
