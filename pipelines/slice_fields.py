"""The values of the fields that figures are cut by, from the tables of the day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from evaluate.slices import FieldValues
from featurize import current, vocabularies
from featurize.contract import Contract
from featurize.vocabularies import ITEM, USER
from infra.lake import Lake
from infra.tables import FIELD_VALUES, FIRST_INDEX, HISTORY, ITEMS
from pipelines.data import Data


def side_fields(
    lake: Lake, contract: Contract, data: Data, items: Sequence[str], names: Sequence[str]
) -> FieldValues | None:
    """Of the users with a target and of today's items (keys from FIRST_INDEX on); None if none is asked for."""
    if not names:
        return None
    arrival, day = data.arrivals[-1], data.day

    def of(kind: str, keys: pa.Array) -> dict[str, list[Any]]:
        found = current.side_values(lake, contract, data.versions, arrival, day, kind, keys)
        return {name: values.to_pylist() for name, values in found.items() if name in names}

    targets = lake.read("sequences", data.versions["sequences"], {"as_of": day, "split": "test"}, ["user"])
    users = targets["user"].combine_chunks()
    of_users = {name: dict(zip(users.to_pylist(), values, strict=True)) for name, values in of(USER, users).items()}
    in_front: list[Any] = [None] * FIRST_INDEX
    of_items = {name: in_front + values for name, values in of(ITEM, pa.array(items, pa.string())).items()}
    return FieldValues(of_users, of_items)


def value_names(lake: Lake, data: Data, names: Sequence[str]) -> Mapping[str, Mapping[int, str]]:
    """Values by index, of the fields that are asked for; those of a history are items."""
    if not names:
        return {}
    versions = {table: data.versions[table] for table in (ITEMS.name, FIELD_VALUES.name)}
    wanted = [ITEM if name == HISTORY else name for name in names]
    known = vocabularies.read(lake, versions, data.arrivals[-1], wanted)
    return {
        name: dict(zip(known[field]["index"].to_pylist(), known[field]["key"].to_pylist(), strict=True))
        for name, field in zip(names, wanted, strict=True)
        if field in known
    }
