"""How well one can predict who knows the generator: hit rate and NDCG of its own chances.

The question is that of the temporal split as of the log's last arrival day d, put as the evaluation
puts it. Target: a user's first accepted click dated d; users without an accepted click before d are left
out; the history is the last `history_cap` clicks before d. Candidates: all items of accepted events; under
"history removed" without the user's history, and without the users whose target stands in it. A target
whose item nobody clicked before day d - 1 is a miss.

The oracle knows the laws, the interests and prices of the day, what is on sale, and everything that
happened to the user before d, lost rows included. It does not know the device and the channel to come, nor what
will be shown and not clicked before the first click: these are averaged over.

Letters as in featurize/behaviour.py, and A users evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from featurize.behaviour import (
    DAY_MS,
    EVENTS_LEAST,
    EVENTS_MOST,
    RECENT,
    STRAY_SHARE,
    SUCCESSOR_SHARE,
    Catalogue,
    Log,
    click_logit,
    sigmoid,
)
from featurize.clocks import Clocks
from featurize.machines import HUMAN, Cast, next_shown
from featurize.world import CHANNEL_SHARES, DEVICES, Floats, Ints, World

KS = (5, 10, 20)
HISTORY_CAP = 1000  # as sequences.history_cap is by default

_CELLS = 10_000_000  # users times items up to which every user is evaluated: some ten seconds
_BLOCK_CELLS = 100_000
_LONGER = np.minimum(1, np.arange(EVENTS_MOST, 0, -1) / (EVENTS_MOST - EVENTS_LEAST + 1))
"""Chance that a day has a step more, after 0, 1, 2, ... of them."""


@dataclass(frozen=True)
class Question:
    """One user's test target and what came before it."""

    user: int
    target: int
    history: Ints
    day: int  # the true day of the first event behind the cut
    last: int  # clicked last before it, -1: nothing
    recent_B: Ints  # shown last before it, -1 where nothing


