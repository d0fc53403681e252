"""The declared tables: sound, documented, and the same after a round trip through Delta."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infra import tables
from infra.commit import append_rows, commit, write_file
from infra.lake import Lake
from infra.schemas import create
from infra.tables import Kind, Table

KINDS = [("cat", Kind.CATEGORICAL), ("num", Kind.NUMERIC), ("multi", Kind.MULTI)]
ALL = (
    tables.events(KINDS),
    tables.side_features("user", KINDS),
    tables.side_features("item", KINDS),
    tables.QUARANTINE,
    tables.INGESTED_FILES,
    tables.ITEMS,
    tables.FIELD_VALUES,
    tables.SEQUENCES,
    tables.samples(KINDS),
    tables.FIELDS,
    tables.FIRST_SEEN,
    tables.PROFILES,
    tables.HISTORIES,
    tables.POPULARITY,
    tables.MISSING_RATES,
    tables.RUNS,
    tables.PROMOTIONS,
    tables.RECOMMENDATIONS,
)

each = pytest.mark.parametrize("table", ALL, ids=[t.name for t in ALL])


def test_none_is_left_out() -> None:
    declared = {v.name for v in vars(tables).values() if isinstance(v, Table)}
    assert declared <= {t.name for t in ALL}
    assert len({t.name for t in ALL}) == len(ALL)


@each
def test_a_declaration_is_sound(table: Table) -> None:
    names = [c.name for c in table.columns]
    assert re.fullmatch(r"[a-z_]+", table.name)
    assert len(set(names)) == len(names)
    assert table.meaning
    assert all(c.meaning for c in table.columns)
    for name in table.partition_by:  # commits name partitions by text, and no partition is null
        field = table.schema.field(name)
        assert (field.type, field.nullable) == (pa.string(), False)


@each
def test_files_hold_everything_but_the_partition(table: Table) -> None:
    assert table.file_schema.names == [c.name for c in table.columns if c.name not in table.partition_by]
    assert all(table.file_schema.field(f.name).equals(f) for f in table.schema if f.name not in table.partition_by)


def value(kind: pa.DataType) -> object:
    if pa.types.is_list(kind):
        return [value(kind.value_type)]
    if pa.types.is_timestamp(kind):
        return 1_700_000_000_000_001
    return {"string": "ü", "double": 0.5, "bool": True}.get(str(kind), 1)


@each
def test_the_schema_and_its_values_survive_delta(table: Table, tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    create(lake, table)
    assert pa.schema(DeltaTable(lake.path(table.name)).schema().to_arrow()).equals(table.schema)
    full = {f.name: "p" if f.name in table.partition_by else value(f.type) for f in table.schema}
    sparse = {k: None if table.schema.field(k).nullable else v for k, v in full.items()}
    rows = pa.Table.from_pylist([full, sparse], schema=table.schema)
    if table.partition_by:
        partition = dict.fromkeys(table.partition_by, "p")
        file = write_file(lake.path(table.name), table, partition, [rows])
        commit(lake, table, [file], replace={table.partition_by[0]: ["p"]}, metadata={})
    else:
        append_rows(lake, table, rows.to_pylist(), app_id="a")
    assert lake.read(table.name, 1).equals(rows)


def test_indices_begin_after_padding_and_unknown() -> None:
    assert (tables.PADDING, tables.UNKNOWN, tables.FIRST_INDEX) == (0, 1, 2)


def test_field_columns_by_kind() -> None:
    assert [tables.column_of(n) for n, _ in KINDS] == ["f_cat", "f_num", "f_multi"]
    raw, indexed = tables.events(KINDS).schema, tables.samples(KINDS).schema
    assert [raw.field(f"f_{n}").type for n, _ in KINDS] == [pa.string(), pa.float64(), pa.list_(pa.string())]
    assert [indexed.field(f"f_{n}").type for n, _ in KINDS] == [pa.int32(), pa.float64(), pa.list_(pa.int32())]
    assert all(s.field(f"f_{n}").nullable for s in (raw, indexed) for n, _ in KINDS)


def test_partitioning_is_what_commits_replace() -> None:
    by = {t.name: t.partition_by for t in ALL}
    assert by["events"] == ("arrival", "ds")
    assert by["sequences"] == by["samples"] == ("as_of", "split")
    assert by["runs"] == by["promotions"] == ()
    assert {by[n] for n in ("quarantine", "ingested_files", "items", "field_values", "user_features")} == {("arrival",)}


def test_the_ledger_is_for_ever() -> None:
    """Its rows outlive every release: a change here needs a migration, not a new expectation."""
    assert [(f.name, str(f.type), f.nullable) for f in tables.RUNS.schema] == [
        *((n, "string", False) for n in ("key", "unit", "date", "inputs", "config_hash", "code_version")),
        *((n, "string", False) for n in ("outputs", "report")),
        ("seconds", "double", False),
        ("run_id", "string", False),
        ("published_at", "timestamp[us, tz=UTC]", False),
    ]
