"""Steers `logs2rec score`: the day's lists by the champions, bucket by bucket on Ray, into `recommendations`. No maths.

A bucket is done when its note stands in `scoring/KEY` of the workspace; its file lies in the table's folder, committed
by nobody yet. A command that was killed is given again, and makes the buckets that are not done. In the end all files
replace the run date's partition in one commit, and the ledger has the row (one that died between the two makes all of
it again).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import current, histories
from infra.commit import DataFile, astray, commit, write_file
from infra.config import digest
from infra.disk import sync
from infra.errors import DataRefused, EnvironmentProblem, UsageError
from infra.ledger import Published, key_of
from infra.tables import FIELDS, FIRST_INDEX, HISTORIES, ITEMS, RECOMMENDATIONS
from pipelines.champions import Champion, artifact_of
from pipelines.context import Context
from pipelines.data import Data
from pipelines.eligibility import eligible_items
from pipelines.event_stages import events
from pipelines.feature_stages import build_histories, build_samples, build_vocabularies
from pipelines.roles import require_vocabulary
from pipelines.scoring_tasks import Job, score_bucket, takers, unlearned_fields

UNIT = "score"
_INPUTS = (ITEMS.name, "field_values", "user_features", "item_features", "samples", FIELDS.name, HISTORIES.name)


def score(ctx: Context) -> Published:
    """The lists as of the run date, by the champions of now; what is published already stays as it is.

    Raises UsageError without a retrieval champion, for one of another vocabulary, and where the data of the run date
    are not published; DataRefused for a file of eligible items that cannot be used.
    """
    ctx.only = UNIT
    if ctx.recipe.retrieval is None:
        raise UsageError("score: the recipe has no retrieval model, and lists are made of what one retrieves")
    data = build_vocabularies(ctx, events(ctx))
    as_of = build_histories(ctx, data)
    versions = {**data.versions, HISTORIES.name: as_of.version}
    if ctx.recipe.ranking is not None:
        versions |= build_samples(ctx, data)
    data = Data(versions, data.arrivals, data.day, data.items_hash, data.sizes)
    champions, settings = _champions(ctx, data.day), ctx.recipe.scoring
    eligible = None if settings.eligible is None else eligible_items(settings.eligible)
    inputs: dict[str, Any] = {t: versions[t] for t in _INPUTS if t in versions}
    inputs |= {role: champion.build for role, champion in champions.items()}
    config = {
        "settings": settings.model_dump(mode="json", exclude={"eligible"}),
        "eligible": None if eligible is None else digest(eligible.to_pylist()),
        "registered": {role: champion.version for role, champion in champions.items()},
    }

    asked = key_of(UNIT, data.day, inputs, config)
    inputs["previous"] = _previous(ctx, data.day, asked)

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        job = _job(ctx, data, as_of, champions, eligible, key_of(UNIT, data.day, inputs, config))
        done = _carried_out(ctx, job)
        written = _commit(ctx, job, done, inputs)
        shutil.rmtree(Path(job.notes).parent)
        return written, {**_report(job, done, eligible), "asked": asked}

    row = ctx.publish(UNIT, data.day, inputs, config, work)
    _put_back(ctx, row)
    return row


def _previous(ctx: Context, day: str, asked: str) -> str | None:
    """Key of the lists that these take the place of. A date has one set of lists: whoever asks again for those from
    before the last ones (after a rollback) gets them made again; whoever asks for the last ones has them."""
    newest = next((row for row in reversed(ctx.ledger.rows()) if row.unit == UNIT and row.date == day), None)
    if newest is None:
        return None
    return newest.inputs["previous"] if newest.report["asked"] == asked else newest.key


def _put_back(ctx: Context, row: Published) -> None:
    """Commit the published lists again where a command that died before the ledger has left others in their place."""
    files, moved = astray(ctx.lake, RECOMMENDATIONS, row.version(RECOMMENDATIONS.name), "ds", [row.date])
    if moved:
        ctx.hold()
        commit(ctx.lake, RECOMMENDATIONS, files, replace={"ds": moved}, metadata=ctx.metadata(UNIT, row.inputs))


def _champions(ctx: Context, day: str) -> dict[str, Champion]:
    """Those of now, by role: the alias's word. UsageError for one of a later run date: it has seen what came then."""
    from evaluate.publish.registry import BUILD_TAG, CHAMPION, RUN_DATE_TAG

    found = {}
    for role in ("retrieval", "ranking"):
        name = f"{ctx.recipe.name}.{role}"
        if getattr(ctx.recipe, role) is None or (version := ctx.store().alias(name, CHAMPION)) is None:
            continue
        tags = ctx.store().tags(name, version) or {}
        if BUILD_TAG not in tags:
            raise UsageError(f"{name}: champion is version {version}, which logs2rec did not register; move the alias")
        if tags[RUN_DATE_TAG] > day:
            raise UsageError(
                f"{name}: champion is version {version} of {tags[RUN_DATE_TAG]}, which has seen what came after {day}; "
                "score a later --date, or roll back first"
            )
        found[role] = Champion(name, version, tags[RUN_DATE_TAG], tags[BUILD_TAG])
    if "retrieval" not in found:
        raise UsageError(f"{ctx.recipe.name}.retrieval: has no champion to make lists with; run `logs2rec run` first")
    return found


