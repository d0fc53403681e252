"""The loader beside reading as such: rows per second of packed batches over those of the plainest way to read them.

`resident_ratio`: beside a gather of the same rows' values from the same memory map, in the same order and batches.
`streaming_ratio`: beside a scan of the same columns and files by pyarrow. `read_amplification`: bytes that two ranks
read in an epoch, as the kernel counts them, over the columns' bytes in the files. Lengths as in adrec-baby.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tests.benchmarks.chunks import LONGEST, chunks, table
from tests.benchmarks.harness import report, seconds
from train.loader import Resident, Share, bounds, permutation, prefetched
from train.maps import mapped
from train.sequence_data import TRAINING_COLUMNS, SequenceData
from train.streaming import Streamed, units_of

CATALOGUE = 100_000
ROWS = 1_000_000
BATCH = 4096
GROUP = 50_000


def spent(iterator: object) -> None:
    """Take everything."""
    for _ in iterator:  # type: ignore[attr-defined]
        pass


def plain_gather(data: SequenceData, share: Share, steps: int) -> None:
    """The values of every batch's rows in one flat array, and nothing else."""
    order = permutation(len(data), share.seed, 0)
    offsets, values = data.items.offsets, data.items.values
    for position in range(steps):
        rows = order[bounds(position, len(data), steps)]
        lengths = offsets[rows + 1] - offsets[rows]
        before = np.cumsum(lengths) - lengths
        values[np.arange(int(lengths.sum())) + np.repeat(offsets[rows] - before, lengths)]


def resident(folder: Path) -> float:
    """The resident ratio."""
    with mapped(folder / "maps", "rows", lambda: chunks(ROWS, CATALOGUE).arrays()) as arrays:
        data, share = SequenceData.from_arrays(arrays, LONGEST), Share(BATCH, 0)
        loader = Resident(data, share)
        plain = seconds(lambda: plain_gather(data, share, loader.steps), 3)
        return plain / seconds(lambda: spent(prefetched(loader.epoch(0), 2)), 3)


def read() -> int:
    """Bytes that this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def streaming(folder: Path) -> tuple[float, float]:
    """(streaming ratio, read amplification)."""
    files = []
    for number in range(4):
        path = folder / f"{number}.parquet"
        pq.write_table(table(ROWS // 4, CATALOGUE, number)[:-2], path, row_group_size=GROUP, compression="zstd")
        files.append(str(path))
    units = units_of(files, TRAINING_COLUMNS)

    def streamed(rank: int, world: int) -> Streamed[object]:
        return Streamed(
            units, TRAINING_COLUMNS, lambda rows: SequenceData.chunks(rows, LONGEST),
            Share(BATCH, 0, rank, world), 2, 200_000,
        )  # fmt: skip

    scan = seconds(lambda: spent(pads.dataset(files).to_batches(columns=TRAINING_COLUMNS)), 3)
    ratio = scan / seconds(lambda: spent(prefetched(streamed(0, 1).epoch(0), 2)), 3)
    before = read()
    for rank in range(2):
        spent(streamed(rank, 2).epoch(0))
    return ratio, (read() - before) / stored(files)


def stored(files: list[str]) -> int:
    """Compressed bytes of the columns that training reads."""
    total = 0
    for path in files:
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        columns = [group.column(c) for group in groups for c in range(group.num_columns)]
        total += sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in TRAINING_COLUMNS)
    return total


def main() -> None:
    """One line of figures."""
    with tempfile.TemporaryDirectory() as folder:
        resident_ratio = resident(Path(folder))
        streaming_ratio, amplification = streaming(Path(folder))
    figures = {
        "streaming_ratio": streaming_ratio, "resident_ratio": resident_ratio, "read_amplification": amplification,
    }  # fmt: skip
    report("loader", figures)


if __name__ == "__main__":
    main()
