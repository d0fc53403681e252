"""Streams of row groups: every row once, in an order that the number of workers does not change."""

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DataRefused, TrainingError
from tests.train.test_loader import Numbers
from train import streaming
from train.loader import Share
from train.streaming import Streamed, units_of


class Named(Numbers):
    """Rows of the table, whose batch is what the column holds."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(np.ones(len(table), int))
        self.names = table["x"].to_numpy()

    def batch(self, rows):
        return self.names[rows].tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """103 rows in three files with row groups of ten, and a column that nobody asks for."""
    folder, made, begin = tmp_path_factory.mktemp("rows"), [], 0
    for rows in (40, 33, 30):
        table = pa.table({"x": pa.array(range(begin, begin + rows)), "y": ["unused"] * rows})
        pq.write_table(table, folder / f"{begin}.parquet", row_group_size=10)
        made.append(str(folder / f"{begin}.parquet"))
        begin += rows
    return made


def epoch_of(
    files, world: int, streams: int, batch: int = 8, window: int = 25, seed: int = 0, epoch: int = 0, start: int = 0
):
    """Per rank the list of (position, rows)."""
    units = units_of(files, ["x"])
    ranks = [Streamed(units, ["x"], Named, Share(batch, seed, r, world), streams, window) for r in range(world)]
    return [
        [(p.position, [row for rows in p.batches for row in rows]) for p in rank.epoch(epoch, start)] for rank in ranks
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(3, 40), st.integers(1, 60), st.integers(0, 3))
def test_every_row_once_in_equal_steps(files, world, streams, batch, window, epoch):
    if streams < world:
        return
    ranks = epoch_of(files, world, streams, batch, window, epoch=epoch)
    assert [[p for p, _ in rank] for rank in ranks] == [list(range(-(-103 // batch)))] * world
    assert sorted(row for rank in ranks for _, rows in rank for row in rows) == list(range(103))


@given(st.integers(0, 13))
@settings(max_examples=14, deadline=None)
def test_resuming_gives_the_rest_of_the_same_epoch(files, start):
    whole = epoch_of(files, 2, 4)
    assert epoch_of(files, 2, 4, start=start) == [rank[start:] for rank in whole]


def test_global_batches_do_not_depend_on_the_number_of_workers(files):
    one, three = epoch_of(files, 1, 4), epoch_of(files, 3, 4)
    for step in range(13):
        assert sorted(one[0][step][1]) == sorted(row for rank in three for row in rank[step][1])


def test_ranks_make_as_many_micro_batches_however_few_their_rows(files):
    units = units_of(files, ["x"])
    ranks = [Streamed(units, ["x"], Named, Share(4, 0, r, 3, 3), 3, 25) for r in range(3)]
    for steps in zip(*(rank.epoch(0) for rank in ranks), strict=True):
        assert [len(step.batches) for step in steps] == [3, 3, 3]
        assert 3 <= sum(len(rows) for step in steps for rows in step.batches) <= 6


def test_the_parts_of_all_ranks_are_the_split(files):
    units = units_of(files, ["x"])
    ranks = [Streamed(units, ["x"], Named, Share(8, 0, r, 3), 3, 25) for r in range(3)]
    assert sorted(row for rank in ranks for part in rank.parts() for row in part.names) == list(range(103))


def test_whether_a_split_is_empty_is_known_from_its_first_row_groups(files):
    def stream(first: int) -> tuple[Streamed, list[int]]:
        made: list[int] = []

        def make(table: pa.Table) -> Named:
            made.append(len(table))
            return Named(table.filter(pa.compute.greater_equal(table["x"], first)))

        return Streamed(units_of(files, ["x"]), ["x"], make, Share(8, 0, 1, 2), 2, 25), made

    for first, empty, groups in ((0, False, 1), (20, False, 3), (103, True, 11)):
        rows, made = stream(first)
        assert rows.is_empty() == empty
        assert len(made) == groups


def test_epochs_seeds_and_windows_are_shuffled(files):
    orders = [str(epoch_of(files, 1, 2, seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4
    rows = [row for _, batch in epoch_of(files, 1, 1, window=103)[0] for row in batch]
    assert np.corrcoef(rows, range(103))[0, 1] < 0.3


def test_every_row_group_is_read_once_by_one_rank_and_none_before_the_start(files, monkeypatch):
    read = []

    class Counting(pq.ParquetFile):
        def read_row_groups(self, groups, columns):
            read.extend((self.path, g) for g in groups)
            assert columns == ["x"]
            return super().read_row_groups(groups, columns)

        def __init__(self, path):
            self.path = path
            super().__init__(path)

    monkeypatch.setattr(streaming.pq, "ParquetFile", Counting)
    epoch_of(files, 2, 4, window=1)
    assert sorted(read) == sorted((u.path, u.group) for u in units_of(files, ["x"]))
    read.clear()
    epoch_of(files, 1, 1, window=1, start=12)
    assert 1 <= len(read) <= 2


def test_micro_batches_share_a_step(files):
    stream = Streamed(units_of(files, ["x"]), ["x"], Named, Share(8, 0, micro=3), 2, 25)
    for step in stream.epoch(0):
        sizes = [len(batch) for batch in step.batches]
        assert len(sizes) == 3
        assert max(sizes) - min(sizes) <= 1


def test_what_cannot_be_streamed_is_refused(files, tmp_path):
    with pytest.raises(TrainingError, match=r"11 row groups for 12 streams: lower training\.streams"):
        Streamed(units_of(files, ["x"]), ["x"], Named, Share(8, 0), 12, 25)
    with pytest.raises(TrainingError, match=r"2 streams for 3 workers: raise training\.streams"):
        Streamed(units_of(files, ["x"]), ["x"], Named, Share(8, 0, 0, 3), 2, 25)
    with pytest.raises(
        TrainingError, match=r"2 streams for 3 workers: .* or lower training\.workers"
    ):  # before it grows
        Streamed(units_of(files, ["x"]), ["x"], Named, Share(8, 0, rank=0, world=1, most=3), 2, 25)
    with pytest.raises(DataRefused, match=r"gone\.parquet cannot be read"):
        units_of([str(tmp_path / "gone.parquet")], ["x"])


def test_sizes_come_from_the_footers(files):
    assert sum(unit.rows for unit in units_of(files, ["x"])) == 103
    # Eight bytes a number, plus pages' headers; the other column is not counted.
    assert 103 * 8 <= sum(unit.bytes for unit in units_of(files, ["x"])) < 103 * 8 + 11 * 100
