"""Histories to training sequences and evaluation targets, point-in-time correct.

A task per bucket reads its histories with Arrow, cuts them, and writes its files; Spark distributes the numbers of
the buckets and nothing else. Whether a target's item was trained on is mostly known from the bucket alone; rows
that need the other buckets' word for it wait in files of their own, which are then written again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurize import cutting, delta, histories
from featurize.core import core_items
from featurize.cutting import Cut
from infra.commit import DataFile, commit, write_file
from infra.errors import AuditError, CommitError, EmptySplit
from infra.lake import Lake, brief
from infra.tables import SEQUENCES, UNKNOWN

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from featurize.settings import SequenceSettings

SPLITS = ("train", "valid", "test")

ALONE = 1 << 20
"""Bytes of undecided rows that the driver writes itself: a Spark job would take longer than that."""

TOGETHER = 16 << 20
"""Bytes of undecided rows that become one file; in memory they are some ten times that."""


def build(
    spark: SparkSession,
    lake: Lake,
    settings: SequenceSettings,
    as_of: histories.AsOf,
    day: str,
    metadata: dict[str, Any],
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the sequences as of run date `day` from its histories; returns table versions and rows per split.

    Raises EmptySplit when there is nothing to train on, AuditError when a row would know its future; nothing is
    committed then.
    """
    files = histories.files_of(lake, as_of, settings.buckets)
    cut = Cut.of(
        settings.split,
        day,
        settings.max_length,
        settings.history_cap,
        (settings.test_share, settings.valid_share),
        settings.k_core,
    )
    alive = core_items(spark, files, cut.cap, cut.k_core) if cut.k_core is not None else None
    buckets = _cut(spark, lake, files, cut, alive, day)
    for file, facts in (report for b in buckets for report in (*b.files, *b.undecided)):
        _audit(file.partition["split"], facts, cut, file.path)
    decided = [file for b in buckets for file, _ in b.files]
    undecided = [file for b in buckets for file, _ in b.undecided]
    rows = {split: sum(f.rows for f in decided + undecided if f.partition["split"] == split) for split in SPLITS}
    if not rows["train"]:
        raise EmptySplit(
            f"sequences: no user has two events to train on before {day}; check sequences.split and the dates "
            "(a clock far ahead is kept out by rules.max_time)"
        )
    decided += _decided(spark, lake, undecided, _together(buckets), len(buckets))
    version = commit(lake, SEQUENCES, decided, replace={"as_of": [day]}, metadata=metadata)
    return {SEQUENCES.name: version}, rows


@dataclass(frozen=True)
class _Bucket:
    """What a task made of a bucket: files, and what the audit has to know of each."""

    trained: bytes
    """Of each item index, whether it stands in the bucket's training part; packed bits."""
    files: list[tuple[DataFile, dict[str, int]]]
    undecided: list[tuple[DataFile, dict[str, int]]]
    """Of evaluation rows whose target this bucket never trained on: another one may have."""


def _cut(
    spark: SparkSession, lake: Lake, files: histories.Files, cut: Cut, alive: np.ndarray | None, day: str
) -> list[_Bucket]:
    """Write the rows of every bucket; nothing is committed."""
    folder, buckets = lake.path(SEQUENCES.name), files.buckets

    def work(bucket: int) -> Iterator[_Bucket]:
        cuts = cutting.pieces(cutting.read(buckets[bucket], cutting.columns_of(cut)), cut, alive)
        times = [(ds, cutting.latest(path)) for ds, path in buckets[bucket]] if cut.split == "temporal" else []
        here = cutting.marked(cuts.trained())
        out = _Bucket(np.packbits(here).tobytes(), [], [])
        for split, decided, table in _tables(cuts, cut.length, here):
            if table.num_rows:
                file = _file(folder, day, split, table, bucket)
                (out.files if decided else out.undecided).append((file, cutting.facts(times, cuts, cut, split)))
        yield out

    return delta.each(spark, len(buckets), work, files.size)


