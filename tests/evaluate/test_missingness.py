"""What patterns remove: how much, from whom, and always more."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluate import missingness
from evaluate.missingness import activity, area, removed, scenarios
from evaluate.settings import MissingnessSettings
from infra.tables import Kind
from train.protocol import FieldSpec
from train.ranking_data import RankingData

PATTERNS = ("at_random", "by_activity", "by_day")
FIELDS = 5


def sampled(users: list[int], days: list[int], missing: int = 0) -> RankingData:
    """Samples of these users on these days."""
    count = len(users)
    specs = tuple(FieldSpec(f"f{i}", Kind.CATEGORICAL, 3) for i in range(FIELDS))
    return RankingData(
        fields=specs, categorical_NF=np.full((count, FIELDS), 2, np.int32), numeric_NG=np.zeros((count, 0), np.float32),
        multi=(), missing_N=np.full(count, missing, np.int64), label_N=np.zeros(count, np.float32),
        user_N=np.array([f"u{user}" for user in users], object), observed_N=np.ones(count, bool),
        day_N=np.array(days, np.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def many() -> RankingData:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), rng.geometric(0.02, 300))
    return sampled(users.tolist(), rng.integers(0, 400, len(users)).tolist())


def cells(bits: np.ndarray) -> np.ndarray:
    return (bits[:, None] >> np.arange(FIELDS) & 1).astype(bool)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_the_share_of_cells(many: RankingData, pattern: str, rate: float) -> None:
    found = cells(removed(pattern, rate, many, 0))
    assert found.mean() == pytest.approx(rate, abs=0.02)
    assert found.mean(axis=0).tolist() == pytest.approx([rate] * FIELDS, abs=0.08)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_higher_rate_removes_the_same_and_more(many: RankingData, pattern: str) -> None:
    bits = [removed(pattern, rate, many, 3) for rate in (0.05, 0.3, 0.6, 0.95)]
    assert all((less & ~more == 0).all() for less, more in pairwise(bits))
    assert all((less != more).any() for less, more in pairwise(bits))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_seed_one_draw(many: RankingData, pattern: str) -> None:
    first, again, other = (removed(pattern, 0.4, many, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_whoever_has_fewer_samples_misses_more(many: RankingData) -> None:
    found = cells(removed("by_activity", 0.4, many, 0)).mean(axis=1)
    quarter = np.digitize(np.mean(activity(many), axis=0), [0.25, 0.5, 0.75])
    shares = [found[quarter == q].mean() for q in range(4)]
    # The integral of (1 - q)^1.5 over each quarter, times 4.
    by_hand = [4 * ((1 - a) ** 2.5 - (1 - b) ** 2.5) / 2.5 for a, b in pairwise((0, 0.25, 0.5, 0.75, 1))]
    assert shares == pytest.approx(by_hand, abs=0.03)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "users", [[0] * 4000, [*range(4000)], [*range(2000), *np.repeat(np.arange(2000), 1) + 5000] * 2]
)
def test_users_with_as_many_samples_lose_the_rate(users: list[int], rate: float) -> None:
    data = sampled(users, [0] * len(users))
    assert cells(removed("by_activity", rate, data, 0)).mean() == pytest.approx(rate, abs=0.01)


def test_two_kinds_of_users() -> None:
    """A third of the samples is of users with one, the rest of users with two: (1 - q)^1 from 0 to 1/3, then to 1."""
    data = sampled([*range(1000), *np.repeat(np.arange(1000, 2000), 2)], [0] * 3000)
    found = cells(removed("by_activity", 0.5, data, 0))
    assert found[:1000].mean() == pytest.approx(5 / 6, abs=0.02)
    assert found[1000:].mean() == pytest.approx(1 / 3, abs=0.02)


def test_too_few_days_to_lose_some(many: RankingData) -> None:
    settings = MissingnessSettings(rates=(0.5,), fields=False)
    week = sampled([0] * 7, [*range(7)])
    assert "by_day_50" in dict(scenarios(week, settings))
    assert [*dict(scenarios(sampled([0] * 6, [*range(6)]), settings))] == ["at_random_50", "by_activity_50"]


def test_a_field_is_gone_for_a_whole_day(many: RankingData) -> None:
    found = cells(removed("by_day", 0.5, many, 0))
    for day in np.unique(many.day_N)[:50]:
        of_day = found[many.day_N == day]
        assert (of_day == of_day[0]).all()
    assert 0.1 < np.corrcoef(found[:, 0], found[:, 1])[0, 1] + 0.5 < 0.9, "fields fail each on their own"


def test_activity_by_hand() -> None:
    """Six samples: of a user with one, of one with two, of one with three."""
    fewer, to = activity(sampled([0, 1, 1, 2, 2, 2], [0] * 6))
    assert fewer.tolist() == pytest.approx([x / 6 for x in (0, 1, 1, 3, 3, 3)])
    assert to.tolist() == pytest.approx([x / 6 for x in (1, 3, 3, 6, 6, 6)])


def test_rows_are_drawn_some_at_a_time_and_the_same(many: RankingData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = removed("at_random", 0.4, many, 0)
    monkeypatch.setattr(missingness, "_ROWS_AT_ONCE", 7)
    assert (removed("at_random", 0.4, many, 0) == whole).all()


def test_the_scenarios_keep_what_the_log_misses() -> None:
    data = sampled([0, 0, 1] * 3, [*range(9)], missing=0b00110)
    settings = MissingnessSettings(rates=(0.2, 0.5), patterns=("by_day", "at_random"))
    found = dict(scenarios(data, settings))
    assert [*found] == [
        "by_day_20", "by_day_50", "at_random_20", "at_random_50", *(f"without_f{i}" for i in range(FIELDS)),
    ]  # fmt: skip
    assert all((bits & 0b00110 == 0b00110).all() for bits in found.values())
    assert found["without_f3"].tolist() == [0b01110] * 9
    assert [*dict(scenarios(data, MissingnessSettings(rates=(0.5,), patterns=(), fields=False)))] == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True), st.floats(-1, 1))
def test_the_area_of_a_level_line_is_its_height(rates: list[float], height: float) -> None:
    rates = sorted(rates)
    if rates[-1] - rates[0] > 1e-6:
        assert area(np.array(rates), np.full(len(rates), height)) == pytest.approx(height)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": [0.5, 0.2]}, "in ascending order"),
        ({"rates": [0.2, 0.2]}, "in ascending order"),
        ({"rates": [0.0]}, "greater than 0"),
        ({"rates": [1.0]}, "less than 1"),
        ({"rates": [0.025, 0.5]}, "0.025 is no whole percent"),
        ({"patterns": ["by_day", "by_day"]}, "twice"),
        ({"patterns": ["by_night"]}, "at_random"),
    ],
)
def test_settings_that_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MissingnessSettings.model_validate(settings)
