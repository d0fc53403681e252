"""Champion beside challenger on the day's page: figures, slices, and what their catalogues have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evaluate.decision.statistics import Interval
from evaluate.publish.report import Intervals, Section
from pipelines.context import Context
from pipelines.roles import Role

NAN = float("nan")


def compared(ctx: Context, role: str) -> Mapping[str, Any]:
    """What the gate compared, by the ledger; empty without a champion."""
    report = next((step.report for step in ctx.steps if step.unit == f"promote:{role}"), {})
    found: Mapping[str, Any] = report.get("compared", {})
    return found if "champion" in found else {}


def beside(ctx: Context, model: Mapping[str, Any]) -> list[Section]:
    """The candidate's and the champion's figures, on today's targets and catalogue, and on the common one."""
    found = compared(ctx, str(model["role"]))
    if not found:
        return []
    ours = model["metrics"][model["candidate"]]
    heads = ["metric", f"version {model['version']} (candidate)", f"version {found['champion']} (champion)"]
    rows = [[name, value, found["champion_metrics"].get(name)] for name, value in ours.items() if "/" not in name]
    primary = [name for name in ours if name.split("/")[0] in ("history_removed", "all_items")]
    rows = [[name, ours[name], found["champion_metrics"].get(name)] for name in primary] + rows
    sections = [
        Section(
            f"{model['name']}: beside the champion",
            "The champion was scored again, on the same targets, catalogue and table versions.",
            heads,
            rows,
        )
    ]
    if common := found.get("common_catalogue"):
        about = (
            f"The {common['items']:,} items that both know are the only candidates here, history removed, and only "
            "users whose target is among them count."
        )
        rows = [[name, value, common["champion"][name]] for name, value in common["candidate"].items()]
        sections.append(Section(f"{model['name']}: on the common catalogue", about, heads, rows))
    return sections


def slices(ctx: Context, model: Mapping[str, Any], role: Role, folder: str) -> Section:
    """The gate's metric of every slice: candidate and champion, or the candidate and its baselines on a first day."""
    metric = role.gate.metric
    if parts := compared(ctx, role.name).get("slices"):
        rows = [
            [part["slice"], part["users"], part["candidate"], part["champion"], *part["relative"], part["p"]]
            for part in parts
        ]
        heads = ["slice", "users", "candidate", "champion", "low", "relative", "high", "p (Holm)"]
        about = (
            f"{metric}; the relative difference with its 95 % bootstrap interval over users. A slice of "
            f"{role.gate.min_slice_users} users and more has a p-value, which is 1 unless it is below the margin."
        )
        return Section(f"{model['name']}: slices", about, heads, rows)
    table = pq.read_table(ctx.workspace / folder / "per_user.parquet").to_pandas()
    means = table[table["slice"] != ""].groupby(["slice", "model"], sort=False)["value"].agg(["mean", "size"])
    labels = [run.label for run in role.models]
    rows = [
        [name, *(_of(means, name, label, "mean") for label in labels), _of(means, name, labels[-1], "size")]
        for name in dict.fromkeys(name for name, _ in means.index)
    ]
    about = f"{metric}, mean over the users of each slice; there is no champion to compare with."
    return Section(f"{model['name']}: slices", about, ["slice", *labels, "users"], rows)


def _of(means: Any, name: str, label: str, figure: str) -> float | int | None:
    if (name, label) not in means.index:
        return None
    value = means.loc[(name, label), figure]
    return int(value) if figure == "size" else float(value)


def differences(ctx: Context, model: Mapping[str, Any], role: Role) -> list[Intervals]:
    """The relative difference to the champion, whole and by slice, against the margin."""
    found = compared(ctx, role.name)
    if not found.get("relative"):
        return []
    rows = [("all users", _interval(found["relative"]))]
    rows += [(part["slice"], _interval(part["relative"])) for part in found["slices"]]
    about = f"{role.gate.metric}: candidate over champion, less 1, with its 95 % interval over users."
    title = f"{model['name']}: against version {found['champion']}"
    return [Intervals(title, about, rows, reference=-role.gate.margin)]


def _interval(numbers: list[float | None]) -> Interval:
    low, estimate, high = (NAN if number is None else number for number in numbers)
    return Interval(low, estimate, high) if np.isfinite(estimate) else Interval(NAN, NAN, NAN)


def champion_interval(ctx: Context, role: Role) -> list[tuple[str, Interval]]:
    """The champion's mean, for the plot of the means."""
    found = compared(ctx, role.name)
    return [(f"champion, version {found['champion']}", _interval(found["champion_interval"]))] if found else []