def _tables(cuts: cutting.Pieces, length: int, seen: np.ndarray) -> Iterator[tuple[str, bool, pa.Table]]:
    """(split, whether it is known which targets were trained on, rows), table by table: together they are large."""
    yield "train", True, cutting.train_table(cuts, length)
    for split, held in cuts.held_out.items():
        known = cutting.known(held.target, seen)
        decided = known | (held.target == UNKNOWN)
        yield split, True, cutting.held_table(cuts, held.only(decided), known[decided])
        yield split, False, cutting.held_table(cuts, held.only(~decided), known[~decided])


def _together(buckets: Iterable[_Bucket]) -> np.ndarray:
    """Of each item index, whether it stands in anybody's training part."""
    found = [np.frombuffer(b.trained, np.uint8) for b in buckets]
    together = np.zeros(max(1, *map(len, found)), np.uint8)
    for bits in found:
        together[: len(bits)] |= bits
    return np.unpackbits(together).astype(bool)


def _decided(
    spark: SparkSession, lake: Lake, undecided: Sequence[DataFile], seen: np.ndarray, first: int
) -> list[DataFile]:
    """Files with the same rows and the truth about their targets, numbered from `first`; the undecided ones go."""
    folder, size = lake.path(SEQUENCES.name), sum(file.size for file in undecided)
    groups = _groups(undecided)

    def work(number: int) -> Iterator[DataFile]:
        partition = groups[number][0].partition
        table = pa.concat_tables(_read(folder, file) for file in groups[number])
        place = table.schema.get_field_index("target_known")
        known = pa.array(cutting.known(table["target"].to_numpy(), seen))
        table = table.set_column(place, "target_known", known)
        yield _file(folder, partition["as_of"], partition["split"], table, first + number)

    if size > ALONE:
        files = delta.each(spark, len(groups), work, size)
    else:
        files = [file for number in range(len(groups)) for file in work(number)]
    for file in undecided:
        with contextlib.suppress(OSError):  # then a vacuum finds it
            Path(folder, file.path).unlink()
    return files


def _groups(files: Sequence[DataFile]) -> list[list[DataFile]]:
    """Files of one split each, which become one."""
    by_split = [[(f, f.size) for f in files if f.partition["split"] == split] for split in SPLITS]
    return [group for sized in by_split for group in delta.together(sized, TOGETHER)]


def _read(folder: str, file: DataFile) -> pa.Table:
    try:
        return pq.ParquetFile(f"{folder}/{file.path}").read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise CommitError(
            f"table {SEQUENCES.name!r}, file {file.path!r}: it was written just now and cannot be read "
            f"({brief(error)}); nothing was committed: see to the disk, and run the command again"
        ) from error


def _file(folder: str, day: str, split: str, table: pa.Table, number: int) -> DataFile:
    return write_file(folder, SEQUENCES, {"as_of": day, "split": split}, [table], order=(number,), distinct=("items",))


def _audit(split: str, facts: Mapping[str, int], cut: Cut, path: str) -> None:
    """Raise AuditError when a file's rows know what lies in or behind their window."""

    def refuse(why: str) -> AuditError:
        return AuditError(f"sequences, file {path!r}: {why}: the split leaks; nothing was committed")

    if facts["late"]:
        raise refuse(f"{facts['late']} histories reach beyond their target")
    if cut.split != "temporal":
        return
    start = cut.test_start if split == "test" else cut.valid_start
    if facts["history"] >= start:
        raise refuse(f"a history has an event at {facts['history']} us, and the window begins at {start} us")
    if split != "train":
        end = cut.test_start if split == "valid" else cut.test_end
        if not start <= facts["first"] <= facts["last"] < end:
            raise refuse(f"targets at {facts['first']} to {facts['last']} us, the window is {start} to {end} us")
