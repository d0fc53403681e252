"""Rows, masks and positions of training batches, against tables worked out by hand."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DataRefused, TrainingError
from infra.lake import Lake
from infra.tables import FIELDS, SEQUENCES, Kind, samples
from train.loader import Ragged, RankingData, SequenceData, batches, steps_per_epoch

AS_OF = "2024-03-02"
TS = datetime(2024, 3, 1, tzinfo=UTC)
MARKS = ([True, True], [False, True])


def write_sequences(
    root: Path,
    train: list[list[int]],
    valid: list[tuple[list[int], int, bool]],
    is_target: dict[int, list[bool]] | None = None,
) -> Lake:
    """A `sequences` table whose users are numbered in the order given; `is_target` of some of the training rows."""
    marks = is_target or {}
    rows = [
        {"as_of": AS_OF, "split": "train", "user": f"u{i:04d}", "items": items, "is_target": marks.get(i)}
        for i, items in enumerate(train)
    ]
    rows += [
        {
            "as_of": AS_OF, "split": "valid", "user": f"u{i:04d}", "items": items,
            "target": target, "target_ts": TS, "target_known": known,
        }
        for i, (items, target, known) in enumerate(valid)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, SEQUENCES.schema)
    write_deltalake(root / "sequences", table, partition_by=["as_of", "split"], mode="overwrite")
    return Lake(root)


CONTRACT = [("colour", Kind.CATEGORICAL), ("price", Kind.NUMERIC), ("tags", Kind.MULTI), ("shop", Kind.CATEGORICAL)]


def write_samples(root: Path, rows: list[dict], sizes: tuple[int, int, int, int] = (6, 0, 9, 4)) -> Lake:
    """`samples` and `fields` as of AS_OF; a row gives the feature columns, label, missing and maybe split."""
    common = {"as_of": AS_OF, "split": "train", "user": "u", "item": 2, "ts": TS, "label_source": "observed"}
    full = [{**common, "event_id": f"e{i:04d}", **row} for i, row in enumerate(rows)]
    table = samples(CONTRACT)
    write_deltalake(root / "samples", pa.Table.from_pylist(full, table.schema), partition_by=["as_of", "split"])
    specs = [
        {
            "as_of": AS_OF, "position": i, "name": n, "kind": str(k), "size": size,
            "mean": 0.5, "std": 2.0, "missing_rate": 0.1,
        }
        for i, ((n, k), size) in enumerate(zip(CONTRACT, sizes, strict=True))
    ]  # fmt: skip
    shuffled = [specs[i] for i in (2, 0, 3, 1)]
    write_deltalake(root / "fields", pa.Table.from_pylist(shuffled, FIELDS.schema), partition_by=["as_of"])
    return Lake(root)


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_arrow(pa.chunked_array([pa.array(rows, pa.list_(pa.int32()))]))


class TestRagged:
    def test_left_padding_keeps_the_latest(self):
        data = ragged([2, 3, 4], [], [5, 6])
        assert data.left_padded(np.array([0, 1, 2])).tolist() == [[2, 3, 4], [0, 0, 0], [0, 5, 6]]
        assert data.left_padded(np.array([2, 0]), longest=2).tolist() == [[5, 6], [3, 4]]

    def test_an_empty_batch_of_values_still_has_a_column(self):
        assert ragged([], [7]).left_padded(np.array([0])).tolist() == [[0]]

    def test_null_lists_slices_and_chunks(self):
        first = pa.array([[9], [1, 2], None, [3]], pa.list_(pa.int32())).slice(1)
        column = pa.chunked_array([first, pa.array([[4, 5]], pa.list_(pa.int32()))])
        data = Ragged.from_arrow(column)
        assert data.values.tolist() == [1, 2, 3, 4, 5]
        assert data.offsets.tolist() == [0, 2, 2, 3, 5]

    def test_fingerprints_depend_on_order_and_length(self):
        prints = ragged([2, 3], [3, 2], [2, 3], [2], [], [0], [2, 3, 0]).fingerprints()
        assert prints[0] == prints[2]
        assert len({int(p) for p in prints}) == 6

    @given(st.lists(st.lists(st.integers(1, 50), max_size=6), min_size=1, max_size=6), st.integers(1, 7))
    def test_padding_agrees_with_a_row_by_row_one(self, rows, longest):
        width = max(1, max(min(len(r), longest) for r in rows))
        expected = [[0] * (width - len(r[-longest:])) + r[-longest:] for r in rows]
        assert ragged(*rows).left_padded(np.arange(len(rows)), longest).tolist() == expected


class TestSequenceData:
    def test_training_targets_are_the_next_items(self, tmp_path):
        lake = write_sequences(tmp_path, [[2, 3, 4, 5], [6, 7], [3, 1, 4]], [])
        batch = SequenceData.from_lake(lake, 0, AS_OF, "train").batch(np.array([0, 1, 2]))
        assert batch.items_BL.tolist() == [[2, 3, 4], [0, 0, 6], [0, 3, 1]]
        # No target at padding (row 1 would otherwise learn 6 from nothing), and none that is unknown (1).
        assert batch.targets_BL.tolist() == [[3, 4, 5], [0, 0, 7], [0, 0, 4]]

    def test_the_cap_shows_one_event_more_than_the_model_sees(self, tmp_path):
        lake = write_sequences(tmp_path, [[2, 3, 4, 5, 6]], [])
        batch = SequenceData.from_lake(lake, 0, AS_OF, "train", max_length=2).batch(np.array([0]))
        assert (batch.items_BL.tolist(), batch.targets_BL.tolist()) == ([[4, 5]], [[5, 6]])

    def test_chunks_without_a_target_are_left_out(self, tmp_path):
        lake = write_sequences(tmp_path, [[2], [], [3, 1], [2, 9, 1, 1], [4, 5]], [])
        assert len(SequenceData.from_lake(lake, 0, AS_OF, "train")) == 2
        capped = SequenceData.from_lake(lake, 0, AS_OF, "train", max_length=2)
        assert capped.batch(np.arange(len(capped))).items_BL.tolist() == [[4]]

    def test_context_events_are_seen_and_not_predicted(self, tmp_path):
        marks = {0: [True, False, True, True], 1: [True, False], 2: [False, True, False]}
        lake = write_sequences(tmp_path, [[2, 3, 4, 5], [6, 7], [3, 5, 4], [8, 9]], [], marks)
        data = SequenceData.from_lake(lake, 0, AS_OF, "train")
        batch = data.batch(np.arange(len(data)))  # of row 1 nothing is left to predict; row 3 is as ever
        assert batch.items_BL.tolist() == [[2, 3, 4], [0, 3, 5], [0, 0, 8]]
        assert batch.targets_BL.tolist() == [[0, 4, 5], [0, 5, 0], [0, 0, 9]]

    def test_marks_decide_the_order_where_items_tie(self, tmp_path):
        rows = [{"as_of": AS_OF, "split": "train", "user": "u", "items": [2, 3], "is_target": m} for m in MARKS]
        orders = []
        for name, order in (("a", rows), ("b", rows[::-1])):
            write_deltalake(
                tmp_path / name / "sequences",
                pa.Table.from_pylist(order, SEQUENCES.schema),
                partition_by=["as_of", "split"],
            )
            data = SequenceData.from_lake(Lake(tmp_path / name), 0, AS_OF, "train")
            orders.append(data.next_items.left_padded(np.arange(len(data))).tolist())
        assert orders[0] == orders[1]

    def test_of_the_history_what_was_only_seen_is_not_taken(self, tmp_path):
        rows = {"as_of": AS_OF, "split": "valid", "user": "u", "items": [2, 3, 4], "is_target": [True, False, True]}
        table = pa.Table.from_pylist([{**rows, "target": 3, "target_ts": TS, "target_known": True}], SEQUENCES.schema)
        write_deltalake(tmp_path / "sequences", table, partition_by=["as_of", "split"])
        data = SequenceData.from_lake(Lake(tmp_path), 0, AS_OF, "valid")
        assert data.batch(np.arange(1)).items_BL.tolist() == [[2, 3, 4]]
        assert data.histories(np.arange(1)).tolist() == [[2, 0, 4]]

    def test_evaluation(self, tmp_path):
        lake = write_sequences(tmp_path, [], [([2, 3, 4], 5, True), ([], 6, True), ([7], 8, False), ([7], 1, True)])
        data = SequenceData.from_lake(lake, 0, AS_OF, "valid", max_length=2)
        batch = data.batch(np.arange(4))
        assert batch.items_BL.tolist() == [[3, 4], [0, 0], [0, 7], [0, 7]]
        assert batch.targets_BL.shape == (4, 0)
        assert data.histories(np.arange(2)).tolist() == [[2, 3, 4], [0, 0, 0]]
        assert data.target_N.tolist() == [5, 6, 8, 1]
        assert data.known_N.tolist() == [True, True, False, False]

    def test_an_empty_split_is_named(self, tmp_path):
        lake = write_sequences(tmp_path, [[2, 3]], [])
        with pytest.raises(TrainingError, match=r"sequences version 0 .*'valid' as of 2024-03-02"):
            SequenceData.from_lake(lake, 0, AS_OF, "valid")
        with pytest.raises(DataRefused, match=r"sequences.*version 7"):
            SequenceData.from_lake(lake, 7, AS_OF, "train")

    def test_the_version_is_pinned(self, tmp_path):
        write_sequences(tmp_path, [[2, 3]], [])
        lake = write_sequences(tmp_path, [[4, 5, 6], [7, 8]], [])
        assert SequenceData.from_lake(lake, 0, AS_OF, "train").items.values.tolist() == [2, 3]

    def test_how_rows_lie_in_files_decides_nothing(self, tmp_path):
        rows = [{"as_of": AS_OF, "split": "train", "user": f"u{i % 3}", "items": [2 + i, 3, 4 + i]} for i in range(9)]
        for name, parts in {"a": [rows], "b": [rows[5:][::-1], rows[:5][::-1]]}.items():
            for part in parts:
                table = pa.Table.from_pylist(part, SEQUENCES.schema)
                write_deltalake(tmp_path / name / "sequences", table, partition_by=["as_of", "split"], mode="append")
        one = SequenceData.from_lake(Lake(tmp_path / "a"), 0, AS_OF, "train")
        two = SequenceData.from_lake(Lake(tmp_path / "b"), 1, AS_OF, "train")
        assert one.items.values.tolist() == two.items.values.tolist()


class TestRankingData:
    ROWS = (
        {"f_colour": 3, "f_price": 1.5, "f_tags": [2, 8], "f_shop": 2, "label": 1, "missing": 0},
        {"f_colour": None, "f_price": None, "f_tags": None, "f_shop": 3, "label": 0, "missing": 0b0111},
        {"f_colour": 1, "f_price": float("nan"), "f_tags": [], "f_shop": 2, "label": 1, "missing": 0},
        {"f_colour": 2, "f_price": float("inf"), "f_tags": [5], "f_shop": None, "label": 0, "missing": 0b1000},
        {"f_colour": 2, "f_price": 1e300, "f_tags": [5], "f_shop": 1, "label": 0, "missing": 0b0001},
    )

    def test_columns_and_masks(self, tmp_path):
        data = RankingData.from_lake(write_samples(tmp_path, list(self.ROWS)), 0, 0, AS_OF, "train")
        assert [f.name for f in data.fields] == ["colour", "price", "tags", "shop"]
        assert (data.fields[0].size, data.fields[1].std, data.fields[2].kind) == (6, 2.0, Kind.MULTI)
        batch = data.batch(np.arange(5))
        assert batch.categorical_BF.tolist() == [[3, 2], [0, 3], [1, 2], [2, 0], [2, 1]]
        assert batch.numeric_BG.tolist() == [[1.5], [0], [0], [0], [0]]
        assert [m.tolist() for m in batch.multi] == [[[2, 8], [0, 0], [0, 0], [0, 5], [0, 5]]]
        assert batch.missing_BN.int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]]
        assert batch.label_B.tolist() == [1, 0, 1, 0, 0]

    @pytest.mark.parametrize(("sizes", "field"), [((3, 0, 9, 4), "colour"), ((6, 0, 8, 4), "tags")])
    def test_an_index_beyond_its_field_is_refused(self, tmp_path, sizes, field):
        with pytest.raises(TrainingError, match=f"field {field} has index"):
            RankingData.from_lake(write_samples(tmp_path, list(self.ROWS), sizes), 0, 0, AS_OF, "train")

    def test_an_empty_split_is_named(self, tmp_path):
        with pytest.raises(TrainingError, match=r"samples version 0 .*'test'"):
            RankingData.from_lake(write_samples(tmp_path, list(self.ROWS)), 0, 0, AS_OF, "test")


class Rows:
    """A data set whose batch is its row numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows_B):
        return rows_B.tolist()


