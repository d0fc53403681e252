"""Training chunks and evaluation rows as batches, against tables worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DataRefused, TrainingError
from infra.lake import Lake
from infra.tables import SEQUENCES
from tests.train.tables import AS_OF, TS, write_sequences
from tests.train.test_ragged import ragged
from train.sequence_data import SequenceData

MARKS = ([True, True], [False, True])


def events(batch) -> list[tuple[list[int], list[int]]]:
    """(items, targets) of each sequence in a packed batch, sorted; places have to count from 0."""
    found = []
    for items, targets, places in zip(
        batch.items_BL.tolist(), batch.targets_BL.tolist(), batch.place_BL.tolist(), strict=True
    ):
        for item, target, place in zip(items, targets, places, strict=True):
            if item and place == 0:
                found.append(([], []))
            if item:
                assert place == len(found[-1][0])
                found[-1][0].append(item)
                found[-1][1].append(target)
    return sorted(found)


class TestSequenceData:
    def test_training_targets_are_the_next_items(self, tmp_path):
        lake = write_sequences(tmp_path, [[2, 3, 4, 5], [6, 7], [3, 1, 4]], [])
        batch = SequenceData.from_lake(lake, 0, AS_OF, "train", packed=False).batch(np.array([0, 1, 2]))
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
        data = SequenceData.from_lake(lake, 0, AS_OF, "train", packed=False)
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

    def test_packed_rows_by_hand(self, tmp_path):
        lake = write_sequences(tmp_path, [[2, 3, 4, 5], [6, 7], [3, 1, 4]], [])
        batch = SequenceData.from_lake(lake, 0, AS_OF, "train").batch(np.array([0, 1, 2]))
        assert batch.items_BL.tolist() == [[2, 3, 4], [3, 1, 6]]
        assert batch.targets_BL.tolist() == [[3, 4, 5], [0, 4, 7]]
        assert batch.place_BL.tolist() == [[0, 1, 2], [0, 1, 0]]

    @given(
        st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=9), min_size=1, max_size=30),
        st.sampled_from([None, 1, 3, 20]),
        st.data(),
    )
    def test_packed_batches_hold_what_left_padded_ones_do(self, rows, longest, data):
        """Hypothesis: the same events, targets and places, whatever the lengths."""
        column = ragged(*rows)
        chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=40)))
        packed, padded = (SequenceData(column, column, max_length=longest, packed=p) for p in (True, False))
        assert events(packed.batch(chosen)) == events(padded.batch(chosen))

    def test_memory_maps_hold_what_training_needs(self, tmp_path):
        marks = {0: [True, False, True, True]}
        lake = write_sequences(tmp_path, [[2, 3, 4, 5], [6, 7]], [([2, 3], 4, True), ([5], 1, True)], marks)
        for split in ("train", "valid"):
            data = SequenceData.from_lake(lake, 0, AS_OF, split, 2)
            again = SequenceData.from_arrays(data.arrays(), 2)
            rows = np.array([1, 0])
            for one, two in zip(vars(data.batch(rows)).values(), vars(again.batch(rows)).values(), strict=True):
                assert one.tolist() == two.tolist()
            assert data.histories(rows).tolist() == again.histories(rows).tolist()

    def test_a_share_without_a_target_is_one_place_of_padding(self):
        batch = SequenceData(ragged([2, 3]), ragged([2, 3])).batch(np.zeros(0, np.int64))
        assert [t.tolist() for t in vars(batch).values()] == [[[0]], [[0]], [[0]]]
