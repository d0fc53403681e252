"""What a registered model is asked in a clean process: real rows of the split that it was evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from infra.lake import Lake
from infra.tables import FIRST_INDEX
from pipelines.data import Data
from pipelines.slice_fields import value_names

ROWS = 100
UNKNOWN = "never seen before"


def questions(lake: Lake, data: Data, role: str, items: Sequence[str]) -> pd.DataFrame:
    """The first `ROWS` test users' histories, or test impressions, as requests; `items` are today's item keys."""
    return _histories(lake, data, items) if role == "retrieval" else _impressions(lake, data)


def _histories(lake: Lake, data: Data, items: Sequence[str]) -> pd.DataFrame:
    where = {"as_of": data.day, "split": "test"}
    rows = lake.read("sequences", data.versions["sequences"], where, ["user", "items"]).sort_by("user").slice(0, ROWS)

    def key(index: int) -> str:
        return items[index - FIRST_INDEX] if index >= FIRST_INDEX else UNKNOWN

    return pd.DataFrame({"history": [[key(index) for index in row or ()] for row in rows["items"].to_pylist()]})


def _impressions(lake: Lake, data: Data) -> pd.DataFrame:
    from train.ranking_data import RankingData

    rows = RankingData.from_lake(lake, data.versions["samples"], data.versions["fields"], data.day, "test")
    fields = [spec.name for spec in rows.fields]
    names = value_names(lake, data, fields)
    columns: dict[str, list[Any]] = {name: rows.values(name, names.get(name, {}))[:ROWS] for name in fields}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
