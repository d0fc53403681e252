"""The lists of one bucket of users: candidates from the retrieval champion, in the order of the ranking champion if
there is one, filled up with what is popular. Nothing ineligible or seen is ever among them.

A user's answer from a diffusion model depends on the noise, hence on the bucket and the batch size, on nothing else.

Shapes: U users of the bucket, B users of a batch, V rows of today's catalogue, E rows that may be recommended (padding
and unknown in front), C candidates, K list length, H longest history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from evaluate.impressions import within as within_fields
from evaluate.metrics.list_quality import repeats
from evaluate.publish.candidates import Candidates
from evaluate.retrieval import within
from evaluate.settings import ScoringSettings
from infra.errors import AuditError
from infra.tables import FIRST_INDEX, PADDING, RECOMMENDATIONS
from train.artifact import Loaded
from train.protocol import SequenceBatch
from train.ragged import Ints, Ragged
from train.ranking import top_k, user_vectors

Floats = NDArray[np.float64]
RETRIEVAL, RANKING, POPULAR = "retrieval", "ranking", "popular"
SOURCES = (RETRIEVAL, RANKING, POPULAR)
PAIRS_AT_ONCE = 1 << 12
"""Of users and candidates, for the ranking model, which may hold much for each (attention over a history)."""
ANYBODY = ""
"""The user whose list is for whoever has none; no log has an empty id."""


@dataclass(frozen=True)
class Catalogue:
    """What may be recommended today."""

    keys: pa.Array
    """(V - 2,) of the items from FIRST_INDEX on."""
    eligible_V: NDArray[np.bool_]
    popular: Ints
    """Eligible items by the number of users who took them, most first; ties by index. Nobody's are left out."""
    takers: Ints
    """Those numbers."""

    @classmethod
    def of(cls, keys: pa.Array, eligible_V: NDArray[np.bool_], takers_V: Ints) -> Catalogue:
        """From the number of users who took each of the V items lately."""
        popular = np.flatnonzero(eligible_V & (takers_V > 0))
        popular = popular[np.lexsort((popular, -takers_V[popular]))]
        return cls(keys, eligible_V, popular, takers_V[popular])


@dataclass(frozen=True)
class Bucket:
    """Some users, in order."""

    users: pa.Array
    events: Ragged
    """Items of all events of each, oldest first."""
    taken: Ragged
    """The same with 0 in the place of events that are not of a target type."""


@dataclass(frozen=True)
class Lists:
    """(U, K) items as indices, 0 where nothing is left, with their scores and where they are from."""

    items_UK: Ints
    score_UK: Floats
    source_UK: NDArray[np.int8]
    """Place in SOURCES."""


@dataclass(frozen=True)
class Models:
    """The champions that make the lists."""

    retrieval: Loaded
    ranking: Loaded | None
    versions: tuple[str, str | None]
    """As registered, of each."""


