"""What one worker has to know, and the data that it trains on.

Shapes: N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infra.config import digest
from infra.errors import TrainingError
from infra.lake import Lake
from train.configs import ModelConfig, RankingConfig, SequenceConfig
from train.loader import Loader, Resident, Share
from train.maps import boot, default_cache, mapped
from train.protocol import FieldSpec
from train.ranking_data import RankingData, read_fields, training_columns
from train.sequence_data import TRAINING_COLUMNS, SequenceData, require_rows
from train.settings import TrainingSettings, sharding_problem
from train.streaming import Streamed, Unit, units_of
from train.validation import Data

_GIB = 2**30
_BLOCK = 2**22  # values counted at once


@dataclass(frozen=True)
class Job:
    """What a worker has to know. `to_config` and `from_config` carry it through Ray as plain JSON."""

    lake: str
    versions: dict[str, int]
    as_of: str
    model: ModelConfig
    training: TrainingSettings
    catalogue: int | None
    run: str
    """Directory of the checkpoints, on storage that every worker sees."""
    config_hash: str
    initial: str | None = None
    """Artifact whose weights the run starts from; None = fresh ones."""

    def __post_init__(self) -> None:
        """TrainingError for a model whose table cannot be sharded as its settings ask."""
        problem = sharding_problem(self.model, self.training)
        if self.training.sharded and self.initial is not None:
            problem = "training.start: champion does not go with sharded; set it to fresh"
        if problem:
            raise TrainingError(problem)

    def to_config(self) -> dict[str, Any]:
        """JSON values only."""
        settings = {"model": self.model.model_dump(mode="json"), "training": self.training.model_dump(mode="json")}
        return {**vars(self), **settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Job:
        """The inverse of `to_config`, validated."""
        model: TypeAdapter[ModelConfig] = TypeAdapter(SequenceConfig | RankingConfig)
        settings = {
            "model": model.validate_python(config["model"]),
            "training": TrainingSettings.model_validate(config["training"]),
        }
        return cls(**{**config, **settings})

    @property
    def table(self) -> str:
        """The table of its training rows."""
        return "samples" if self.model.kind == "ranking" else "sequences"


@dataclass(frozen=True)
class Splits:
    """The training split as a loader, the validation split, and the feature fields of a ranking model."""

    train: Loader[Any]
    valid: Data
    fields: tuple[FieldSpec, ...]
    rows: int
    """Of the training split."""
    predicted: Callable[[], Iterator[NDArray[Any]]] = lambda: iter(())
    """This rank's share of what the sequences of the training split have to predict, 0 where nothing; to be counted."""


@dataclass(frozen=True)
class _Source:
    """How rows of the job's table become data: whole splits, memory maps of them, and pieces of the stream."""

    read: Callable[[str], Data]
    from_arrays: Callable[[Mapping[str, Any]], Data]
    from_table: Callable[[pa.Table], Data]
    columns: list[str]
    fields: tuple[FieldSpec, ...]


@contextmanager
def opened(job: Job, rank: int, world: int) -> Iterator[Splits]:
    """The job's splits as one of its ranks sees them. Raises TrainingError where tables and job do not fit."""
    source = _sequences(job) if job.table == "sequences" else _samples(job)
    settings, root = job.training, str(Lake(job.lake).root)
    share = Share(settings.batch_size, settings.seed, rank, world, settings.accumulate, settings.max_workers)
    with ExitStack() as stack:

        def resident(split: str) -> Data:
            shape = [getattr(job.model, "max_length", None), getattr(job.model, "seen_padding", False)]
            name = digest([root, job.versions, job.as_of, split, shape, job.catalogue, boot()])
            made = mapped(settings.cache or default_cache(), name, lambda: source.read(split).arrays())
            return source.from_arrays(stack.enter_context(made))

        valid = resident("valid")
        if units := _streamed(job, source.columns):
            stream: Streamed[Any] = Streamed(
                units, source.columns, source.from_table, share, settings.streams, settings.window
            )
            if stream.is_empty():
                require_rows(0, job.table, job.versions[job.table], job.as_of, "train")
            rows = sum(unit.rows for unit in units)
            yield Splits(stream, valid, source.fields, rows, lambda: (_predicted(part) for part in stream.parts()))
        else:
            train = resident("train")
            yield Splits(Resident(train, share), valid, source.fields, len(train), lambda: _share(train, rank, world))


def _predicted(data: Any) -> NDArray[Any]:
    assert isinstance(data, SequenceData)
    return data.next_items.values


def _share(data: Data, rank: int, world: int) -> Iterator[NDArray[Any]]:
    """A rank's part of what memory maps have to predict, in blocks."""
    values = _predicted(data)
    end = (rank + 1) * len(values) // world
    for start in range(rank * len(values) // world, end, _BLOCK):
        yield values[start : min(start + _BLOCK, end)]


def _streamed(job: Job, columns: list[str]) -> list[Unit]:
    """The row groups of the training split if it is to be streamed, else none."""
    settings, lake = job.training, Lake(job.lake)
    if settings.loader == "resident":
        return []
    files = lake.files(job.table, job.versions[job.table], {"as_of": job.as_of, "split": "train"})
    units = units_of(files, columns)
    fits = sum(unit.bytes for unit in units) <= settings.resident_gb * _GIB
    return [] if settings.loader == "auto" and fits else units


def _sequences(job: Job) -> _Source:
    lake, version, catalogue = Lake(job.lake), job.versions["sequences"], job.catalogue or 0
    longest: int | None = getattr(job.model, "max_length", None)
    packed = not getattr(job.model, "seen_padding", False)

    def known(data: SequenceData) -> SequenceData:
        largest = int(np.max(data.items.values, initial=0))
        if data.target_N is not None and data.known_N is not None:
            largest = max(largest, int(np.max(data.target_N[data.known_N], initial=0)))  # others are misses anyway
        if largest >= catalogue:
            raise TrainingError(
                f"table sequences version {version} has item index {largest}, but the vocabulary ends before "
                f"{catalogue}; the two versions do not belong together"
            )
        return data

    return _Source(
        read=lambda split: known(SequenceData.from_lake(lake, version, job.as_of, split, longest, packed)),
        from_arrays=lambda arrays: SequenceData.from_arrays(arrays, longest, packed),
        from_table=lambda table: known(SequenceData.chunks(table, longest, packed)),
        columns=TRAINING_COLUMNS,
        fields=(),
    )


def _samples(job: Job) -> _Source:
    lake, version, fields_version = Lake(job.lake), job.versions["samples"], job.versions["fields"]
    fields = read_fields(lake, fields_version, job.as_of)
    return _Source(
        read=lambda split: RankingData.from_lake(lake, version, fields_version, job.as_of, split),
        from_arrays=lambda arrays: RankingData.from_arrays(arrays, fields),
        from_table=lambda table: RankingData.rows(table, fields, version),
        columns=training_columns(fields),
        fields=fields,
    )
