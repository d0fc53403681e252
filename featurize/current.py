"""Features of users and items as they stand at the end of a run date, as indices, without Spark: what lists are ranked
with. The rules are those of samples (featurize.point_in_time, .past), for an event that has not happened yet.

Shapes: N keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from featurize import vocabularies
from featurize.indexing import index_of
from featurize.vocabularies import ITEM, USER
from infra.lake import Lake
from infra.tables import FIELD_VALUES, TIMESTAMP, VALID_FROM, Kind, column_of, side_features

if TYPE_CHECKING:
    from featurize.contract import Contract


def side_columns(
    lake: Lake, contract: Contract, versions: Mapping[str, int], as_of: str, day: str, of: str, keys_N: pa.Array
) -> dict[str, pa.Array]:
    """Columns of `samples` (name -> (N,) indices or values, null where missing) of a side file's fields: `side_values`
    with the index in the place of each text."""
    values = side_values(lake, contract, versions, as_of, day, of, keys_N)
    if not values:
        return {}
    kinds = contract.kinds_from(f"{of}s")
    known = vocabularies.read(lake, versions, as_of, [field for field, kind in kinds if kind is not Kind.NUMERIC])
    out = {}
    for field, raw in values.items():
        table = known.get(field)
        keys = (None, None) if table is None else (table["key"].combine_chunks(), table["index"].combine_chunks())
        numeric = dict(kinds)[field] is Kind.NUMERIC
        out[column_of(field)] = raw if numeric else index_of(raw, *keys)
    return out


def side_values(
    lake: Lake, contract: Contract, versions: Mapping[str, int], as_of: str, day: str, of: str, keys_N: pa.Array
) -> dict[str, pa.Array]:
    """Values (N,) of a side file's fields by name, null where missing.

    `of`: user or item; `keys_N`: whose. Of the newest snapshot up to the arrival `as_of` and, where the side file says
    from when on a row holds, the last row that holds before the end of `day`. Nothing without a side file.
    """
    kinds = contract.kinds_from(f"{of}s")
    side = contract.users if of == USER else contract.items
    if side is None or not kinds:
        return {}
    name, timed = side_features(of, kinds).name, side.time is not None
    snapshot = vocabularies.side_partition(lake, name, versions[name], as_of)
    columns = ["key", *(column_of(field) for field, _ in kinds), *([VALID_FROM.name] if timed else [])]
    rows = lake.dataset(name, versions[name], snapshot).to_table(columns, filter=pads.field("key").isin(keys_N))
    if timed:
        rows = _latest(rows.filter(pc.less(rows[VALID_FROM.name], _end_of(day))))
    met = rows.take(pc.index_in(keys_N, value_set=rows["key"].combine_chunks()))
    return {field: met[column_of(field)].combine_chunks() for field, _ in kinds}


def user_index(lake: Lake, versions: Mapping[str, int], as_of: str, users_N: pa.Array) -> pa.Array:
    """(N,) index of each user in the vocabulary of the field `user`; 1 of those that are not in it."""
    arrivals = lake.partitions(FIELD_VALUES.name, versions[FIELD_VALUES.name], "arrival")
    values = lake.dataset(
        FIELD_VALUES.name, versions[FIELD_VALUES.name], {"arrival": [a for a in arrivals if a <= as_of]}
    )
    own = (pads.field("field") == USER) & pads.field("key").isin(users_N)
    known = values.to_table(["index", "key"], filter=own)
    return index_of(users_N, known["key"].combine_chunks(), known["index"].combine_chunks())


def item_keys(lake: Lake, versions: Mapping[str, int], as_of: str) -> pa.Array:
    """Keys of the item vocabulary in order of their indices, from FIRST_INDEX on."""
    return vocabularies.read(lake, versions, as_of, [ITEM])[ITEM]["key"].combine_chunks()


def last_positives(lake: Lake, version: int, day: str, users_N: pa.Array, count: int) -> pa.Array:
    """(N,) the last `count` positive items of each user as indices, oldest first; null without any.

    Of all splits of `samples` as of `day`: those are the user's labelled events up to its end. Sampled rows are
    nobody's events.
    """
    positive = (pads.field("label") == 1) & (pads.field("label_source") == "observed")
    own = pads.field("user").isin(users_N)
    dataset = lake.dataset("samples", version, {"as_of": day})
    rows = dataset.to_table(["user", "item", "ts", "event_id"], filter=positive & own)
    rows = rows.append_column("place", pc.index_in(rows["user"], value_set=users_N))
    rows = rows.sort_by([("place", "ascending"), ("ts", "ascending"), ("event_id", "ascending")])
    place_M = rows["place"].to_numpy()
    have_N = np.bincount(place_M, minlength=len(users_N))
    from_end_M = np.repeat(np.cumsum(have_N), have_N) - np.arange(len(place_M))
    kept_N = np.minimum(have_N, count)
    items = rows["item"].combine_chunks().filter(pa.array(from_end_M <= count))
    offsets = pa.array(np.append(0, np.cumsum(kept_N)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, items)
    return pc.if_else(pa.array(kept_N > 0), lists, pa.scalar(None, lists.type))


def _latest(rows: pa.Table) -> pa.Table:
    """Of each key the row with the largest valid_from."""
    rows = rows.sort_by([(VALID_FROM.name, "ascending")])
    last = (
        rows.select(["key"])
        .append_column("row", pa.array(np.arange(len(rows))))
        .group_by("key")
        .aggregate([("row", "max")])
    )
    return rows.take(last["row_max"])


def _end_of(day: str) -> pa.Scalar:
    return pa.scalar(datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1), TIMESTAMP)
