"""The modules run inside a shard_map over instances, and each part sees only its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from distkv_jax.models.checkpoint import LoadedModel, load_model
from distkv_jax.models.decoder import Decoder
from distkv_jax.models.dense import dense_logits
from distkv_jax.models.sharding import abstract_decoder
from tests.models.builders import GOLDEN, make_mesh

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "all-reduce")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(GOLDEN / "qwen3_norm", mesh=make_mesh(), dtype="float32")


def layer_parts(model: Decoder, token_ids: jax.Array) -> jax.Array:
    """Run every projection, with attention replaced by the values themselves."""
    x = model.embed(token_ids)
    rotary = model.rotary(jnp.arange(token_ids.shape[0]))
    for layer in model.layers:
        k, v = layer.kv(x, rotary)
        group = layer.q(x, rotary).shape[1] // v.shape[1]
        x = layer.finish(x, layer.q(x, rotary) + jnp.repeat(k + v, group, axis=1))
    return model.logits(x)


@pytest.mark.parametrize(("instance", "tensor"), [(4, 1), (2, 2)])
def test_a_step_over_instances_needs_no_collective_between_them(instance: int, tensor: int):
    mesh = make_mesh(instance, tensor)
    loaded = load_model(GOLDEN / "qwen3_norm", mesh=mesh, dtype="float32")

    def step(params: nnx.State, token_ids: jax.Array) -> jax.Array:
        return layer_parts(nnx.merge(loaded.graphdef, params), token_ids)

    mapped = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P("instance")),
            out_specs=P("instance"),
            axis_names={"instance"},
            check_vma=False,
        )
    )
    token_ids = jnp.arange(4 * instance) % 128
    compiled = mapped.lower(loaded.params, token_ids).compile()

    model = nnx.merge(loaded.graphdef, jax.device_get(loaded.params))
    rows = [layer_parts(model, part) for part in token_ids.reshape(instance, 4)]
    np.testing.assert_allclose(
        mapped(loaded.params, token_ids), jnp.concatenate(rows), atol=1e-4, rtol=1e-4
    )
    text = compiled.as_text() or ""
    found = [name for name in COLLECTIVES if f" {name}(" in text or f" {name}-start(" in text]
    assert found == [] if tensor == 1 else "all-reduce" in found


def test_queries_of_some_rows_are_those_rows_queries(loaded: LoadedModel):
    @jax.jit
    def both(params: nnx.State, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(loaded.graphdef, params)
        x, rotary = model.embed(jnp.arange(6)), model.rotary(jnp.arange(6))
        layer = model.layers[0]
        some = layer.q(x[rows], jax.tree.map(lambda table: table[rows], rotary))
        return some, layer.q(x, rotary)[rows]

    some, picked = both(loaded.params, jnp.asarray([5, 2]))

    np.testing.assert_allclose(some, picked, rtol=1e-5, atol=1e-6)


def test_activations_have_the_weights_type_and_logits_are_float32(loaded: LoadedModel):
    def parts(params: nnx.State) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = nnx.merge(loaded.graphdef, params)
        x = model.embed(jnp.arange(3))
        q = model.layers[0].q(x, model.rotary(jnp.arange(3)))
        return q, model.layers[0].finish(x, q), model.logits(x)

    narrow = abstract_decoder(loaded.config, "bfloat16").params

    assert [part.dtype.name for part in jax.eval_shape(parts, narrow)] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]


def test_a_padding_id_harms_nobody(loaded: LoadedModel):
    model = nnx.merge(loaded.graphdef, loaded.params)

    assert jnp.isfinite(model.embed(jnp.asarray([-1, 128, 2**30]))).all()


def test_dense_attention_can_be_trained(loaded: LoadedModel):
    token_ids = jnp.asarray([[5, 6, 7, 8], [9, 9, 9, 9]])

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(loaded.graphdef, params)
        logits = jax.vmap(lambda ids: dense_logits(model, ids))(token_ids)
        return -jax.nn.log_softmax(logits[:, :-1])[:, :, 7].mean()

    step = jax.jit(jax.value_and_grad(loss))
    start, gradient = step(loaded.params)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, loaded.params, gradient)

    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert step(moved)[0] < start
