"""A raw interaction log with known structure and known defects, for demos and tests.

Users have an interest in a few categories that drifts day by day; items of a category are popular by
Zipf's law; about half of what is shown follows from the item clicked last; clicks depend on the
features. The laws are in `_click_probability` and `_shown`; the defects in featurize/defects.py.

Letters: U users, I items, C categories, S successors of an item, A users active on a day, N events,
B recently shown items, T steps of a user-day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize import defects
from infra.errors import UsageError

DEVICES = ("phone", "tablet", "desktop", "tv")
CHANNELS = ("search", "home", "mail", "push")
COUNTRIES = ("de", "fr", "us", "br", "in", "jp", "ng", "se")
SEGMENTS = ("student", "family", "professional", "senior")
TAGS = ("new", "sale", "classic", "limited", "local", "imported", "award", "bulk")

LOG_FIELDS = ("device", "country", "age", "price", "channel")

_DAY_MS = 86_400_000
_SUCCESSOR_SHARE = 0.5  # of what is shown after a user's first click
_DRIFT = 0.06  # share of the way to the interest's destination covered in a day
_EVENTS_LEAST, _EVENTS_MOST = 8, 14  # of an active user-day
_SEGMENT_AGES = (22, 37, 45, 67)
_DEVICE_SHARES = np.array([0.5, 0.12, 0.28, 0.1])  # of favourites
_CHANNEL_SHARES = np.array([0.35, 0.4, 0.1, 0.15])
_INTERCEPT = -0.75  # brings clicks to about 40 % of what is shown

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Users:
    segment_U: Ints
    age_U: Ints
    country_U: Ints
    joined_U: Ints  # days before the log's start
    device_U: Ints  # the favourite
    activity_U: Floats  # chance of being active on a day
    interest_UC: Floats  # on the first day
    heading_UC: Floats  # where the interest drifts to
    taste_U: Floats  # log-odds of a click that are the user's own

    def interest(self, day: int) -> Floats:
        left = (1 - _DRIFT) ** day
        return left * self.interest_UC + (1 - left) * self.heading_UC


@dataclass(frozen=True)
class _Items:
    shelf_I: Ints  # items ordered by (category, popularity rank): position -> item
    bounds_C: Ints  # category c stands at shelf positions bounds_C[c] .. bounds_C[c + 1] - 1
    category_I: Ints
    successors_IS: Ints
    launched_I: Ints  # day from which on the item is shown
    tags_I: list[list[str]]
    quality_I: Floats
    price_I: Floats


@dataclass(frozen=True)
class _Log:
    """The clean events in the order of (time, step of the user's day)."""

    time_N: Ints  # milliseconds since the log's start
    step_N: Ints
    user_N: Ints
    item_N: Ints
    clicked_N: NDArray[np.bool_]
    device_N: Ints
    channel_N: Ints
    price_N: Floats


def simulate(
    out: Path, *, users: int, items: int, days: int, seed: int, start: date = date(2026, 1, 1)
) -> dict[str, Any]:
    """Write `events/DATE/part-*`, `items.jsonl`, `users.jsonl` and, last, `truth.json` under `out`.

    The same arguments give the same bytes. Returns what `truth.json` says: the physical rows, the
    events that a correct reader accepts, and every defect, in all and per arrival date.
    UsageError: `out` is not empty, or a count is too small (3 days, 1 user, 10 items at least).
    """
    for name, value, least in (("users", users, 1), ("items", items, 10), ("days", days, 3), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"simulate: {name} is {value}; it must be at least {least}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"simulate: {out} exists and is not an empty directory; name a new one")
    rng = np.random.default_rng(seed)
    categories = min(12, items // 5)
    people = _draw_users(users, categories, rng)
    goods = _draw_items(items, categories, days, rng)
    log = _play(people, goods, days, rng)
    missing = {name: defects.missing(name, len(log.time_N), rng) for name in LOG_FIELDS}
    lines = defects.plan(log.time_N // _DAY_MS, log.time_N % _DAY_MS / _DAY_MS, days, rng)

    out.mkdir(parents=True, exist_ok=True)
    _write_items(out / "items.jsonl", goods, rng)
    _write_users(out / "users.jsonl", people, rng)
    defects.write(out / "events", lines, lambda take: _rows(log, people, missing, take, start), start, days, rng)
    kept = lines.accepted()
    truth = {"seed": seed, "users": users, "items": items, "days": days, "start": start.isoformat()}
    truth |= defects.account(lines, start, days)
    truth |= {
        "clicks": int(log.clicked_N[kept].sum()),
        "missing": {name: int((state_N[kept] != defects.PRESENT).sum()) for name, state_N in missing.items()},
        "users_seen": len(np.unique(log.user_N[kept])),
        "items_seen": len(np.unique(log.item_N[kept])),
    }
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _zipf(count: int) -> Floats:
    weight = 1.0 / np.arange(1, count + 1)
    return weight / weight.sum()


def _popularity(bounds_C: Ints) -> Floats:
    """Chance of each shelf position within its category; a category's chances sum to 1."""
    return np.concatenate([_zipf(size) for size in np.diff(bounds_C)])


def _draw_users(users: int, categories: int, rng: np.random.Generator) -> _Users:
    segment_U = rng.integers(0, len(SEGMENTS), users)

    def interest() -> Floats:
        """A Dirichlet draw per user around the segment's mean; its concentration of 2 leaves few categories."""
        mean_UC = rng.dirichlet(np.ones(categories), len(SEGMENTS))[segment_U]
        weight_UC = rng.standard_gamma(2.0 * mean_UC) + 1e-3
        return weight_UC / weight_UC.sum(axis=1, keepdims=True)

    country_U = rng.choice(len(COUNTRIES), users, p=_zipf(len(COUNTRIES)))
    joined_U = rng.exponential(400, users).astype(np.int64)
    taste_U = rng.normal(0, 0.3, len(COUNTRIES))[country_U] + 0.15 * np.log1p(joined_U)
    return _Users(
        segment_U=segment_U,
        age_U=np.clip(rng.normal(np.array(_SEGMENT_AGES)[segment_U], 6), 16, 95).astype(np.int64),
        country_U=country_U,
        joined_U=joined_U,
        device_U=rng.choice(len(DEVICES), users, p=_DEVICE_SHARES),
        activity_U=np.clip(rng.lognormal(np.log(0.42), 0.9, users), 0.03, 0.95),
        interest_UC=interest(),
        heading_UC=interest(),
        taste_U=taste_U - taste_U.mean(),
    )


def _draw_items(items: int, categories: int, days: int, rng: np.random.Generator) -> _Items:
    shelf_I = rng.permutation(items)
    bounds_C = np.arange(categories + 1) * items // categories
    category_I, launched_I = np.empty(items, np.int64), np.zeros(items, np.int64)
    category_I[shelf_I] = np.repeat(np.arange(categories), np.diff(bounds_C))
    new = rng.random(items) < 0.1
    launched_I[new] = rng.integers(1, days, int(new.sum()))
    launched_I[shelf_I[bounds_C[:-1]]] = 0  # no category is ever empty
    tags_I = [[TAGS[t] for t in rng.choice(len(TAGS), count, replace=False)] for count in rng.integers(0, 4, items)]
    worth = dict(zip(TAGS, rng.normal(0, 0.5, len(TAGS)), strict=True))
    appeal_I = np.array([sum(worth[tag] for tag in tags) for tags in tags_I]) + rng.normal(0, 0.8, items)
    # Centred by what is shown, not by item, so that few popular items cannot shift the rate of clicks.
    shown_I = np.empty(items)
    shown_I[shelf_I] = _popularity(bounds_C) / categories
    dearness_I = rng.normal(0, 0.8, items)
    return _Items(
        shelf_I=shelf_I,
        bounds_C=bounds_C,
        category_I=category_I,
        successors_IS=np.stack([_successors(i, category_I[i], shelf_I, bounds_C, rng) for i in range(items)]),
        launched_I=launched_I,
        tags_I=tags_I,
        quality_I=np.round(3 + (appeal_I - shown_I @ appeal_I) / appeal_I.std(), 2),
        price_I=np.exp(3 + dearness_I - shown_I @ dearness_I),
    )


def _successors(item: int, category: int, shelf_I: Ints, bounds_C: Ints, rng: np.random.Generator) -> Ints:
    """3 to 5 other items of the category, for half of the items one of them foreign; cycled to width 5."""
    first, end = bounds_C[category], bounds_C[category + 1]
    own = shelf_I[first:end]
    own = own[own != item]
    chosen = rng.choice(own, min(len(own), int(rng.integers(3, 6))), replace=False)
    if rng.random() < 0.5:
        foreign = rng.integers(0, len(shelf_I) - (end - first))
        chosen[-1] = shelf_I[foreign if foreign < first else foreign + end - first]
    return np.resize(chosen, 5)


class _Catalogue:
    """What can be shown on one day: by category, in proportion to Zipf's weights."""

    def __init__(self, items: _Items, day: int) -> None:
        self.items = items
        self.on_sale_I = items.launched_I <= day
        weight_I = _popularity(items.bounds_C) * self.on_sale_I[items.shelf_I]
        self.cumulated = np.concatenate([[0.0], np.cumsum(weight_I)])

    def draw(self, category_A: Ints, rng: np.random.Generator) -> Ints:
        first_A, end_A = self.items.bounds_C[category_A], self.items.bounds_C[category_A + 1]
        low_A, high_A = self.cumulated[first_A], self.cumulated[end_A]
        point_A = low_A + rng.random(len(category_A)) * (high_A - low_A)
        position_A = np.searchsorted(self.cumulated, point_A, side="right") - 1
        return self.items.shelf_I[np.clip(position_A, first_A, end_A - 1)]


def _shown(catalogue: _Catalogue, interest_AC: Floats, last_A: Ints, recent_AB: Ints, rng: np.random.Generator) -> Ints:
    """The next item of each user: a successor of the item clicked last, or an item of their interest.

    What was shown just before gives way to another item of their interest (once: it may recur).
    """
    cumulated_AC = np.cumsum(interest_AC, axis=1)

    def of_interest() -> Ints:
        point_A1 = rng.random((len(last_A), 1)) * cumulated_AC[:, -1:]
        return catalogue.draw((point_A1 >= cumulated_AC[:, :-1]).sum(axis=1), rng)

    successors_AS = catalogue.items.successors_IS[last_A]
    next_A = successors_AS[np.arange(len(last_A)), rng.integers(0, successors_AS.shape[1], len(last_A))]
    follow_A = (last_A >= 0) & catalogue.on_sale_I[next_A] & (rng.random(len(last_A)) < _SUCCESSOR_SHARE)
    item_A = np.where(follow_A, next_A, of_interest())
    again_A = (recent_AB == item_A[:, None]).any(axis=1)
    return np.where(again_A, of_interest(), item_A)


def _play(users: _Users, items: _Items, days: int, rng: np.random.Generator) -> _Log:
    """All days of all users; within a day, step by step over the active users together."""
    count = len(users.segment_U)
    last_U = np.full(count, -1)
    recent_UB = np.full((count, 6), -1)
    comfort = rng.normal(0, 0.7, (len(DEVICES), len(CHANNELS)))
    comfort -= _DEVICE_SHARES @ comfort @ _CHANNEL_SHARES
    thrift = rng.permutation([-0.3, 0.2, 0.7, 1.2])  # how much each segment minds a high price
    steps: list[_Log] = []
    for day in range(days):
        interest_UC, catalogue = users.interest(day), _Catalogue(items, day)
        price_I = np.round(items.price_I * rng.choice([1.0, 0.75], len(items.price_I), p=[0.85, 0.15]), 2)
        active_A = np.flatnonzero(rng.random(count) < users.activity_U)
        length_A = rng.integers(_EVENTS_LEAST, _EVENTS_MOST + 1, len(active_A))
        time_AT = day * _DAY_MS + _times(len(active_A), rng)
        stray_A = rng.random(len(active_A)) < 0.2
        device_A = np.where(stray_A, rng.integers(0, len(DEVICES), len(active_A)), users.device_U[active_A])
        for step in range(_EVENTS_MOST):
            on = length_A > step
            user, device = active_A[on], device_A[on]
            item = _shown(catalogue, interest_UC[user], last_U[user], recent_UB[user], rng)
            channel = rng.choice(len(CHANNELS), len(user), p=_CHANNEL_SHARES)
            context = comfort[device, channel] + users.taste_U[user]
            dearness = (np.log(price_I[item]) - 3) / 0.8
            context -= thrift[users.segment_U[user]] * dearness
            chance = _click_probability(items, interest_UC[user], last_U[user], item, context)
            clicked = rng.random(len(user)) < chance
            last_U[user[clicked]] = item[clicked]
            recent_UB[user, step % recent_UB.shape[1]] = item
            at = np.full(len(user), step)
            steps.append(_Log(time_AT[on, step], at, user, item, clicked, device, channel, price_I[item]))
    whole = {f.name: np.concatenate([getattr(part, f.name) for part in steps]) for f in fields(_Log)}
    order_N = np.lexsort((whole["step_N"], whole["time_N"]))
    return _Log(**{name: column[order_N] for name, column in whole.items()})


def _times(active: int, rng: np.random.Generator) -> Ints:
    """Milliseconds of the day, rising along a row: about a minute apart, 2 % of them ties."""
    gap_AT = np.minimum(rng.exponential(60_000, (active, _EVENTS_MOST)), 600_000).astype(np.int64)
    gap_AT[rng.random(gap_AT.shape) < 0.02] = 0
    after_AT = np.cumsum(gap_AT, axis=1)
    return rng.integers(0, _DAY_MS - after_AT[:, -1:], (active, 1)) + after_AT


def _click_probability(items: _Items, interest_AC: Floats, last_A: Ints, item_A: Ints, context_A: Floats) -> Floats:
    """sigmoid(affinity of the user to the category + successor bonus + quality + context).

    The context holds device × channel, price × segment and the user's own inclination.
    """
    row_A = np.arange(len(item_A))
    affinity_A = interest_AC[row_A, items.category_I[item_A]] / interest_AC.max(axis=1)
    follows_A = (items.successors_IS[last_A] == item_A[:, None]).any(axis=1) & (last_A >= 0)
    logit_A = _INTERCEPT + 2.0 * (affinity_A - 0.6) + 1.2 * (follows_A - 0.4)
    logit_A += 0.8 * (items.quality_I[item_A] - 3) + context_A
    return 1 / (1 + np.exp(-logit_A))


def _write_side(
    path: Path, rows: list[dict[str, Any]], features: dict[str, list[Any]], rng: np.random.Generator
) -> None:
    for name, values in features.items():
        for row, value, state in zip(rows, values, defects.missing(name, len(rows), rng).tolist(), strict=True):
            defects.put(row, name, value, state)
    path.write_text("".join(defects.dump(row) + "\n" for row in rows), encoding="utf-8")


def _write_items(path: Path, items: _Items, rng: np.random.Generator) -> None:
    features = {
        "category": [f"c{c}" for c in items.category_I],
        "tags": items.tags_I,
        "quality": items.quality_I.tolist(),
    }
    _write_side(path, [{"item_id": f"i{i}"} for i in range(len(items.tags_I))], features, rng)


def _write_users(path: Path, users: _Users, rng: np.random.Generator) -> None:
    features = {"segment": [SEGMENTS[s] for s in users.segment_U], "joined": users.joined_U.tolist()}
    _write_side(path, [{"user_id": f"u{u}"} for u in range(len(users.segment_U))], features, rng)


def _rows(
    log: _Log, users: _Users, missing: dict[str, NDArray[np.int8]], take: Ints, start: date
) -> Iterator[dict[str, Any]]:
    """The events numbered `take` as they are logged; the same event always gives the same row."""
    epoch_ms = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) * 1000
    user = log.user_N[take]
    values = {
        "device": [DEVICES[d] for d in log.device_N[take]],
        "country": [COUNTRIES[c] for c in users.country_U[user]],
        "age": users.age_U[user].tolist(),
        "price": log.price_N[take].tolist(),
        "channel": [CHANNELS[c] for c in log.channel_N[take]],
    }
    features = [(name, values[name], missing[name][take].tolist()) for name in LOG_FIELDS]
    heads = zip(
        take.tolist(),
        user.tolist(),
        log.item_N[take].tolist(),
        (log.time_N[take] + epoch_ms).tolist(),
        log.clicked_N[take].tolist(),
        strict=True,
    )
    for i, (number, who, item, time, clicked) in enumerate(heads):
        row: dict[str, Any] = {
            # Zero-padded, so that (time, event_id) keeps the order of events at the same time.
            "event_id": f"e{number:09d}",
            "user_id": f"u{who}",
            "item_id": f"i{item}",
            "time": time,
            "event": "click" if clicked else "impression",
        }
        for name, column, state in features:
            defects.put(row, name, column[i], state[i])
        yield row
