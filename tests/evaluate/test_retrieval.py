"""Ranks, metrics and lists of sequence models, against figures worked out by hand and a naive recount."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluate import retrieval
from evaluate.metrics.diversity import ItemCategories
from evaluate.retrieval import evaluate_retrieval, item_categories
from evaluate.settings import RetrievalSettings
from infra.commit import commit, write_file
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import SEQUENCES, Kind, Table, side_features
from train import artifact
from train.configs import ADRecConfig, DNNConfig, PopularityConfig, SASRecConfig
from train.protocol import FieldSpec, SequenceBatch

AS_OF = "2024-03-02"
TS = datetime(2024, 3, 1, tzinfo=UTC)
UNTIMED = {"users_per_second"}

Row = tuple[list[int], int, bool]
"""History, target, whether the target's item is known."""


def write(lake: Lake, table: Table, partition: dict[str, str], rows: list[dict[str, Any]]) -> int:
    data = pa.Table.from_pylist(rows, schema=table.file_schema)
    file = write_file(lake.path(table.name), table, partition, [data])
    column = table.partition_by[0]
    return commit(lake, table, [file], replace={column: [partition[column]]}, metadata={})


def targets(
    root: Path, rows: list[Row], split: str = "test", beside: list[dict[str, Any]] | None = None
) -> tuple[Lake, int]:
    """A `sequences` table with users u00, u01, ..., written last one first; `beside` are training chunks."""
    lake = Lake(root)
    listed = [
        {"user": f"u{i:02d}", "items": items, "target": target, "target_ts": TS, "target_known": known}
        for i, (items, target, known) in enumerate(rows)
    ]
    parts = {split: listed[::-1], **({"train": beside} if beside else {})}
    files = []
    for part, of_part in parts.items():
        data = pa.Table.from_pylist(of_part, schema=SEQUENCES.file_schema)
        files.append(write_file(lake.path(SEQUENCES.name), SEQUENCES, {"as_of": AS_OF, "split": part}, [data]))
    return lake, commit(lake, SEQUENCES, files, replace={"as_of": [AS_OF]}, metadata={})


def save(path: Path, config: Any, catalogue: int, counts: list[float] | None = None, std: float = 0.5) -> Path:
    torch.manual_seed(3)
    model: Any = artifact.build(config, catalogue, ())
    if counts is not None:
        model.counts_V1[:, 0] = torch.tensor(counts)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    artifact.save(path, model, config, lineage={}, vocabulary_hash="", metrics={}, catalogue=catalogue)
    return path


#: Of padding, unknown and items 2 to 6: the order is 2, 3, 4 (a tie, the lower index first), 5, 6.
COUNTS = [99.0, 98.0, 10.0, 8.0, 8.0, 3.0, 1.0]
ROWS: list[Row] = [
    ([2], 3, True),  # all: rank 2; without 2: rank 1, list 3 4
    ([2, 3], 4, True),  # all: 3, behind its tie; without 2 and 3: 1, list 4 5
    ([2, 5], 5, True),  # all: 4; removed: left out, its target is in the history; list 3 4
    ([], 6, True),  # 5 either way; list 2 3
    ([2], 6, False),  # unseen in training: a miss; list 3 4
    ([1, 1], 1, False),  # unknown: a miss, and not the unknown item of the history; list 2 3
]
SETTINGS = RetrievalSettings(ks=(1, 3), list_length=2, batch_size=4)


@pytest.fixture
def by_hand(tmp_path):
    lake, version = targets(tmp_path, ROWS)
    return save(tmp_path / "m", PopularityConfig(), 7, COUNTS), lake, version


