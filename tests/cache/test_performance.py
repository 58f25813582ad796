"""A step's seconds follow the measured tables, and a profile file is read back or refused."""

import json
from pathlib import Path

import pytest

from distkv_jax.cache.performance import Profile, Rate, StepModel
from distkv_jax.errors import ConfigError


def make_profile(**changes: object) -> Profile:
    """Batches of 1 and 9 take 1 s and 3 s; contexts of 100 and 300 take 1 s and 2 s."""
    fields = {
        "tokens_per_s": (Rate(1, 1.0), Rate(9, 3.0)),
        "kv_tokens_per_s": (Rate(100, 100.0), Rate(300, 150.0)),
        "spanning_step_s": 0.5,
        "spanning_tile_s": 0.25,
        "copy_block_s": 0.1,
    }
    return Profile(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "seconds"), [(0, 1.0), (1, 1.0), (5, 2.0), (9, 3.0), (12, 4.0)])
def test_base_is_linear_between_measured_batches_and_no_faster_below(batch: int, seconds: float):
    assert StepModel(make_profile()).base_s(batch) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("context", "seconds"), [(0, 0.0), (50, 0.5), (100, 1.0), (200, 1.5), (300, 2.0), (450, 3.0)]
)
def test_attention_starts_at_nothing_and_goes_on_at_the_last_rate(context: int, seconds: float):
    assert StepModel(make_profile()).attention_s(context) == pytest.approx(seconds)


def test_communication_costs_nothing_where_nothing_travels():
    model = StepModel(make_profile())

    assert [model.communication_s(count) for count in (0, 1, 4)] == [0.0, 0.75, 1.5]


def test_linear_profile_is_a_line():
    model = StepModel(Profile.linear(step_s=1.0, token_s=0.5, kv_token_s=0.25))

    assert [model.base_s(batch) for batch in (1, 2, 7)] == pytest.approx([1.5, 2.0, 4.5])
    assert [model.attention_s(context) for context in (1, 8)] == pytest.approx([0.25, 2.0])


def test_profile_is_read_back_as_it_was_saved(tmp_path: Path):
    path = tmp_path / "profile.json"
    make_profile().save(path)

    assert Profile.load(path) == make_profile()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_per_s": ()}, r"tokens_per_s has no \[size, tokens per second\]"),
        (
            {"kv_tokens_per_s": (Rate(0, 1.0),)},
            r"kv_tokens_per_s has \[0, 1.0\], expected numbers above 0",
        ),
        (
            {"kv_tokens_per_s": (Rate(1, float("nan")),)},
            r"kv_tokens_per_s has \[1, nan\], expected numbers above 0",
        ),
        (
            {"tokens_per_s": (Rate(2, 1.0), Rate(2, 1.0))},
            "tokens_per_s has size 2 after 2, must increase",
        ),
        (
            {"tokens_per_s": (Rate(2, 1.0), Rate(4, 3.0))},
            "tokens_per_s takes less time for 4 than for 2",
        ),
        ({"copy_block_s": -1.0}, "copy_block_s=-1.0 must be a number of at least 0"),
        ({"spanning_step_s": float("inf")}, "spanning_step_s=inf must be a number of at least 0"),
    ],
)
def test_impossible_profiles_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        make_profile(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_per_s": 3}, "tokens_per_s=3 must be a list of"),
        ({"tokens_per_s": [[1, True]]}, r"tokens_per_s has \[1, True\], expected \[size,"),
        ({"tokens_per_s": [[1.5, 2.0]]}, r"tokens_per_s has \[1.5, 2.0\], expected \[size,"),
        ({"copy_block_s": "1"}, "copy_block_s='1' must be a number of at least 0"),
        ({"copy_block_s": None}, "copy_block_s=None must be a number of at least 0"),
        ({"extra": 1}, r"has \['copy_block_s', 'extra', .*\], expected \['copy_block_s', 'kv_"),
    ],
)
def test_wrong_file_is_refused_by_name(tmp_path: Path, change: dict, message: str):
    path = tmp_path / "profile.json"
    make_profile().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(ConfigError, match=message) as refused:
        Profile.load(path)
    assert str(path) in str(refused.value)


def test_what_is_no_json_is_refused(tmp_path: Path):
    path = tmp_path / "profile.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        Profile.load(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="has list, expected"):
        Profile.load(path)
