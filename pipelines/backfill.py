"""Past days, one after the other: each as `logs2rec run --to DAY` would have made it, as far as one stage.

Data comes first, day by day, then models, day by day, so that Spark and Ray never run beside each other.
A day that is published is skipped, so a command that died goes on where it was when it is given again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from infra.errors import DataRefused, EmptySplit, Logs2RecError, UsageError
from pipelines.context import MODEL_STAGES, Context, Step
from pipelines.data import Data
from pipelines.data_stages import run_data
from pipelines.event_stages import arrivals_of
from pipelines.model_stages import run_models

Tell = Callable[[str, Sequence[Step]], None]
"""Called with a day and its units as soon as they are published."""


def backfill(ctx: Context, first: str, last: str, stage: str | None, tell: Tell) -> None:
    """Every arrival from `first` to `last`, up to `stage` (None: all data stages, no training).

    With `ctx.rebuild` the units of `stage` (None: of all data stages) are made again for each of these days,
    published or not; that starts over when it is given again. Raises what the day that fails raises, with the
    day in front; the days before it stay published. A day without anything to train, validate or test on (a log's
    first ones) is left out with a word, unless all of them are such.
    """
    if not ctx.contract.dated:
        raise UsageError(
            f"backfill: the contract {ctx.contract.name!r} has no {{date}} in source.path, so there are no days; "
            "use `logs2rec run`"
        )
    if ctx.rebuild and stage in MODEL_STAGES:
        raise UsageError(f"--rebuild is for data stages, and {stage} follows them by itself; name a data stage or none")
    ctx.first, ctx.last = None, None
    known = arrivals_of(ctx)
    days = [d for d in known if first <= d <= last]
    if not days:
        raise DataRefused(f"no arrival between {first} and {last} below {ctx.recipe.data}; check --from and --to")
    if ctx.rebuild:
        _prepare(ctx, [d for d in known if d < days[0]])
        ctx.first = days[0]
    data: dict[str, Data] = {}
    empty: EmptySplit | None = None
    for day in days:
        try:
            with _day(ctx, day, tell):
                data[day] = _data(ctx, stage)
        except EmptySplit as error:  # a log's first days have nothing in front of them
            empty = error
            ctx.only = None
            ctx.progress.console.print(f"{error}; going on with the next day", markup=False)
    if empty is not None and not data:
        raise empty
    ctx.stop_spark()
    if stage in MODEL_STAGES:
        for day in data:
            with _day(ctx, day, tell):
                _models(ctx, data[day], stage)


def _prepare(ctx: Context, earlier: Sequence[str]) -> None:
    """What lies before the days to make again is published if it is not, and stays as it is."""
    if earlier:
        ctx.last, ctx.rebuild = earlier[-1], False
        run_data(ctx, until="events")
        ctx.rebuild = True


def _data(ctx: Context, stage: str | None) -> Data:
    """The day's data stages; of a rebuild of one stage, those before it first, as far as they are missing."""
    until = None if stage in MODEL_STAGES else stage
    if not ctx.rebuild or stage is None:
        return run_data(ctx, until=until)
    ctx.rebuild = False
    run_data(ctx, until=until)
    ctx.rebuild, ctx.only = True, stage
    data = run_data(ctx, until=until)
    ctx.only = None
    return data


def _models(ctx: Context, data: Data, stage: str) -> None:
    """The day's model stages in order up to `stage`."""
    for each in MODEL_STAGES[: MODEL_STAGES.index(stage) + 1]:
        ctx.only = each
        run_models(ctx, data)
    ctx.only = None


@contextmanager
def _day(ctx: Context, day: str, tell: Tell) -> Iterator[None]:
    """Carry out a day's work as of that day, and tell what became of its units."""
    ctx.last, before = day, len(ctx.steps)
    try:
        yield
    except Logs2RecError as error:
        raise type(error)(f"backfill of {day}: {error}") from error
    units: dict[str, Step] = {}
    for step in ctx.steps[before:]:
        if step.date == day and (step.unit not in units or step.status != "skipped"):
            units[step.unit] = step
    tell(day, list(units.values()))
