"""Training chunks of a size, with lengths as in adrec-baby, in memory or as a pinned table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from deltalake import write_deltalake
from numpy.typing import NDArray

from infra.tables import SEQUENCES
from train.configs import ADRecConfig, SASRecConfig
from train.models import build_sequence
from train.ragged import Ragged
from train.sequence_data import SequenceData
from train.settings import TrainingSettings
from train.stages import stages_of
from train.step import Stepper

BABY = Path(__file__).parents[3] / "shared" / "data" / "adrec-baby" / "sequences.parquet"
LONGEST = 50
AS_OF = "2024-03-02"


def baby_lengths() -> NDArray[np.int64]:
    """Events of each user's training chunk, one more than a model of 50 sees; the median is 4.

    Those of the published split, or where it is absent a Zipf law near them.
    """
    if BABY.exists():
        lengths = pc.list_value_length(pq.read_table(BABY, columns=["train"])["train"]).to_numpy()
    else:
        lengths = 2 + np.random.default_rng(0).zipf(2.1, 11_761)
    return np.minimum(lengths, LONGEST + 1).astype(np.int64)


def ragged(sequences: int, catalogue: int, seed: int = 0) -> Ragged:
    """Sequences of such lengths, of items whose popularity falls."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice(baby_lengths(), sequences)
    items = 2 + (catalogue - 2) * (1 - rng.power(3, int(lengths.sum())))
    return Ragged(items.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def chunks(sequences: int, catalogue: int, seed: int = 0) -> SequenceData:
    """As a split in memory."""
    column = ragged(sequences, catalogue, seed)
    return SequenceData(column, column, max_length=LONGEST)


def table(sequences: int, catalogue: int, seed: int = 0) -> pa.Table:
    """As rows of `sequences`, with two evaluation rows, so that a run has something to validate on."""
    column = ragged(sequences, catalogue, seed)
    lists = pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), pa.array(column.values))
    columns = {
        "as_of": pa.array([AS_OF] * sequences),
        "split": pa.array(["train"] * sequences),
        "user": pc.cast(pa.array(np.arange(sequences)), pa.string()),
        "items": lists,
    }
    absent = {f.name: pa.nulls(sequences, f.type) for f in SEQUENCES.schema if f.name not in columns}
    rows = pa.table(columns | absent).select(SEQUENCES.schema.names).cast(SEQUENCES.schema)
    valid = [
        {"as_of": AS_OF, "split": "valid", "user": f"v{i}", "items": [2, 3], "target": 4 + i, "target_known": True}
        for i in range(2)
    ]
    return pa.concat_tables([rows, pa.Table.from_pylist(valid, SEQUENCES.schema)])


def last_stage(
    config: ADRecConfig | SASRecConfig, catalogue: int, settings: TrainingSettings, device: str = "cpu"
) -> Stepper:
    """A fresh model in its last stage, under the engine's own step."""
    torch.manual_seed(0)
    model: Any = build_sequence(config, catalogue)
    model.to(device).train()
    names = {name for name, _ in model.named_parameters()}
    return Stepper(model, stages_of(model, settings.epochs)[-1], names, settings, 1, {})


def lake(folder: Path, sequences: int, catalogue: int) -> Path:
    """A lake with that table as version 0 of `sequences`."""
    write_deltalake(folder / "sequences", table(sequences, catalogue), partition_by=["as_of", "split"])
    return folder
