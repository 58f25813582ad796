"""How long a context do 32 chips hold together, by the TPU compiler's own count of memory?

    python -m benchmarks.aot --model llama2-7b llama2-13b llama2-70b

Compiles a model's largest steps for v5p, from shapes alone and on any machine (libtpu must be
installed: `pip install 'distkv-jax[aot-tpu]'`), once for 32 chips with pooling and once for
instances that keep to themselves. Prints one JSON line each; nothing is run.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence

import jax

from benchmarks.measure import timed
from distkv_jax.cli.capacity import fit
from distkv_jax.cli.fit import read_model
from distkv_jax.cli.prove import Proof, prove
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.progress import Progress
from distkv_jax.mesh import MeshConfig
from distkv_jax.models.model_folder import shape_names

V5P_GIB = 95.0
TENSOR = {"llama2-70b": 4}
"""Chips of an instance where one chip does not hold the weights."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compile as the command line says."""
    parser = argparse.ArgumentParser(description="compile whole models for 32 TPU chips")
    parser.add_argument("--model", nargs="+", default=shape_names(), help="known shapes")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    args = parser.parse_args(argv)
    # The TPU is described only: nothing may look for one.
    jax.config.update("jax_platforms", "cpu")
    for model in args.model:
        # The fewest chips that the compiler knows stand for instances that share nothing.
        for mesh, pooling in (
            (chips(model, "v5p:2x2x1", 4), False),
            (chips(model, "v5p:2x4x4", 32), True),
        ):
            engine = EngineConfig(
                pooling=pooling,
                kv_cache_dtype=args.kv_cache_dtype,
                max_num_seqs=args.max_num_seqs,
                max_num_batched_tokens=args.max_num_batched_tokens,
            )
            timing = timed(functools.partial(proof_of, model, mesh, engine))
            print(json.dumps(line(model, mesh, engine, timing.result, timing.seconds)), flush=True)
    return 0


def chips(model: str, topology: str, number: int) -> MeshConfig:
    """Describe a mesh of so many chips, with as many instances as they make."""
    tensor = TENSOR.get(model, 1)
    return MeshConfig(
        name=topology,
        platform="tpu",
        instance=number // tensor,
        tensor=tensor,
        memory_gib=V5P_GIB,
        topology=topology,
    )


def proof_of(model: str, mesh: MeshConfig, engine: EngineConfig) -> Proof:
    """Compile one model for one mesh."""
    config = read_model(model)
    with Progress(is_shown=True) as progress:
        return prove(
            config,
            mesh,
            engine,
            dtype="auto",
            capacity=lambda temporaries: fit(config, mesh, engine, temporaries=temporaries),
            progress=progress.programs,
        )


def line(
    model: str, mesh: MeshConfig, engine: EngineConfig, proof: Proof, seconds: float
) -> dict[str, int | float | str]:
    """Put together what was found: bytes are of one chip."""
    found, largest = proof.fit, proof.steps[-1]
    return {
        "model": model,
        "mesh": f"{mesh.topology}, {mesh.instance} instances of {mesh.tensor}",
        "pooling": engine.pooling,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "longest_context": found.mesh_tokens if engine.pooling else found.instance_tokens,
        "step": largest.shape,
        "bytes_in_all": largest.memory.total,
        "bytes_temporary": largest.memory.temporaries,
        "bytes_of_chip": int(V5P_GIB * 2**30),
        "seconds": round(seconds, 1),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