def epoch_of(count: int, global_batch: int, world: int, seed: int = 0, epoch: int = 0, start: int = 0):
    """Per rank the list of (position, rows)."""
    return [
        [
            (b.position, b.batch)
            for b in batches(
                Rows(count), global_batch=global_batch, rank=r, world=world, seed=seed, epoch=epoch, start_step=start
            )
        ]
        for r in range(world)
    ]


class TestBatches:
    @given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(0, 9))
    def test_every_row_once_in_equal_steps(self, count, global_batch, world, seed, epoch):
        if count < world or global_batch < world:
            return
        ranks = epoch_of(count, global_batch, world, seed, epoch)
        steps = steps_per_epoch(count, global_batch, world)
        assert [[p for p, _ in rank] for rank in ranks] == [list(range(steps))] * world
        shares = [[len(rank[s][1]) for rank in ranks] for s in range(steps)]
        assert all(max(share) - min(share) <= 1 and min(share) >= 1 for share in shares)
        used = [row for rank in ranks for _, rows in rank for row in rows]
        dropped = count % global_batch if count % global_batch < world else 0
        assert len(used) == len(set(used)) == count - dropped
        assert set(used) <= set(range(count))

    @given(st.integers(4, 40), st.integers(4, 9), st.integers(0, 12))
    def test_resuming_gives_the_rest_of_the_same_epoch(self, count, global_batch, start):
        whole = epoch_of(count, global_batch, 2, epoch=3)
        assert epoch_of(count, global_batch, 2, epoch=3, start=start) == [rank[start:] for rank in whole]

    def test_global_batches_do_not_depend_on_the_number_of_workers(self):
        one, three = epoch_of(40, 10, 1), epoch_of(40, 10, 3)
        for step in range(4):
            assert one[0][step][1] == [row for rank in three for row in rank[step][1]]

    def test_epochs_and_seeds_differ(self):
        orders = {str(epoch_of(30, 30, 1, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
        assert len(orders) == 4

    def test_a_split_smaller_than_the_batch_is_one_batch(self):
        assert [len(rank[0][1]) for rank in epoch_of(3, 100, 2)] == [1, 2]

    def test_fewer_rows_than_workers(self):
        with pytest.raises(TrainingError, match=r"1 training rows for 2 workers: lower training\.workers"):
            epoch_of(1, 4, 2)
