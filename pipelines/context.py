"""One command's view of a workspace: recipe, lake, ledger, and the sessions that its stages share.

Spark and Ray are started by the first stage that needs them, and Spark is stopped before training, so
that the two never hold memory at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from featurize.contract import Contract
from featurize.pseudonyms import UserKeys
from featurize.user_keys import KEY_ID, check_key, stored_key_id
from infra.config import digest
from infra.errors import UsageError
from infra.lake import Lake
from infra.ledger import REBUILT, Ledger, Published, code_version, key_of
from infra.lock import WorkspaceLock
from pipelines.progress import Progress
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from evaluate.publish.registry import Registry

MODEL_STAGES = ("train", "evaluate", "register", "promote")
"""The stages after the data: their inputs change when data is made again, so nothing else makes them again."""

Work = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Does a unit's work and returns (outputs, report)."""


@dataclass
class Step:
    """What became of one unit in this command."""

    unit: str
    date: str
    status: str
    """published (by this command) or skipped (it was published before)."""
    outputs: Mapping[str, Any]
    report: Mapping[str, Any]
    seconds: float


@dataclass
class Context:
    """Open it with `with`; it closes the sessions it started."""

    recipe: Recipe
    contract: Contract
    progress: Progress
    first: str | None = None
    """--from: the first arrival to ingest."""
    last: str | None = None
    """--to: the last arrival to ingest."""
    only: str | None = None
    """The one stage that may do work (`logs2rec stage`); None: all."""
    rebuild: bool = False
    """--rebuild: data stages do their work again, in full, also where it is published."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    steps: list[Step] = field(default_factory=list)
    user_keys: UserKeys | None = None
    """Those that the command goes by, once it has asked for them."""

    def __post_init__(self) -> None:
        self.workspace: Path = self.recipe.workspace
        self.lake = Lake(self.workspace / "lake")
        self.ledger = Ledger(self.lake)
        self._spark: tuple[ExitStack, SparkSession] | None = None
        self._ray: ExitStack | None = None
        self._store: tuple[ExitStack, Registry] | None = None
        self._lock = WorkspaceLock(self.workspace)

    def __enter__(self) -> Context:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_spark()
        if self._ray is not None:
            self._ray.close()
        self._lock.release()
        self.progress.__exit__(kind, error, trace)
        if self._store is not None:  # last, and with the error: the store explains its own
            self._store[0].__exit__(kind, error, trace)

    def spark(self) -> SparkSession:
        """The Spark session, started on first use."""
        if self._spark is None:
            from infra.spark import session

            self.progress.note("starting Spark")
            stack = ExitStack()
            self._spark = stack, stack.enter_context(session(self.recipe.spark, f"logs2rec {self.recipe.name}"))
            self.progress.note(self.progress.current)
        return self._spark[1]

    def stop_spark(self) -> None:
        """Stop Spark if it runs."""
        if self._spark is not None:
            self._spark[0].close()
            self._spark = None

    def ray(self) -> None:
        """Connect to Ray, once."""
        if self._ray is None:
            from infra.cluster import cluster

            self.stop_spark()
            self.progress.note("starting Ray")
            self._ray = ExitStack()
            self._ray.enter_context(cluster(self.recipe.ray))
            self.progress.note(self.progress.current)

    def store(self) -> Registry:
        """The MLflow store, opened on first use."""
        if self._store is None:
            from evaluate.publish.registry import registry

            stack = ExitStack()
            opened = registry(self.recipe.tracking, self.workspace, self.recipe.name)
            self._store = stack, stack.enter_context(opened)
        return self._store[1]

    def metadata(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What every commit of a stage carries."""
        found: dict[str, Any] = {
            "logs2rec.runId": self.run_id,
            "logs2rec.stage": stage,
            "logs2rec.codeVersion": code_version(),
            "logs2rec.contract": digest(self.contract),
            "logs2rec.inputs": dict(inputs),
        }
        if (key := stored_key_id(self.lake)) is not None:
            found[KEY_ID] = key  # whose pseudonyms the rows hold
        return found

    def publish(self, unit: str, date: str, inputs: Mapping[str, Any], config: Any, work: Work) -> Published:
        """Do the unit's work unless its key is in the ledger, and publish what it returns."""
        key = key_of(unit, date, inputs, config)
        found = self._find(unit, key)
        if found is None:
            self.may(unit)
            if self.hold():
                found = self._find(unit, key)  # whoever held the lock before may have published it
        if found is not None:
            self.done(found, "skipped")
            return found
        self.progress.start(unit)
        started = perf_counter()
        outputs, report = work()
        row = self.ledger.publish(
            unit=unit,
            date=date,
            inputs=self.inputs_of(unit, key, inputs),
            config=config,
            outputs=outputs,
            report=report,
            seconds=round(perf_counter() - started, 3),
            run_id=self.run_id,
        )
        self.done(row, "published")
        return row

    def _find(self, unit: str, key: str) -> Published | None:
        """What is published under the key and need not be made again."""
        found = self.ledger.find(key)
        return None if found is not None and self.again(unit, found) else found

    def rebuilds(self, unit: str) -> bool:
        """Whether --rebuild asks for the unit: data stages only, and of these the one that `only` names."""
        stage = unit.partition(":")[0]
        return self.rebuild and stage not in MODEL_STAGES and self.only in (None, stage)

    def again(self, unit: str, found: Published) -> bool:
        """Whether a published output is to be made again; what this command itself has published is not."""
        return self.rebuilds(unit) and found.run_id != self.run_id

    def inputs_of(self, unit: str, key: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs to publish with: an output that is made again needs a key of its own in the ledger."""
        if self.rebuilds(unit) and self.ledger.find(key) is not None:
            return {**inputs, REBUILT: {"of": key, "run": self.run_id}}
        return inputs

    def hold(self) -> bool:
        """Take the workspace for work; True if it was not held before. UsageError when another command has it, or
        had it and changed the user keys."""
        held = self._lock.hold(f"run {self.run_id}")
        if held and self.user_keys is not None:
            check_key(self.lake, self.user_keys)  # a re-key may have ended since they were compared
        return held

    def may(self, unit: str) -> None:
        """Raise UsageError when `logs2rec stage` asked for another stage and this one is not published yet."""
        stage = unit.partition(":")[0]
        if self.only is not None and stage != self.only:
            raise UsageError(
                f"stage {self.only}: needs {unit}, which is not published for these dates and settings; "
                f"run `logs2rec stage {stage}` or `logs2rec run` first"
            )

    def done(self, row: Published, status: str) -> None:
        """Note what became of a unit."""
        self.steps.append(Step(row.unit, row.date, status, row.outputs, row.report, row.seconds))
        self.progress.finish(f"{row.unit} {row.date}", status, row.seconds)
