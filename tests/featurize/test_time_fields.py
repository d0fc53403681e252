"""featurize/time_fields.py, through vocabularies and samples; expected values from the standard library."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from featurize import samples, vocabularies
from featurize.contract import Contract
from featurize.settings import SampleSettings, VocabularySettings
from infra.lake import Lake
from infra.tables import events
from tests.conftest import put
from tests.featurize.warehouse import FORM

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONTRACT = Contract.model_validate(
    {
        **FORM,
        "label": {"column": "r", "at_least": 1},
        "fields": [
            {"name": "hour", "kind": "categorical", "source": "time"},
            {"name": "day_of_week", "kind": "categorical", "column": "weekday", "source": "time"},
        ],
    }
)
DAY = "2024-03-31"  # the clocks of Europe go forward on that day; those of UTC do not


def test_hour_and_weekday_in_utc(spark: SparkSession, lake: Lake) -> None:
    """Over ten days, at odd minutes, in the last microsecond before midnight and the first after it."""
    start = datetime(2024, 3, 22, tzinfo=UTC)
    times = [start + timedelta(minutes=97 * n, microseconds=n) for n in range(140)]
    times += [start - timedelta(microseconds=1), start, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)]
    log = [
        {
            "arrival": DAY, "ds": t.date().isoformat(), "event_id": f"e{n}", "user": "ann", "item": "a", "ts": t,
            "type": "event", "label": 1, "file": "f", "position": n,
        }
        for n, t in enumerate(times)
    ]  # fmt: skip
    versions = {"events": put(lake, events(CONTRACT.kinds_from("log")), log)}
    built = vocabularies.build(spark, lake, CONTRACT, VocabularySettings(), versions, [DAY], None, {})
    versions |= built.versions
    settings = SampleSettings(split="per_user_ratio")
    written, report = samples.build(spark, lake, CONTRACT, settings, versions, [DAY], DAY, {})

    known = vocabularies.read(lake, versions, DAY)
    key = {f: dict(zip(*(known[f][c].to_pylist() for c in ("index", "key")), strict=True)) for f in known}
    assert sorted(key["hour"].values(), key=int) == [str(h) for h in range(24)]
    assert sorted(key["day_of_week"].values()) == list("1234567")
    rows = lake.read("samples", written["samples"]).to_pylist()
    assert len(rows) == len(log)
    found = {r["event_id"]: (int(key["hour"][r["f_hour"]]), int(key["day_of_week"][r["f_day_of_week"]])) for r in rows}
    assert found == {f"e{n}": (t.hour, t.isoweekday()) for n, t in enumerate(times)}
    assert {r["missing"] for r in rows} == {0}
    assert report["missing_rates"] == {"user": 0.0, "item": 0.0, "hour": 0.0, "day_of_week": 0.0}
