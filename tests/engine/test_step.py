"""A step exchanges between instances what DESIGN.md says, and nothing else: read from its HLO."""

from collections import Counter

import pytest

from distkv_jax.engine.shapes import PlanShape
from tests.engine.builders import CONFIG, make_runner
from tests.hlo import Collective, collectives


def between_instances(
    instance: int, tensor: int, *, prefill_tiles: int, is_spanning: bool
) -> Counter[str]:
    """Compile a step, and count its collectives over `instance` by kind."""
    shape = PlanShape(
        decode_rows=4,
        prefill_tiles=prefill_tiles,
        spanning=is_spanning,
        tile=8,
        entries=32,
        instances=instance,
    )
    found = collectives(make_runner(instance, tensor).program(shape).as_text())
    return Counter(one.kind for one in found if one.crosses(tensor))


parametrize_mesh = pytest.mark.parametrize(
    ("instance", "tensor"), [(8, 1), (2, 2)], ids=["8x1", "2x2"]
)
parametrize_tiles = pytest.mark.parametrize("prefill_tiles", [0, 2])


@parametrize_mesh
@parametrize_tiles
def test_without_spanning_tiles_only_the_sampled_ids_travel(
    instance: int, tensor: int, prefill_tiles: int
) -> None:
    found = between_instances(instance, tensor, prefill_tiles=prefill_tiles, is_spanning=False)

    assert found == {"all-gather": 1}


@parametrize_mesh
@parametrize_tiles
def test_with_spanning_tiles_each_layer_gathers_once_and_returns_once(
    instance: int, tensor: int, prefill_tiles: int
) -> None:
    found = between_instances(instance, tensor, prefill_tiles=prefill_tiles, is_spanning=True)

    assert found == {"all-gather": CONFIG.num_layers + 1, "all-to-all": CONFIG.num_layers}


def test_the_reader_of_hlo_sees_what_crosses() -> None:
    hlo = """
    %a = f32[4]{0} all-reduce(%x), channel_id=3, replica_groups=[2,2]<=[4], to_apply=%add
    %b = (f32[1], f32[1]) all-to-all(%x, %y), channel_id=1, replica_groups={{0,2},{1,3}}
    %c = f32[4]{0} all-gather-start(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
    %d = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
    %e = f32[4]{0} add(%all-reduce.1, %y)
    """

    found = collectives(hlo)

    assert found == [
        Collective("all-reduce", ((0, 1), (2, 3))),
        Collective("all-to-all", ((0, 2), (1, 3))),
        Collective("all-gather", ((0, 2), (1, 3))),
        Collective("collective-permute", ((0, 1), (1, 0))),
    ]
    assert [one.crosses(2) for one in found] == [False, True, True, False]
    with pytest.raises(ValueError, match="no device groups in: %x = f32 all-reduce"):
        collectives("%x = f32 all-reduce(%y)")