class TestByHand:
    def test_all_items(self, by_hand):
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7)
        assert found.users["all_items"].tolist() == ["u00", "u01", "u02", "u03", "u04", "u05"]
        assert found.per_user["all_items/mrr"].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 5, 0, 0])
        assert found.per_user["all_items/hr_at_1"].tolist() == [0] * 6
        assert found.per_user["all_items/hr_at_3"].tolist() == [1, 1, 0, 0, 0, 0]
        assert found.per_user["all_items/ndcg_at_3"].tolist() == pytest.approx([1 / math.log2(3), 1 / 2, 0, 0, 0, 0])
        assert found.metrics["all_items/ndcg_at_3"] == pytest.approx((1 / math.log2(3) + 1 / 2) / 6)
        assert found.metrics["all_items/mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 6)

    def test_history_removed(self, by_hand):
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7)
        assert found.users["history_removed"].tolist() == ["u00", "u01", "u03", "u04", "u05"]
        assert found.per_user["history_removed/mrr"].tolist() == pytest.approx([1, 1, 1 / 5, 0, 0])
        assert found.metrics["history_removed/hr_at_1"] == pytest.approx(2 / 5)
        assert found.metrics["history_removed/mrr"] == pytest.approx(2.2 / 5)
        assert found.metrics["targets_in_history"] == 1
        assert found.metrics["targets_unseen_share"] == pytest.approx(2 / 6)
        assert found.metrics["users"] == 6

    def test_lists(self, by_hand):
        categories = ItemCategories.from_lists([[], [], [7], [7, 8], [9], [], [9]])
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7, categories)
        assert found.lists_NK.tolist() == [[3, 4], [4, 5], [3, 4], [2, 3], [3, 4], [2, 3]]
        assert found.metrics["catalogue_coverage"] == pytest.approx(4 / 5)
        # Exposure of 6, 5, 2, 4 and 3: 0 1 2 4 5; sum of (2i - 6) x_i = -2 + 8 + 20, over 5 items x 12 slots.
        assert found.metrics["gini"] == pytest.approx(26 / 60)
        # {7, 8, 9}, {9}, {7, 8, 9}, {7, 8}, {7, 8, 9}, {7, 8}
        assert found.metrics["category_count"] == pytest.approx(14 / 6)
        assert "category_count" not in evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7).metrics

    def test_slices_and_quality(self, by_hand):
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7)
        users, values = found.by_slice("history_removed/mrr")["history: 1 to 4"]
        assert users.tolist() == ["u00", "u01", "u04", "u05"]
        assert values.tolist() == pytest.approx([1, 1, 0, 0])
        assert found.by_slice("all_items/mrr")["history: 0 (cold)"][1].tolist() == pytest.approx([1 / 5])
        assert "target: head" not in found.slices  # no training chunks, so nothing is popular
        assert "head_share" not in found.metrics
        assert {name: value for name, value in found.metrics.items() if name.startswith("quality/")} == {
            f"quality/{name}": 1.0 for name in ("covered", "complete", "distinct", "known", "unseen")
        }

    def test_other_metrics_at_cut_offs(self, by_hand):
        asked = SETTINGS.model_copy(update={"metrics": ("mrr", "precision", "map", "recall")})
        found = evaluate_retrieval(*by_hand, AS_OF, asked, 7)
        assert found.metrics["all_items/mrr_at_3"] == pytest.approx((1 / 2 + 1 / 3) / 6)
        assert found.metrics["all_items/map_at_3"] == found.metrics["all_items/mrr_at_3"]
        assert found.metrics["all_items/recall_at_3"] == pytest.approx(2 / 6)
        assert found.metrics["all_items/precision_at_3"] == pytest.approx(2 / 18)
        assert "all_items/ndcg_at_3" not in found.metrics

    def test_what_two_catalogues_have_in_common(self, by_hand):
        # Items 2, 3 and 4 are in both: of u00 and u01 the target is the best that is left; the others' is not among
        # them, and of u05 it is unknown.
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS, 7, common=5)
        assert found.users["common_catalogue"].tolist() == ["u00", "u01", "u05"]
        assert found.per_user["common_catalogue/mrr"].tolist() == [1, 1, 0]

    def test_lists_longer_than_the_catalogue_end_in_empty_slots(self, by_hand):
        found = evaluate_retrieval(*by_hand, AS_OF, SETTINGS.model_copy(update={"list_length": 7}), 7)
        assert found.lists_NK[1].tolist() == [4, 5, 6, 0, 0, 0, 0]
        assert found.metrics["catalogue_coverage"] == 1

    def test_the_split_asked_for(self, by_hand, tmp_path):
        path, lake, _ = by_hand
        version = write(
            lake, SEQUENCES, {"as_of": AS_OF, "split": "valid"},
            [{"user": "v", "items": [], "target": 2, "target_ts": TS, "target_known": True}],
        )  # fmt: skip
        found = evaluate_retrieval(path, lake, version, AS_OF, SETTINGS, 7, split="valid")
        assert found.users["all_items"].tolist() == ["v"]
        assert found.metrics["all_items/mrr"] == 1

    def test_nobody_left_is_not_zero(self, tmp_path):
        lake, version = targets(tmp_path, [([3], 3, True)])
        path = save(tmp_path / "m", PopularityConfig(), 7, COUNTS)
        found = evaluate_retrieval(path, lake, version, AS_OF, SETTINGS, 7)
        assert math.isnan(found.metrics["history_removed/mrr"])
        assert found.metrics["all_items/mrr"] == 1 / 2
        assert found.per_user["history_removed/mrr"].shape == found.users["history_removed"].shape == (0,)