def lists(
    models: Models,
    catalogue: Catalogue,
    bucket: Bucket,
    pairs: Candidates | None,
    settings: ScoringSettings,
    number: int,
) -> Lists:
    """Of every user of the bucket; `pairs` are the ranking model's feature rows, `number` that of the bucket."""
    generator, parts = torch.Generator().manual_seed(settings.seed * 1_000_003 + number), []
    with torch.inference_mode():
        maker = _Maker(models, catalogue, settings, generator)
        for start in range(0, len(bucket.users), settings.batch_size):
            rows_B = np.arange(start, min(start + settings.batch_size, len(bucket.users)))
            parts.append(maker.batch(bucket, rows_B, pairs))
    if not parts:
        empty = np.zeros((0, settings.k))
        return Lists(empty.astype(np.int64), empty, empty.astype(np.int8))
    made = Lists(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    audit(made, catalogue, bucket, settings)
    return made


class _Maker:
    """Makes the lists of one batch after another."""

    def __init__(
        self, models: Models, catalogue: Catalogue, settings: ScoringSettings, generator: torch.Generator
    ) -> None:
        self.models, self.catalogue, self.settings, self.generator = models, catalogue, settings, generator
        model: Any = models.retrieval.model
        known = models.retrieval.catalogue
        assert known is not None  # of a sequence model
        self.known, self.length = known, getattr(models.retrieval.config, "max_length", None)
        own = np.flatnonzero(catalogue.eligible_V[:known])
        self.kept_E = np.concatenate([np.arange(FIRST_INDEX), own[own >= FIRST_INDEX]])
        """Rows of today's catalogue; in their order, so that ties stay in order of index."""
        self.place_V = np.zeros(len(catalogue.eligible_V), np.int64)
        self.place_V[self.kept_E] = np.arange(len(self.kept_E))
        table_VD = model.item_table()
        self.e_ED = None if table_VD is None else table_VD[torch.from_numpy(self.kept_E)]

    def batch(self, bucket: Bucket, rows_B: Ints, pairs: Candidates | None) -> tuple[Ints, Floats, NDArray[np.int8]]:
        """(items, scores, sources), each (B, K)."""
        items_BC, score_BC = self._retrieved(bucket, rows_B)
        source = RETRIEVAL
        if pairs is not None:
            items_BC, score_BC = self._ranked(items_BC, rows_B, pairs)
            source = RANKING
        k = self.settings.k
        items_BK, score_BK = items_BC[:, :k], score_BC[:, :k]
        source_BK = np.full(items_BK.shape, SOURCES.index(source), np.int8)
        for row in np.flatnonzero((items_BK == PADDING).any(axis=1)):
            seen_H = self._seen(bucket, rows_B[row : row + 1])[0]
            _fill(self.catalogue, items_BK[row], score_BK[row], source_BK[row], seen_H)
        return items_BK, score_BK, source_BK

    def _seen(self, bucket: Bucket, rows_B: Ints) -> Ints:
        """(B, H) what the users' lists may not have, 0 for nothing."""
        if self.settings.keep_seen:
            return np.zeros((len(rows_B), 1), np.int64)
        return bucket.taken.left_padded(rows_B)

    def _retrieved(self, bucket: Bucket, rows_B: Ints) -> tuple[Ints, Floats]:
        """The best C eligible candidates that were not seen, best first."""
        settings, model = self.settings, self.models.retrieval.model
        events_BL = torch.from_numpy(bucket.events.left_padded(rows_B, self.length))
        batch = within(SequenceBatch.left_padded(events_BL), self.known)
        u_BRD = user_vectors(model, batch, settings.steps, self.generator, settings.draws)  # type: ignore[arg-type]
        if self.e_ED is None:  # they are the scores
            u_BRD = u_BRD[..., torch.from_numpy(self.kept_E)]
        seen_BH = torch.from_numpy(self.place_V[self._seen(bucket, rows_B)])
        items_BC, score_BC = top_k(u_BRD, self.e_ED, settings.retrieve, seen_BH)
        return self.kept_E[items_BC.numpy()], score_BC.double().numpy()

    def _ranked(self, items_BC: Ints, rows_B: Ints, pairs: Candidates) -> tuple[Ints, Floats]:
        """The same candidates by probability, ties by index; empty places and NaN stay behind all others."""
        ranking = self.models.ranking
        assert ranking is not None
        logits: Any = ranking.model.logits
        step, parts = max(1, PAIRS_AT_ONCE // items_BC.shape[1]), []
        for start in range(0, len(rows_B), step):
            some = slice(start, start + step)
            batch = within_fields(pairs.batch(rows_B[some], items_BC[some]), ranking)
            parts.append(torch.sigmoid(logits(batch).double()))
        p_BC = torch.cat(parts).numpy().reshape(items_BC.shape)
        p_BC = np.where((items_BC == PADDING) | np.isnan(p_BC), -np.inf, p_BC)
        items_BC = np.where(np.isneginf(p_BC), PADDING, items_BC)
        order_BC = np.lexsort((items_BC, -p_BC), axis=1)
        return np.take_along_axis(items_BC, order_BC, 1), np.take_along_axis(p_BC, order_BC, 1)


def _fill(catalogue: Catalogue, items_K: Ints, score_K: Floats, source_K: NDArray[np.int8], seen_H: Ints) -> None:
    """What is popular into the empty places at the end of a list, as far as there is enough."""
    have, popular = int((items_K != PADDING).sum()), catalogue.popular
    chosen = np.flatnonzero(~np.isin(popular, np.concatenate([items_K, seen_H])))[: len(items_K) - have]
    into = slice(have, have + len(chosen))
    items_K[into], score_K[into] = popular[chosen], catalogue.takers[chosen]
    source_K[into] = SOURCES.index(POPULAR)


def for_anybody(catalogue: Catalogue, k: int) -> Lists:
    """The one list of ANYBODY: the most popular eligible items."""
    made = Lists(np.zeros((1, k), np.int64), np.zeros((1, k)), np.zeros((1, k), np.int8))
    _fill(catalogue, made.items_UK[0], made.score_UK[0], made.source_UK[0], np.zeros(0, np.int64))
    return made


def rows(made: Lists, users: pa.Array, keys: pa.Array, versions: Sequence[str | None]) -> pa.Table:
    """As rows of `recommendations`, without `ds`; `versions` of the retrieval and the ranking model."""
    user_M, place_M = np.nonzero(made.items_UK)
    source_M = pa.array(made.source_UK[user_M, place_M].astype(np.int32))
    return pa.table(
        {
            "user": users.take(pa.array(user_M)),
            "rank": pa.array((place_M + 1).astype(np.int32)),
            "item": keys.take(pa.array(made.items_UK[user_M, place_M] - FIRST_INDEX)),
            "score": pa.array(made.score_UK[user_M, place_M]),
            "source": pa.array(SOURCES).take(source_M),
            "model_version": pa.array([*versions, None], pa.string()).take(source_M),
        },
        schema=RECOMMENDATIONS.file_schema,
    )


def audit(made: Lists, catalogue: Catalogue, bucket: Bucket, settings: ScoringSettings) -> None:
    """Raise AuditError for a list with an item twice, a seen or an ineligible one, or a gap."""
    items_UK = made.items_UK
    ordered_UK = np.sort(items_UK, axis=1)
    flaws = {
        "an item twice": ((ordered_UK[:, 1:] == ordered_UK[:, :-1]) & (ordered_UK[:, 1:] != PADDING)).any(axis=1),
        "an item that is not eligible": ((items_UK != PADDING) & ~catalogue.eligible_V[items_UK]).any(axis=1),
        "a gap": ((items_UK[:, 1:] != PADDING) & (items_UK[:, :-1] == PADDING)).any(axis=1),
    }
    if not settings.keep_seen:
        flaws["an item that was seen"] = repeats(items_UK, bucket.taken)
    for flaw, wrong_U in flaws.items():
        if wrong_U.any():
            user = bucket.users[int(np.flatnonzero(wrong_U)[0])].as_py()
            raise AuditError(
                f"recommendations: {int(wrong_U.sum())} lists have {flaw}, that of {user!r} among them; nothing was "
                "published: the models' artifacts and the histories belong to different vocabularies, or this is a bug"
            )
