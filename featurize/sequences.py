"""Histories to training sequences and evaluation targets, point-in-time correct.

A task per bucket reads its histories with Arrow, cuts them, and writes its files; Spark distributes the numbers of
the buckets and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize import cutting, delta, histories
from featurize.core import core_items
from featurize.cutting import Cut
from featurize.history_tasks import report, reported
from infra.commit import commit, write_file
from infra.errors import AuditError, EmptySplit
from infra.lake import Lake
from infra.tables import SEQUENCES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from featurize.settings import SequenceSettings

SPLITS = ("train", "valid", "test")


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
    seen = _seen(spark, files, cut, alive)
    written = [reported(p) for p in _write(spark, lake, files, cut, alive, seen, day)]
    for file, facts in written:
        _audit(file.partition["split"], facts, cut, file.path)
    rows = {split: sum(f.rows for f, _ in written if f.partition["split"] == split) for split in SPLITS}
    if not rows["train"]:
        raise EmptySplit(
            f"sequences: no user has two events to train on before {day}; check sequences.split and the dates "
            "(a clock far ahead is kept out by rules.max_time)"
        )
    version = commit(lake, SEQUENCES, [f for f, _ in written], replace={"as_of": [day]}, metadata=metadata)
    return {SEQUENCES.name: version}, rows


def _seen(spark: SparkSession, files: histories.Files, cut: Cut, alive: np.ndarray | None) -> np.ndarray:
    """Of each item index, whether it stands in anybody's training part."""
    buckets = files.buckets

    def work(bucket: int) -> Iterator[bytes]:
        if cut.split == "temporal":
            yield np.packbits(cutting.mark(cutting.read_past(buckets[bucket], cut), cut.cap)).tobytes()
        else:
            cuts = cutting.pieces(cutting.read(buckets[bucket], cutting.columns_of(cut)), cut, alive)
            yield np.packbits(cutting.marked(cuts.trained())).tobytes()

    found = [np.frombuffer(p, np.uint8) for p in delta.each(spark, len(buckets), work, files.size)]
    together = np.zeros(max(1, *map(len, found)), np.uint8)
    for bits in found:
        together[: len(bits)] |= bits
    return np.unpackbits(together).astype(bool)


def _write(
    spark: SparkSession,
    lake: Lake,
    files: histories.Files,
    cut: Cut,
    alive: np.ndarray | None,
    seen: np.ndarray,
    day: str,
) -> list[bytes]:
    folder, buckets = lake.path(SEQUENCES.name), files.buckets

    def work(bucket: int) -> Iterator[bytes]:
        cuts = cutting.pieces(cutting.read(buckets[bucket], cutting.columns_of(cut)), cut, alive)
        for split in SPLITS:
            table = cutting.train_table(cuts, cut.length) if split == "train" else cutting.held_table(cuts, split, seen)
            if table.num_rows:
                place = {"as_of": day, "split": split}
                file = write_file(folder, SEQUENCES, place, [table], order=(bucket,), distinct=("items",))
                yield report(file, **cutting.facts(buckets[bucket], cuts, cut, split))

    return delta.each(spark, len(buckets), work, files.size)


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