class Interests(torch.nn.Module):
    """Two vectors per user with whole numbers in them: every score is exact, and ties are frequent."""

    def __init__(self, table_VD: np.ndarray) -> None:
        super().__init__()
        self.table_VD = torch.from_numpy(table_VD).float()

    def item_table(self) -> torch.Tensor:
        return self.table_VD

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> torch.Tensor:
        seen_BLD = self.table_VD[batch.items_BL] * (batch.items_BL > 0)[..., None]
        return torch.stack([seen_BLD[:, -1], seen_BLD.sum(dim=1)], dim=1)


class Scores(Interests):
    """The same answers without an item table: the vectors are the scores."""

    def item_table(self) -> None:
        return

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> torch.Tensor:
        return super().user_vectors(batch, steps, generator) @ self.table_VD.T


def naive_rank(scores: dict[int, int], target: int) -> int | None:
    """Place of the target among the candidates, or None."""
    order = sorted(scores, key=lambda i: (-scores[i], i))
    return order.index(target) + 1 if target in order else None


HISTORIES = st.lists(
    st.tuples(st.lists(st.integers(1, 11), max_size=5), st.integers(1, 11), st.booleans()), min_size=1, max_size=7
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=HISTORIES,
    seed=st.integers(0, 2**16),
    own=st.integers(4, 14),
    today=st.integers(4, 14),
    size=st.integers(1, 8),
    kind=st.sampled_from([Interests, Scores]),
)
def test_against_a_naive_recount(tmp_path_factory, monkeypatch, rows, seed, own, today, size, kind):
    """A model of `own` rows, sight of 3 events, on today's catalogue of `today` rows."""
    rows = [([min(i, today - 1) for i in h], min(t, today - 1), known) for h, t, known in rows]
    lake, version = targets(tmp_path_factory.mktemp("lake"), rows)
    table = np.random.default_rng(seed).integers(-2, 3, (own, 2))
    config = SimpleNamespace(max_length=3)
    loaded = SimpleNamespace(kind="sequence", config=config, model=kind(table), catalogue=own)
    monkeypatch.setattr(retrieval, "load", lambda path: loaded)
    asked = RetrievalSettings(ks=(2,), list_length=3, batch_size=size)
    found = evaluate_retrieval(Path("m"), lake, version, AS_OF, asked, today)

    expected: dict[str, list[float]] = {"all_items": [], "history_removed": []}
    lists = []
    for history, target, known in rows:
        sight = [i if i < own else 1 for i in history[-3:]]
        latest = table[sight[-1]] if sight else np.zeros(2, int)
        total = sum((table[i] for i in sight), np.zeros(2, int))
        scores = {i: max(int(table[i] @ latest), int(table[i] @ total)) for i in range(2, min(own, today))}
        left = {i: s for i, s in scores.items() if i not in history or i == target}
        for name, candidates in (("all_items", scores), ("history_removed", left)):
            rank = naive_rank(candidates, target) if known else None
            if name == "all_items" or target not in history or target < 2:
                expected[name].append(1 / rank if rank else 0)
        best = sorted((i for i in scores if i not in history), key=lambda i: (-scores[i], i))[:3]
        lists.append(best + [0] * (3 - len(best)))
    for name, values in expected.items():
        assert found.per_user[f"{name}/mrr"].tolist() == pytest.approx(values)
        assert found.per_user[f"{name}/hr_at_2"].tolist() == [float(v >= 0.5) for v in values]
    assert found.lists_NK.tolist() == lists
    shown = Counter(i for row in lists for i in row if i)
    assert found.metrics["catalogue_coverage"] == pytest.approx(len(shown) / (today - 2))


