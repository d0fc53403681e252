"""What a Ray worker does for `logs2rec score`: one bucket of users at a time, from pinned tables to a file of lists.

Shapes: U users of a bucket, V rows of today's catalogue.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluate.settings import ScoringSettings
from featurize import current, histories, merging
from featurize.contract import Contract
from featurize.vocabularies import ITEM, USER
from infra.commit import write_file
from infra.disk import sync
from infra.lake import Lake
from infra.tables import FIELDS, FIRST_INDEX, HISTORY, RECOMMENDATIONS, column_of

if TYPE_CHECKING:
    from evaluate.publish.candidates import Candidates
    from evaluate.publish.lists import Bucket, Catalogue, Models

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What the lists of a run date are a function of; plain values, for the workers."""

    key: str
    """The ledger's."""
    lake: str
    notes: str
    """Folder of what is done."""
    contract: Contract
    versions: Mapping[str, int]
    as_of: str
    """The last arrival."""
    day: str
    files: Sequence[Sequence[tuple[str, str]]]
    """Per bucket the (day, path) of its histories."""
    cap: int
    settings: ScoringSettings
    artifacts: Mapping[str, str]
    """By role."""
    registered: Mapping[str, str]
    """Version, by role."""
    eligible_V: NDArray[np.bool_]
    takers_V: Ints
    """Users who took each item lately."""
    history: int
    """Items of the field `history`; 0: samples have none."""
    unlearned: Sequence[str]
    """See `unlearned_fields`."""


def score_bucket(job: Job, number: int) -> dict[str, Any]:
    """Make the bucket's lists, write them, and leave a note of it: the file (None without users) and what is in it."""
    from evaluate.publish.lists import SOURCES, lists, rows

    ready = _ready(job)
    bucket = _bucket(job, number)
    pairs = ready.pairs(job, bucket.users) if len(bucket.users) else None
    made = lists(ready.models, ready.catalogue, bucket, pairs, job.settings, number)
    file = None
    if made.items_UK.any():
        table = rows(made, bucket.users, ready.catalogue.keys, ready.models.versions)
        folder = Lake(job.lake).path(RECOMMENDATIONS.name)
        file = asdict(write_file(folder, RECOMMENDATIONS, {"ds": job.day}, [table], order=(number,)))
    have_U = (made.items_UK > 0).sum(axis=1)
    of_source = np.bincount(made.source_UK[made.items_UK > 0], minlength=len(SOURCES))
    report = {"users": len(have_U), "full": int((have_U == job.settings.k).sum()), "empty": int((have_U == 0).sum())}
    report |= dict(zip(SOURCES, of_source.tolist(), strict=True))
    note = {"file": file, "report": report}
    _leave(Path(job.notes) / f"{number}.json", note)
    return note


def takers(files: Sequence[tuple[str, str]], cap: int, day: str, days: int, size: int) -> Ints:
    """(V,) how many users of a bucket took each item in the last `days` days up to the end of `day`."""
    table = histories.whole(files, cap)
    end = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)
    since = int((end - timedelta(days=days)).timestamp()) * 10**6
    item_T = merging.flat(table, "items").astype(np.int64)
    user_T = np.repeat(np.arange(len(table)), merging.lengths_of(table))
    taken_T = (merging.flat(table, "ts") >= since) & (item_T >= FIRST_INDEX)
    if merging.has_targets(table):
        taken_T &= merging.flat(table, "is_target")
    once = np.unique(user_T[taken_T] * size + item_T[taken_T]) % size
    return np.bincount(once, minlength=size)


@dataclass
class _Ready:
    """What is the same for every bucket."""

    key: str
    models: Models
    catalogue: Catalogue
    nobody: Candidates | None
    """Feature rows of the items beside no user; None without a ranking model."""

    def pairs(self, job: Job, users: pa.Array) -> Candidates | None:
        """The ranking model's feature rows of these users beside every item."""
        if self.nobody is None:
            return None
        lake = Lake(job.lake)
        columns = {column_of(USER): current.user_index(lake, job.versions, job.as_of, users)}
        columns |= current.side_columns(lake, job.contract, job.versions, job.as_of, job.day, USER, users)
        if job.history:
            past = current.last_positives(lake, job.versions["samples"], job.day, users, job.history)
            columns[column_of(HISTORY)] = past
        return self.nobody.beside(columns)


_kept: list[_Ready] = []
"""Of the job that this worker is at."""


def _ready(job: Job) -> _Ready:
    if not _kept or _kept[0].key != job.key:
        _kept[:] = [_made_ready(job)]
    return _kept[0]


def _made_ready(job: Job) -> _Ready:
    from evaluate.publish.candidates import Candidates
    from evaluate.publish.lists import Catalogue, Models
    from train.artifact import load
    from train.ranking_data import read_fields

    lake = Lake(job.lake)
    loaded = {role: load(path) for role, path in job.artifacts.items()}
    ranking = loaded.get("ranking")
    models = Models(loaded["retrieval"], ranking, (job.registered["retrieval"], job.registered.get("ranking")))
    keys = current.item_keys(lake, job.versions, job.as_of)
    nobody = None
    if ranking is not None:
        # The two rows in front are never asked for.
        every = pa.concat_arrays([pa.nulls(FIRST_INDEX, pa.string()), keys])
        items = {column_of(ITEM): pa.array(np.arange(len(every), dtype=np.int32))}
        items |= current.side_columns(lake, job.contract, job.versions, job.as_of, job.day, ITEM, every)
        specs = read_fields(lake, job.versions[FIELDS.name], job.day)
        nobody = Candidates.of(specs, {column_of(USER): pa.array([], pa.int32())}, items)
    return _Ready(job.key, models, Catalogue.of(keys, job.eligible_V, job.takers_V), nobody)


def unlearned_fields(
    artifact: Path, lake: Lake, contract: Contract, versions: Mapping[str, int], day: str
) -> list[str]:
    """Fields that no list has (they are of an event, which has not happened) and this ranking model never saw missing.

    UsageError for one of other fields than the day's samples have.
    """
    from evaluate.impressions import require_fields
    from train.artifact import load
    from train.ranking_configs import WrapperShape
    from train.ranking_data import read_fields

    loaded = load(artifact)
    require_fields(artifact, loaded.fields, read_fields(lake, versions[FIELDS.name], day))
    if isinstance(loaded.config, WrapperShape) and loaded.config.meets_missing:
        return []
    of_event = {field.name for source in ("log", "time") for field in contract.fields_from(source)}
    return [spec.name for spec in loaded.fields if spec.name in of_event and spec.missing_rate == 0]


def _bucket(job: Job, number: int) -> Bucket:
    from evaluate.publish.lists import Bucket
    from train.sequence_data import shown_and_predicted

    table = histories.whole(job.files[number], job.cap)
    events, taken = shown_and_predicted(table)
    return Bucket(table["user"].combine_chunks(), events, taken)


def _leave(path: Path, note: Mapping[str, Any]) -> None:
    """The whole note or none."""
    partly = path.with_suffix(f".{os.getpid()}.partly")
    partly.write_text(json.dumps(note), encoding="utf-8")
    sync(partly)
    partly.rename(path)
