"""What a study's page draws: how far walks on the sphere lead, what reverse steps find, how models stand without some
of their fields, and the terms of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from evaluate.missingness import scenario
from evaluate.publish.plots import Trend
from evaluate.publish.study_page import unit
from evaluate.settings import ImpressionSettings
from pipelines.ranked import AS_PLANTED
from pipelines.replicate import ReplicatedModel
from pipelines.study_plan import Row, Table
from train.configs import DimeRecConfig

Measured = Callable[[Row], list[dict[str, Any]]]
"""The cell.json of each seed of a row that was run."""


def plots(tables: Sequence[Table], measured: Measured) -> list[Trend]:
    """All of them, of the cells that are there."""
    return [
        *_corruptions(tables),
        *_walks(tables, measured),
        *_robustness(tables, measured),
        *_losses(tables, measured),
    ]


def _losses(tables: Sequence[Table], measured: Measured) -> list[Trend]:
    """The terms of a trained row's loss over its epochs, where a table asks for them."""
    rows = [row for table in tables if table.losses for row in table.rows if row.name == row.planned]
    found = [(row, measured(row)) for row in rows]
    return [plot for row, cells in found if cells and (plot := _terms(row.name, cells[0])) is not None]


def _corruptions(tables: Sequence[Table]) -> list[Trend]:
    """How far walks on the sphere lead away from their target: a plain one, and each that a row trains with."""
    configs = [row.cells[0].settings.config for table in tables for row in table.rows]
    walks = [c for c in configs if isinstance(c, DimeRecConfig) and c.process != "gaussian"]
    found = {_walk(config): _corruption(config) for config in walks}
    return [_plain_corruption(), *found.values()] if found else []


def _walks(tables: Sequence[Table], measured: Measured) -> list[Trend]:
    """What a row finds that stops after some of its reverse steps: a plot for each column that the table compares."""
    found = []
    for table in tables:
        sequential = [row for row in table.rows if isinstance(row.cells[0].settings, ReplicatedModel)]
        for whole in (row for row in sequential if row.name == row.planned):
            rows = [row for row in table.rows if row.planned == whole.name and _same_but_for_stop(row, whole)]
            by_stop = {_stop(row): {c["seed"]: c["figures"] for c in measured(row)} for row in rows}
            steps = sorted(stop for stop, of in by_stop.items() if of)
            seeds = sorted(set.intersection(*(set(by_stop[stop]) for stop in steps))) if steps else []
            lines = [
                (column, values)
                for column in table.compare
                if (values := [_mean(column, [by_stop[stop][seed] for seed in seeds]) for stop in steps])
                and all(map(math.isfinite, values))
            ]
            if len(steps) > 1 and lines:
                words = f"{table.data}: what stands after some of the steps, mean over {len(seeds)} seeds."
                found.append(Trend(f"Along the reverse steps: {whole.name}", words, steps, lines, axis="step"))
    return found


def _mean(column: str, figures: Sequence[Mapping[str, Any]]) -> float:
    """NaN where a cell has no such figure, or there is no cell."""
    name, metric = column.split("/")
    values = [of.get(name, {}).get(metric) for of in figures]
    return unit(column) * fmean(values) if values and None not in values else math.nan


def _robustness(tables: Sequence[Table], measured: Measured) -> list[Trend]:
    """AUC and UAUC of every row from the samples as planted to the highest rate, by pattern."""
    found = []
    for table in tables:
        asked = [row.cells[0].settings.evaluation for row in table.rows]
        tried = [of.missingness for of in asked if isinstance(of, ImpressionSettings) and of.missingness is not None]
        rates = sorted(set.intersection(*(set(of.rates) for of in tried))) if len(tried) == len(asked) else []
        for pattern in tried[0].patterns if rates else ():
            sets = [AS_PLANTED, *(scenario(pattern, rate) for rate in rates)]
            for metric, name in (("auc", "AUC"), ("uauc", "UAUC")):
                lines = []
                for row in table.rows:
                    figures = [cell["figures"] for cell in measured(row)]
                    values = [_mean(f"{of}/{metric}", figures) for of in sets]
                    if all(map(math.isfinite, values)):
                        lines.append((row.name, values))
                if lines:
                    words = "Of the test samples, by the percent of their cells that is removed; mean over the seeds."
                    title = f"{table.title}: {name}, {pattern.replace('_', ' ')}"
                    percents = [0, *(round(100 * rate) for rate in rates)]
                    found.append(Trend(title, words, percents, lines, axis="percent", frame=f"{name}, percent"))
    return found


def _same_but_for_stop(row: Row, whole: Row) -> bool:
    def others(one: Row) -> Mapping[str, Any]:
        return one.cells[0].settings.evaluation.model_dump(exclude={"stop_after"})

    return others(row) == others(whole)


def _stop(row: Row) -> int:
    """The reverse steps that it makes; 0 of a model that makes none."""
    settings = row.cells[0].settings
    assert isinstance(settings, ReplicatedModel)
    steps = settings.evaluation.steps
    whole = getattr(settings.config, "steps", 0) if steps is None else steps
    stop = settings.evaluation.stop_after
    return int(whole if stop is None else stop)


def _terms(name: str, cell: Mapping[str, Any]) -> Trend | None:
    """None of a model without a history of losses; of a training in stages the last one's epochs."""
    past = cell["figures"].get("losses", [])
    terms = sorted(set(past[-1]) - {"epoch", "loss"}) if past else []
    shown = [entry for entry in past if set(terms) <= set(entry)]
    if not terms:
        return None
    lines = [(term.removeprefix("loss_"), [entry[term] for entry in shown]) for term in terms]
    words = "Mean over the epoch's training targets, each term without its weight."
    epochs = [int(entry["epoch"]) for entry in shown]
    return Trend(f"Losses in training: {name}, seed {cell['seed']}", words, epochs, lines)


def _plain_corruption() -> Trend:
    schedule, steps, width = "linear", 32, 64
    lines = [(name, _cosines(schedule, steps, width, name == "as printed", 1.0)) for name in ("ours", "as printed")]
    words = (
        "Mean cosine of the target and of what the denoiser is shown, by step. As printed the walk passes the target's "
        "antipode at step 3 and comes back; ours falls from step to step (train/diffusion/geodesic.py)."
    )
    title = f"Corruption on the sphere: schedule {schedule}, D = {width}, T = {steps}"
    return Trend(title, words, [*range(steps)], lines, axis="step")


def _corruption(config: DimeRecConfig) -> Trend:
    def line(signal: float) -> list[float]:
        return _cosines(config.schedule, config.steps, config.width, config.process == "literal", signal)

    lines = [("as it is trained", line(config.signal))]
    if config.signal < 1:
        lines.append(("all of the signal", line(1.0)))
    words = "Mean cosine of the target and of what the denoiser is shown, by step."
    return Trend(f"Corruption in training: {_walk(config)}", words, [*range(config.steps)], lines, axis="step")


def _walk(config: DimeRecConfig) -> str:
    shape = f"schedule {config.schedule}, D = {config.width}, T = {config.steps}, signal {config.signal:g}"
    return f"{shape}, as printed" if config.process == "literal" else shape


def _cosines(schedule: str, steps: int, width: int, literal: bool, signal: float) -> list[float]:
    from train.diffusion.geodesic import GeodesicDiffusion
    from train.diffusion.schedules import alphas_cumprod

    walk = GeodesicDiffusion(alphas_cumprod(schedule, steps, signal), literal)
    cosines: list[float] = walk.mean_cosine(width).tolist()
    return cosines
