"""A raw interaction log with known structure and known defects, for demos and tests.

The world and its laws are in featurize/world.py and featurize/behaviour.py, users who are not people in
featurize/machines.py; what goes wrong is in featurize/clocks.py, missingness.py and defects.py; the files
are written by featurize/raw_log.py. This file puts them together and counts what was planted.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from featurize import defects, missingness, raw_log
from featurize.behaviour import DAY_MS, Log, play
from featurize.clocks import UNIT_NAMES, read_clocks, whole_seconds
from featurize.machines import BOT, HOT, Cast, cast, play_bots, play_hot
from featurize.missingness import NOT_AT_RANDOM
from featurize.oracle import oracle
from featurize.world import Ints, draw_world, side_features
from infra.errors import UsageError

BOTS = 0.005
"""Share of the users who are bots, if the caller names none."""


def simulate(
    out: Path,
    *,
    users: int,
    items: int,
    days: int,
    seed: int,
    start: date = date(2026, 1, 1),
    bots: float = BOTS,
    hot_user: float = 0.0,
    schema_change: int | None = None,
) -> dict[str, Any]:
    """Write `events/DATE/part-*`, `items.jsonl`, `users.jsonl` and, last, `truth.json` under `out`.

    The same arguments give the same bytes. `bots` is the share of users who are bots (from 200 users on
    at least one, unless it is 0), `hot_user` the share of all events that one user has, `schema_change`
    the number of the first arrival day whose files have the new schema (2 to `days`).

    Returns what `truth.json` says: the physical rows, the events that a correct reader accepts, every
    defect, in all and per arrival date, and what an oracle reaches. UsageError: `out` is not empty, or an
    argument is out of range.
    """
    _check(out, users, items, days, seed, bots, hot_user, schema_change)
    rng = np.random.default_rng(seed)
    # Streams of their own, so that one kind of defect does not shift the draws of another.
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)]
    for_machines, for_clocks, for_fields, for_lines, for_sides = streams
    world = draw_world(users, items, days, rng)
    roles = cast(users, bots, hot_user > 0, for_machines)
    log = Log.joined([play(world, roles.humans, rng), *play_bots(world, roles, for_machines)])
    log = Log.joined([log, *play_hot(world, roles, log, hot_user, for_machines)])
    log = Log.joined([dataclasses.replace(log, time_N=whole_seconds(log.time_N, log.device_N))])
    clocks = read_clocks(log.time_N, log.user_N, log.device_N, users, for_clocks)
    groups = missingness.groups_of(world, log)
    raw = raw_log.RawLog(
        world=world,
        log=log,
        clocks=clocks,
        missing={
            name: missingness.draw_by_group(name, groups[name], for_fields)
            if name in NOT_AT_RANDOM
            else missingness.draw_at_random(name, len(log.time_N), for_fields)
            for name in (*raw_log.LOG_FIELDS, raw_log.ADDED)
        },
        start=start,
        turn=None if schema_change is None else schema_change - 1,
        version_N=for_fields.integers(0, len(raw_log.VERSIONS), users)[log.user_N],
    )
    lines = defects.plan(log.days, clocks.days, log.time_N % DAY_MS / DAY_MS, days, for_lines, raw.turn)

    out.mkdir(parents=True, exist_ok=True)
    for name, features in side_features(world).items():
        raw_log.write_side(out / f"{name}.jsonl", f"{name[:-1]}_id", features, for_sides)
    raw_log.write_events(out / "events", raw, lines, days, for_lines)
    truth = {"seed": seed, "users": users, "items": items, "days": days, "start": start.isoformat()}
    truth |= defects.account(lines, start, days)
    truth |= _account(raw, groups, roles, *lines.accepted())
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _check(
    out: Path, users: int, items: int, days: int, seed: int, bots: float, hot_user: float, turn: int | None
) -> None:
    for name, value, least in (("users", users, 1), ("items", items, 10), ("days", days, 3), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"simulate: {name} is {value}; it must be at least {least}")
    for name, share, most in (("bots", bots, 0.5), ("hot_user", hot_user, 0.9)):
        if not 0 <= share <= most:
            raise UsageError(f"simulate: {name} is {share}; it is a share from 0 to {most}")
    if hot_user and users < 3:
        raise UsageError(f"simulate: hot_user needs other users beside it; users is {users}, make it at least 3")
    if turn is not None and not 2 <= turn <= days:
        raise UsageError(f"simulate: schema_change is {turn}; name an arrival day from 2 to {days} (days)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"simulate: {out} exists and is not an empty directory; name a new one")


def _account(raw: raw_log.RawLog, groups: dict[str, Ints], roles: Cast, event: Ints, arrival: Ints) -> dict[str, Any]:
    """What truth.json says beside the lines' fates, over accepted events and the days they arrived on."""
    log, clocks = raw.log, raw.clocks
    user, day = log.user_N[event], clocks.days[event]

    def dated(days: Ints) -> dict[str, int]:
        found, counts = np.unique(days, return_counts=True)
        pairs = zip(found.tolist(), counts.tolist(), strict=True)
        return {(raw.start + timedelta(days=number)).isoformat(): count for number, count in pairs}

    def of_users(chosen: list[int]) -> dict[str, Any]:
        mine = np.isin(user, chosen)
        return {"user_ids": [f"u{u}" for u in chosen], "events": int(mine.sum()), "arrivals": dated(arrival[mine])}

    log_missing = {name: raw.missing[name] for name in raw_log.LOG_FIELDS}
    skewed = np.flatnonzero(clocks.skew_U)
    units = np.bincount(clocks.unit_N[event], minlength=len(UNIT_NAMES)).tolist()
    return {
        "event_dates": dated(day),
        "clicks": int(log.clicked_N[event].sum()),
        **missingness.account(log_missing, groups, event),
        "users_seen": len(np.unique(user)),
        "items_seen": len(np.unique(log.item_N[event])),
        "bots": of_users(roles.of_kind(BOT)),
        "hot_user": of_users(roles.of_kind(HOT)),
        "time_units": dict(zip(UNIT_NAMES, units, strict=True)),
        "clock_skew": of_users(skewed.tolist())
        | {
            "seconds": (clocks.skew_U[skewed] // 1000).tolist(),
            "on_another_date": int((day != log.days[event]).sum()),
        },
        "schema_change": raw_log.schema_change(raw, event, arrival),
        "oracle": oracle(raw.world, log, clocks, event, roles, raw.start),
    }