def _job(
    ctx: Context, data: Data, as_of: histories.AsOf, champions: Mapping[str, Champion], eligible: pa.Array | None,
    key: str,
) -> Job:  # fmt: skip
    recipe = ctx.recipe
    keys = current.item_keys(ctx.lake, data.versions, data.arrivals[-1])
    artifacts = {role: artifact_of(ctx, champion) for role, champion in champions.items()}
    for artifact in artifacts.values():
        require_vocabulary(artifact, keys.to_pylist())
    unlearned: list[str] = []
    if "ranking" in artifacts:
        unlearned = unlearned_fields(artifacts["ranking"], ctx.lake, ctx.contract, data.versions, data.day)
    if unlearned:
        ctx.progress.note(
            f"{UNIT}: lists miss {', '.join(unlearned)}, which the ranking champion never saw missing; asymdiffrec and "
            "feature_dropout learn it"
        )
    files = histories.files_of(ctx.lake, as_of, recipe.sequences.buckets).buckets
    eligible_V = np.ones(FIRST_INDEX + len(keys), bool)
    eligible_V[:FIRST_INDEX] = False
    if eligible is not None:
        eligible_V[FIRST_INDEX:] = pc.is_in(keys, value_set=eligible).to_numpy(zero_copy_only=False)
        if not eligible_V.any():
            raise DataRefused(
                f"scoring.eligible: {recipe.scoring.eligible}: none of its {len(eligible):,} items is in the log "
                f"({eligible[0].as_py()!r} is not): nobody would get anything; write the ids as the log does"
            )
    notes = ctx.workspace / "scoring" / key
    notes.mkdir(parents=True, exist_ok=True)
    return Job(
        key, str(ctx.lake.root), str(notes), ctx.contract, data.versions, data.arrivals[-1], data.day, files,
        recipe.sequences.history_cap, recipe.scoring, {role: str(path) for role, path in artifacts.items()},
        {role: champion.version for role, champion in champions.items()}, eligible_V,
        _takers(ctx, notes, files, data.day, len(eligible_V)), recipe.samples.history if recipe.ranking else 0,
        unlearned,
    )  # fmt: skip


def _takers(ctx: Context, notes: Path, files: Sequence[Sequence[tuple[str, str]]], day: str, size: int) -> np.ndarray:
    """Of all buckets; kept for a command that goes on."""
    path, settings = notes / "takers.parquet", ctx.recipe.scoring
    if path.is_file():
        kept: np.ndarray = pq.ParquetFile(path).read()["users"].to_numpy()
        return kept
    ctx.progress.note(f"{UNIT}: counting what is popular")
    cap = ctx.recipe.sequences.history_cap
    total = np.zeros(size, np.int64)
    for of_bucket in files:
        total += takers(of_bucket, cap, day, settings.popular_days, size)
    partly = path.with_suffix(".partly")
    pq.write_table(pa.table({"users": total}), partly)
    sync(partly)
    partly.rename(path)
    return total