def oracle(world: World, log: Log, clocks: Clocks, kept: Ints, cast: Cast, start: date) -> dict[str, Any]:
    """What `truth.json` says of it; `kept` are the accepted events. Figures are null where no user is left.

    With more than 10 million (user, item) pairs an even choice of the users is evaluated.
    """
    days = len(world.price_DI)
    asked = questions(log, clocks, kept, days - 1)
    most = max(1, _CELLS // len(world.items.category_I))
    chosen = asked if len(asked) <= most else [asked[i] for i in np.linspace(0, len(asked) - 1, most).astype(int)]
    candidate_I = np.zeros(len(world.items.category_I), bool)
    candidate_I[log.item_N[kept]] = True
    trained = kept[log.clicked_N[kept] & (clocks.logged_N[kept] < (days - 2) * DAY_MS)]
    known = np.isin([q.target for q in chosen], log.item_N[trained])
    ranks: dict[str, list[int]] = {"history_removed": [], "all_items": []}
    for question, score_I, trained_on in zip(chosen, _scores(world, cast, chosen), known.tolist(), strict=True):
        ranks["all_items"].append(_rank(score_I, candidate_I, question.target) if trained_on else 0)
        if question.target not in question.history:
            left_I = candidate_I.copy()
            left_I[question.history] = False
            ranks["history_removed"].append(_rank(score_I, left_I, question.target) if trained_on else 0)
    return {
        "date": (start + timedelta(days=days - 1)).isoformat(),
        "targets": len(asked),
        "evaluated": len(chosen),
        "targets_unseen_share": float((~known).mean()) if len(chosen) else None,
        **{name: _figures(np.array(of_set)) for name, of_set in ranks.items()},
    }


def questions(log: Log, clocks: Clocks, kept: Ints, day: int) -> list[Question]:
    """The targets dated `day` (0 = the log's start), by user."""
    cut, end = day * DAY_MS, (day + 1) * DAY_MS
    clicks = kept[log.clicked_N[kept]]
    clicks = clicks[np.lexsort((clicks, clocks.logged_N[clicks]))]
    before, inside = (
        clicks[(clocks.logged_N[clicks] >= low) & (clocks.logged_N[clicks] < high)]
        for low, high in ((-np.inf, cut), (cut, end))
    )
    users, first = np.unique(log.user_N[inside], return_index=True)
    histories, everything = _by_user(log, before), _by_user(log, np.arange(len(log.user_N)))
    out = []
    for user, target in zip(users.tolist(), inside[first].tolist(), strict=True):
        if user not in histories:
            continue
        own = everything[user]
        now = own[np.argmax(clocks.steady_N[own] >= cut)]
        past = own[own < now]
        clicked = past[log.clicked_N[past]]
        recent_B = np.full(RECENT, -1)
        shown = log.item_N[past[-RECENT:]]
        recent_B[: len(shown)] = shown
        out.append(
            Question(
                user=user,
                target=int(log.item_N[target]),
                history=log.item_N[histories[user][-HISTORY_CAP:]],
                day=int(log.days[now]),
                last=int(log.item_N[clicked[-1]]) if len(clicked) else -1,
                recent_B=recent_B,
            )
        )
    return out


def _by_user(log: Log, events: Ints) -> dict[int, Ints]:
    """The events of each user, in their order."""
    ordered = events[np.argsort(log.user_N[events], kind="stable")]
    users, first = np.unique(log.user_N[ordered], return_index=True)
    return dict(zip(users.tolist(), np.split(ordered, first[1:]), strict=True)) if len(users) else {}


def _scores(world: World, cast: Cast, asked: list[Question]) -> list[Floats]:
    """For each question the (I,) chances of the next click."""
    scores: list[Floats] = [np.empty(0)] * len(asked)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, question in enumerate(asked):
        groups.setdefault((int(cast.kind_U[question.user]), question.day), []).append(i)
    size = max(1, _BLOCK_CELLS // len(world.items.category_I))
    for (kind, day), members in groups.items():
        for first in range(0, len(members), size):
            block = members[first : first + size]
            if kind != HUMAN:
                score_AI = np.broadcast_to(next_shown(world, kind, day), (len(block), len(world.items.category_I)))
            else:
                some = [asked[i] for i in block]
                user_A, last_A = np.array([q.user for q in some]), np.array([q.last for q in some])
                score_AI = next_click(world, day, user_A, last_A, np.stack([q.recent_B for q in some]))
            for i, score_I in zip(block, score_AI, strict=True):
                scores[i] = score_I
    return scores


def next_click(world: World, day: int, user_A: Ints, last_A: Ints, recent_AB: Ints) -> Floats:
    """(A, I): the chance that item i is the next that each user clicks, at the start of that day.

    The sum over the day's steps of: no click so far x shown now x clicked when shown (averaged over the
    channel), made to sum to 1 for each device, and averaged over the devices. What was shown on earlier
    steps and not clicked is taken for independent of what is shown now, but for its giving way.
    """
    interest_AI, plain_AI = _before_memory(world, day, user_A, last_A)
    users, chance_AI = world.users, np.zeros(plain_AI.shape)
    for device in range(len(DEVICES)):
        clicked_AI = _clicked_when_shown(world, day, user_A, last_A, device)
        total_AI, alive_A, passed = np.zeros(plain_AI.shape), np.ones(len(user_A)), list[Floats]()
        for step, longer in enumerate(_LONGER):
            memory_AI = _in_memory(recent_AB[:, step:], plain_AI.shape)
            for passed_AI in passed[-RECENT:]:
                memory_AI = 1 - (1 - memory_AI) * (1 - passed_AI)
            shown_AI = _gives_way(plain_AI, memory_AI, interest_AI)
            total_AI += longer * alive_A[:, None] * shown_AI * clicked_AI
            passed_AI = shown_AI * (1 - clicked_AI)
            alive_A = alive_A * passed_AI.sum(axis=1)
            passed.append(passed_AI / passed_AI.sum(axis=1, keepdims=True))
        weight_A = STRAY_SHARE / len(DEVICES) + (1 - STRAY_SHARE) * (users.device_U[user_A] == device)
        chance_AI += weight_A[:, None] * total_AI / total_AI.sum(axis=1, keepdims=True)
    return chance_AI


def next_shown_to(world: World, day: int, user_A: Ints, last_A: Ints, recent_AB: Ints) -> Floats:
    """(A, I): the chance that item i is the next that behaviour.shown gives each user."""
    interest_AI, plain_AI = _before_memory(world, day, user_A, last_A)
    return _gives_way(plain_AI, _in_memory(recent_AB, plain_AI.shape), interest_AI)


def _before_memory(world: World, day: int, user_A: Ints, last_A: Ints) -> tuple[Floats, Floats]:
    """(A, I) twice: the chance of an item of interest, and of what is shown if nothing gives way."""
    items, catalogue = world.items, Catalogue(world.items, day)
    interest_AI = world.users.interest(day)[user_A][:, items.category_I] * catalogue.chances()
    successors_AS = items.successors_IS[last_A]
    follow_AS = SUCCESSOR_SHARE / successors_AS.shape[1] * (catalogue.on_sale_I[successors_AS] & (last_A >= 0)[:, None])
    plain_AI = (1 - follow_AS.sum(axis=1, keepdims=True)) * interest_AI
    for s in range(successors_AS.shape[1]):  # one at a time: an item may be listed twice
        plain_AI[np.arange(len(user_A)), successors_AS[:, s]] += follow_AS[:, s]
    return interest_AI, plain_AI


def _clicked_when_shown(world: World, day: int, user_A: Ints, last_A: Ints, device: int) -> Floats:
    """(A, I): the chance of a click on each item on a device, averaged over the channels."""
    users, count = world.users, len(world.items.category_I)
    row, item = np.divmod(np.arange(len(user_A) * count), count)
    interest_AC = users.interest(day)[user_A]
    context = users.taste_U[user_A][row]
    context -= (world.thrift_G[users.segment_U[user_A]][:, None] * world.dearness(world.price_DI[day])).ravel()
    logit = click_logit(world.items, interest_AC, row, last_A[row], item, context)
    chances = [share * sigmoid(logit + c) for share, c in zip(CHANNEL_SHARES, world.comfort_VH[device], strict=True)]
    return sum(chances, np.zeros(len(row))).reshape(len(user_A), count)


def _in_memory(recent_AB: Ints, shape: tuple[int, ...]) -> Floats:
    """(A, I): 1 where the item was shown just before, else 0."""
    memory_AI, row_A = np.zeros(shape), np.arange(shape[0])
    for recent_A in recent_AB.T:
        memory_AI[row_A[recent_A >= 0], recent_A[recent_A >= 0]] = 1
    return memory_AI


def _gives_way(plain_AI: Floats, memory_AI: Floats, interest_AI: Floats) -> Floats:
    """What is in the memory gives way to an item of interest."""
    again_A1 = (plain_AI * memory_AI).sum(axis=1, keepdims=True)
    return plain_AI * (1 - memory_AI) + again_A1 * interest_AI


def _rank(score_I: Floats, candidate_I: np.ndarray, target: int) -> int:
    """1 + candidates with a better score; ties in the order of item numbers."""
    better_I = score_I > score_I[target]
    better_I[:target] |= score_I[:target] == score_I[target]
    return 1 + int((better_I & candidate_I).sum())


def _figures(rank_A: Ints) -> dict[str, Any]:
    """Users, and HR and NDCG at each K; rank 0 is a miss."""
    figures: dict[str, Any] = {"users": len(rank_A)}
    for k in KS:
        hit_A = (rank_A > 0) & (rank_A <= k)
        gain_A = np.where(hit_A, 1 / np.log2(np.maximum(rank_A, 1) + 1), 0.0)
        figures |= {f"hr_at_{k}": float(hit_A.mean()) if len(rank_A) else None}
        figures |= {f"ndcg_at_{k}": float(gain_A.mean()) if len(rank_A) else None}
    return figures
