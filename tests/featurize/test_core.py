"""featurize/core.py against a plain loop, and the published AdRec sequences of MovieLens 100K found again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize import core, cutting, histories, merging, sequences, vocabularies
from featurize.contract import Contract
from featurize.ingest import ingest, ingest_sides
from featurize.settings import SequenceSettings, VocabularySettings
from featurize.sources import list_files
from infra.config import load
from infra.errors import ConfigError
from infra.lake import Lake
from tests.conftest import REAL_DATA

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def plain_core(pairs: list[tuple[str, int]], k: int) -> list[tuple[str, int]]:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = [(u, i) for u, i in pairs if users[u] >= k and items[i] >= k]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


def part(pairs: list[tuple[str, int]]) -> tuple[str, Any]:
    by_user = defaultdict(list)
    for user, item in pairs:
        by_user[user].append(item)
    items = np.array([i for some in by_user.values() for i in some], np.int32)
    columns = {"user": list(by_user) or np.array([], str), "items": items}
    return "2024-01-01", merging.table_of(columns, np.array([len(v) for v in by_user.values()], np.int64))


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(2, 7)), max_size=60), st.integers(2, 4))
def test_the_core_of_two_buckets_is_that_of_a_plain_loop(pairs: list[tuple[str, int]], k: int) -> None:
    buckets = [[part([p for p in pairs if (p[0] in "abc") == first])] for first in (True, False)]
    alive = None
    while True:
        counted = [core.counts(b, 1000, k, alive) for b in buckets]
        total = sum(np.pad(c, (0, 8 - len(c))) for c in counted)
        if alive is not None and np.array_equal(total >= k, alive):
            break
        alive = total >= k
    kept = []
    for bucket in buckets:
        whole = merging.merged([table for _, table in bucket], ["items"])
        starts = whole.ends - whole.counts.sum(axis=0)
        items = whole.columns["items"].astype(np.int64)
        mask = cutting.in_core(items, starts, whole.ends, alive, k)
        users = np.repeat(np.arange(len(whole.ends)), np.diff(whole.ends, prepend=0))
        kept += [(whole.users[int(u)].as_py(), int(i)) for u, i in zip(users[mask], items[mask], strict=True)]
    assert sorted(kept) == sorted(plain_core(pairs, k))


def test_unknown_items_are_in_no_core() -> None:
    counts = core.counts([part([("a", 1)] * 5 + [("a", 2)] * 3)], 1000, 3, None)
    assert counts.tolist() == [0, 0, 3]


def test_a_core_under_the_temporal_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("k_core: 5\n")
    with pytest.raises(ConfigError, match="k_core"):
        load(tmp_path / "s.yaml", SequenceSettings)
    (tmp_path / "s.yaml").write_text("{k_core: 5, split: leave_one_out}\n")
    assert load(tmp_path / "s.yaml", SequenceSettings).k_core == 5


Log = Mapping[str, Sequence[Any]]
"""User -> items in order."""


def colours(log: Log) -> tuple[dict[str, str], dict[Any, str]]:
    """Colours of users and items that do not depend on their names: who took what, over and over."""
    users = {u: str(len(items)) for u, items in log.items()}
    of_item = defaultdict(list)
    for user, items in log.items():
        for item in items:
            of_item[item].append(user)
    names: dict[Any, str] = dict.fromkeys(of_item, "")
    for _ in range(4):
        names = {i: _digest([names[i], *sorted(users[u] for u in of)]) for i, of in of_item.items()}
        users = {u: _digest([users[u], *sorted(names[i] for i in items)]) for u, items in log.items()}
    return users, names


def _digest(parts: Sequence[str]) -> str:
    return sha256("|".join(parts).encode()).hexdigest()


@pytest.mark.slow
def test_movielens_gives_the_938_sequences_of_adrec(spark: SparkSession, lake: Lake, ml_100k: Path) -> None:
    """Ratings above 3, 5-core, leave-one-out: the published file up to names and the order of equal times."""
    published = REAL_DATA / "adrec-ml-100k" / "sequences.parquet"
    if not published.is_file():
        pytest.skip("AdRec's sequences are not at ../shared/data/adrec-ml-100k")
    theirs: Log = {str(r["user"]): [*r["train"], r["val"], r["test"]] for r in pq.read_table(published).to_pylist()}
    contract = load(Path(__file__).resolve().parents[2] / "pipelines/recipes/contracts/ml-100k.yaml", Contract)
    ingested = ingest(spark, lake, contract, ml_100k, list_files(ml_100k, contract.source), None, {})
    sides, _ = ingest_sides(lake, contract, ml_100k, "undated", {})
    versions = {**sides, **ingested.versions}
    versions |= vocabularies.build(
        spark, lake, contract, VocabularySettings(), versions, ["undated"], None, {}
    ).versions
    settings = SequenceSettings(split="leave_one_out", positives_only=True, k_core=5, buckets=2)
    day = ingested.last_day
    past = histories.build(spark, lake, contract, settings, versions, ["undated"], day, None, {})
    made, counts = sequences.build(spark, lake, settings, past.as_of, day, {})
    rows = lake.read("sequences", made["sequences"]).to_pylist()
    ours: Log = {r["user"]: [*r["items"], r["target"]] for r in rows if r["split"] == "test"}
    assert counts["test"] == counts["valid"] == len(ours) == len(theirs) == 938

    log = lake.read("events", ingested.versions["events"], columns=["user", "item", "ts"]).to_pylist()
    keys = {r["key"]: r["index"] for r in lake.read("items", versions["items"]).to_pylist()}
    times = {(e["user"], keys[e["item"]]): e["ts"] for e in log}
    users_a, items_a = colours(ours)
    users_b, items_b = colours(theirs)
    assert len(set(users_a.values())) == 938, "colours tell every user apart"
    user_of = {colour: user for user, colour in users_b.items()}
    # Items that the colours do not tell apart were taken by the very same users: their places decide.
    alike_a, alike_b = defaultdict(set), defaultdict(set)
    for colour_of, alike in ((items_a, alike_a), (items_b, alike_b)):
        for item, colour in colour_of.items():
            alike[colour].add(item)
    assert {c: len(s) for c, s in alike_a.items()} == {c: len(s) for c, s in alike_b.items()}
    for user, items in ours.items():
        other = theirs[user_of[users_a[user]]]
        assert len(items) == len(other)
        moments = [times[user, item] for item in items]
        assert moments == sorted(moments)
        for moment in sorted(set(moments)):
            tied = [n for n, at in enumerate(moments) if at == moment]
            assert sorted(items_a[items[n]] for n in tied) == sorted(items_b[other[n]] for n in tied)
    ambiguous = sum(len(s) for s in alike_a.values() if len(s) > 1)
    assert ambiguous == 0, "a bijection of items, not only of classes of them"