def _carried_out(ctx: Context, job: Job) -> dict[int, dict[str, Any]]:
    """The note of every bucket; those that are not done are made now."""
    numbers, committed = range(len(job.files)), set(_committed(ctx))
    done = {number: note for number in numbers if (note := _note(job, number, committed)) is not None}
    left = [number for number in numbers if number not in done]
    if left:
        ctx.ray()
    for number, note in _on_ray(job, left):
        done[number] = note
        ctx.progress.note(f"{UNIT}: bucket {len(done)} of {len(job.files)}")
    return done


def _on_ray(job: Job, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each bucket's note when it is done, in any order."""
    if not numbers:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Once more where a worker is lost; an error of ours would be the same again.
    task = ray.remote(num_cpus=1, max_retries=2)(score_bucket)
    shared = ray.put(job)
    waiting = {task.remote(shared, number): number for number in numbers}
    try:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            note = ray.get(ready)
            yield waiting.pop(ready), note
    except RayTaskError as error:  # what the task itself raised
        raise error.cause from None
    except RayError as error:
        raise EnvironmentProblem(
            f"score: a worker was lost while it made a bucket ({str(error).strip().splitlines()[0]}); see to the "
            "workers' memory and give the command again: the buckets that are done stay"
        ) from error
    finally:
        for reference in waiting:
            with suppress(RayError, ValueError):
                ray.cancel(reference, force=True)


def _committed(ctx: Context) -> list[str]:
    """Files of the table as it stands; a command that died between its commit and the ledger has left its own there."""
    version = ctx.lake.version(RECOMMENDATIONS.name)
    return [] if version is None else ctx.lake.files(RECOMMENDATIONS.name, version)


def _note(job: Job, number: int, committed: Collection[str]) -> dict[str, Any] | None:
    """What a bucket that is done says of itself; None if it is not, or its file is gone or in the table already."""
    path = Path(job.notes) / f"{number}.json"
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if note["file"] is None:
        return note
    file = Path(job.lake) / RECOMMENDATIONS.name / note["file"]["path"]
    whole = file.is_file() and file.stat().st_size == note["file"]["size"]
    return note if whole and str(file) not in committed else None


def _commit(ctx: Context, job: Job, done: Mapping[int, Mapping[str, Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All files at once, with the list for whoever has none; returns the version."""
    from evaluate.publish.lists import ANYBODY, Catalogue, for_anybody, rows

    keys = current.item_keys(ctx.lake, job.versions, job.as_of)
    catalogue = Catalogue.of(keys, job.eligible_V, job.takers_V)
    table = rows(for_anybody(catalogue, job.settings.k), pa.array([ANYBODY]), keys, (None, None))
    folder = ctx.lake.path(RECOMMENDATIONS.name)
    files = [DataFile(**note["file"]) for _, note in sorted(done.items()) if note["file"] is not None]
    files.append(write_file(folder, RECOMMENDATIONS, {"ds": job.day}, [table], order=(len(job.files),)))
    metadata = ctx.metadata(UNIT, inputs)
    version = commit(ctx.lake, RECOMMENDATIONS, files, replace={"ds": [job.day]}, metadata=metadata)
    return {RECOMMENDATIONS.name: version}


def _report(job: Job, done: Mapping[int, Mapping[str, Any]], eligible: pa.Array | None) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for note in done.values():
        total.update(note["report"])
    return {
        "registered": dict(job.registered),
        "k": job.settings.k,
        "users": total["users"],
        "lists_full": total["full"],
        "lists_empty": total["empty"],
        "rows": {source: total[source] for source in ("retrieval", "ranking", "popular")},
        "fields_unlearned": list(job.unlearned),
        "items": len(job.eligible_V) - FIRST_INDEX,
        "items_eligible": int(job.eligible_V.sum()),
        "eligible_unknown": 0 if eligible is None else len(eligible) - int(job.eligible_V.sum()),
    }