SASREC = SASRecConfig(width=4, blocks=1, heads=1, max_length=3)
ADREC = ADRecConfig(width=4, blocks=1, denoiser_blocks=1, heads=1, max_length=3, steps=3, noise_scale=1.0)


def random_rows(count: int, catalogue: int) -> list[Row]:
    random = np.random.default_rng(5)
    draw = lambda n: random.integers(2, catalogue, n).tolist()  # noqa: E731
    return [(draw(random.integers(0, 7)), draw(1)[0], True) for _ in range(count)]


class TestModels:
    def measured(self, path: Path, lake: Lake, version: int, catalogue: int, **changes: Any) -> dict[str, Any]:
        """Everything that may not depend on the clock."""
        asked = RetrievalSettings(**{"ks": (1, 5), "list_length": 4, **changes})
        found = evaluate_retrieval(path, lake, version, AS_OF, asked, catalogue)
        vectors = {name: values.tolist() for name, values in found.per_user.items()}
        metrics = {name: value for name, value in found.metrics.items() if name not in UNTIMED}
        return {**vectors, "metrics": metrics, "lists": found.lists_NK.tolist()}

    @pytest.mark.parametrize("config", [SASREC, PopularityConfig()])
    def test_the_batch_size_decides_nothing_without_noise(self, tmp_path, config):
        lake, version = targets(tmp_path, random_rows(17, 30))
        counts = (
            [float(c) for c in np.random.default_rng(1).integers(0, 9, 30)] if config.model == "popularity" else None
        )
        path = save(tmp_path / "m", config, 30, counts)
        whole = self.measured(path, lake, version, 30)
        for size in (1, 5):
            assert self.measured(path, lake, version, 30, batch_size=size) == whole
        assert self.measured(path, lake, version, 30, draws=3, stop_after=1) == whole
        assert 0 < whole["metrics"]["all_items/mrr"] < 1

    def test_noise_is_the_seeds(self, tmp_path):
        lake, version = targets(tmp_path, random_rows(17, 30))
        path = save(tmp_path / "m", ADREC, 30)
        first = self.measured(path, lake, version, 30)
        assert self.measured(path, lake, version, 30) == first
        assert self.measured(path, lake, version, 30, seed=1) != first
        assert self.measured(path, lake, version, 30, steps=1) != first
        assert self.measured(path, lake, version, 30, draws=3) != first
        assert self.measured(path, lake, version, 30, stop_after=1) != first
        assert self.measured(path, lake, version, 30, stop_after=3) == first
        # As documented: the draws follow the batches.
        assert self.measured(path, lake, version, 30, batch_size=5) != first
        assert self.measured(path, lake, version, 30, batch_size=5) == self.measured(
            path, lake, version, 30, batch_size=5
        )

    def test_an_older_model_takes_new_items_for_unknown(self, tmp_path):
        path = save(tmp_path / "m", SASREC, 6)
        rows: list[Row] = [([2, 8], 4, True), ([2, 1], 4, True), ([3], 8, True)]
        lake, version = targets(tmp_path, rows)
        found = evaluate_retrieval(path, lake, version, AS_OF, RetrievalSettings(list_length=7), 9)
        first, second, third = found.per_user["all_items/mrr"]
        assert first == second > 0
        assert third == 0
        assert found.lists_NK[0].tolist() == found.lists_NK[1].tolist()
        assert set(found.lists_NK[0]) == {0, 3, 4, 5}  # 2 is in the history, 6 to 8 are unknown to the model
        assert found.metrics["catalogue_coverage"] == pytest.approx(4 / 7)

    def test_a_newer_model_retrieves_only_what_there_was(self, tmp_path):
        lake, version = targets(tmp_path, [([2], 4, True)])
        path = save(tmp_path / "m", PopularityConfig(), 8, [0, 0, 1, 2, 3, 4, 5, 6])
        categories = ItemCategories.from_lists([[], [], [1], [1], [1]])
        found = evaluate_retrieval(path, lake, version, AS_OF, SETTINGS, 5, categories)
        assert found.lists_NK.tolist() == [[4, 3]]
        assert found.per_user["all_items/mrr"].tolist() == [1]

    def test_a_ranking_model_is_refused(self, tmp_path):
        lake, version = targets(tmp_path, ROWS)
        fields = (FieldSpec("x", Kind.NUMERIC),)
        config = DNNConfig(embedding_width=1, hidden=(1,))
        model = artifact.build(config, None, fields)
        artifact.save(tmp_path / "m", model, config, lineage={}, vocabulary_hash="", metrics={}, fields=fields)
        with pytest.raises(UsageError, match=r"/m: holds a ranking model; retrieval needs a sequence model"):
            evaluate_retrieval(tmp_path / "m", lake, version, AS_OF, SETTINGS, 7)

    def test_the_training_split_has_no_targets(self, tmp_path):
        lake = Lake(tmp_path)
        version = write(lake, SEQUENCES, {"as_of": AS_OF, "split": "train"}, [{"user": "u", "items": [2, 3]}])
        path = save(tmp_path / "m", PopularityConfig(), 7, COUNTS)
        with pytest.raises(UsageError, match="split 'train': has no targets"):
            evaluate_retrieval(path, lake, version, AS_OF, SETTINGS, 7, split="train")


class TestItemCategories:
    @pytest.fixture
    def lake(self, tmp_path):
        lake = Lake(tmp_path)
        table = side_features("item", [("genre", Kind.CATEGORICAL), ("tags", Kind.MULTI)])
        rows = [
            {"key": "a", "f_genre": "Drama", "f_tags": ["new", "red", "new"]},
            {"key": "b", "f_genre": None, "f_tags": None},
            {"key": "c", "f_genre": "Comedy", "f_tags": []},
            {"key": "d", "f_genre": "Drama", "f_tags": ["red"]},
            {"key": "nobody's", "f_genre": "Horror", "f_tags": ["old"]},
        ]
        write(lake, table, {"arrival": "2024-03-01"}, rows)
        write(lake, table, {"arrival": "2024-03-02"}, [{"key": "a", "f_genre": "Horror", "f_tags": None}])
        return lake

    def by_item(self, found: ItemCategories) -> list[list[int]]:
        return [found.values[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]

    def test_categorical(self, lake):
        found = self.by_item(item_categories(lake, 2, "2024-03-01", "genre", ["d", "a", "b", "without a row", "c"]))
        assert found[:2] == [[], []]
        assert found[2] == found[3] != found[6]
        assert [len(row) for row in found[2:]] == [1, 1, 0, 0, 1]

    def test_multi_valued(self, lake):
        _, _, d, a, b, c = self.by_item(item_categories(lake, 2, "2024-03-01", "tags", ["d", "a", "b", "c"]))
        assert len(set(a)) == 2
        assert set(d) < set(a)
        assert (b, c) == ([], [])

    def test_the_snapshot_asked_for(self, lake):
        assert [len(r) for r in self.by_item(item_categories(lake, 2, "2024-03-02", "genre", ["a", "d"]))] == [
            0,
            0,
            1,
            0,
        ]

    def test_a_field_that_is_not_there(self, lake):
        with pytest.raises(UsageError, match=r"category_field: .* no field 'colour'; it has genre, tags"):
            item_categories(lake, 2, "2024-03-01", "colour", ["a"])


WRONG = [{"ks": ()}, {"ks": (5, 0)}, *({name: 0} for name in ("list_length", "batch_size", "draws", "stop_after"))]


@pytest.mark.parametrize("wrong", [*WRONG, {"steps": -1}, {"seed": -1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        RetrievalSettings(**wrong)


def test_popularity_of_lists_and_targets(tmp_path):
    chunk = {"user": "u", "items": [2, 2, 2, 3, 3, 5]}
    lake, version = targets(tmp_path, [([2], 3, True), ([2], 6, False), ([2, 3], 5, True)], beside=[chunk])
    found = evaluate_retrieval(save(tmp_path / "m", PopularityConfig(), 7, COUNTS), lake, version, AS_OF, SETTINGS, 7)
    # 3 + 2 of 6 events are 80 %: the head are 2 and 3. Lists: 3 4, 3 4, 4 5.
    assert found.metrics["head_share"] == pytest.approx(2 / 6)
    bits = [-math.log2(2 / 6), math.log2(6), math.log2(6)]
    assert found.per_user["lists/novelty"].tolist() == pytest.approx(
        [(bits[0] + bits[1]) / 2, (bits[0] + bits[1]) / 2, (bits[1] + bits[2]) / 2]
    )
    assert {name: mask.tolist() for name, mask in found.slices.items() if name.startswith("target")} == {
        "target: head": [True, False, False],
        "target: tail": [False, False, True],
        "target: cold": [False, True, False],
    }
    assert found.per_user["history_removed/serendipity_at_2"].tolist() == [0, 0, 1]  # u02: rank 2, and 5 is not 2 or 3


def test_several_noise_seeds_are_averaged(tmp_path):
    lake, version = targets(tmp_path, random_rows(17, 30))
    path = save(tmp_path / "m", ADREC, 30)

    def measured(**changes: Any) -> Any:
        return evaluate_retrieval(path, lake, version, AS_OF, SETTINGS.model_copy(update=changes), 30)

    several, alone = measured(noise_seeds=3, seed=5), [measured(seed=seed) for seed in (5, 6, 7)]
    for metric in ("all_items/mrr", "history_removed/ndcg_at_3"):
        means = [one.metrics[metric] for one in alone]
        assert several.metrics[metric] == pytest.approx(np.mean(means))
        assert several.metrics[f"{metric}/noise_deviation"] == pytest.approx(np.std(means, ddof=1))
        assert several.per_user[metric].tolist() == pytest.approx(np.mean([one.per_user[metric] for one in alone], 0))
    assert several.lists_NK.tolist() == alone[0].lists_NK.tolist()
    assert len({tuple(one.per_user["all_items/mrr"]) for one in alone}) > 1, "the noise has to matter here"
    quiet = save(tmp_path / "quiet", PopularityConfig(), 30, [1.0] * 30)
    counted = evaluate_retrieval(quiet, lake, version, AS_OF, SETTINGS.model_copy(update={"noise_seeds": 3}), 30)
    assert not [name for name in counted.metrics if "noise" in name]
