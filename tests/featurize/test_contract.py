"""featurize/contract.py: what a contract means, and that each impossible one names its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurize.contract import Contract, Label
from infra.config import load, parse
from infra.errors import ConfigError
from infra.tables import Kind

CONTRACTS = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts"

MINIMAL: dict[str, Any] = {
    "name": "log",
    "source": {"path": "log.csv", "format": "csv"},
    "user": "u",
    "item": "i",
    "time": {"column": "t", "unit": "s"},
}


def contract(**settings: Any) -> Contract:
    return parse({**MINIMAL, **settings}, Contract, "contract.yaml")


def test_a_minimal_contract_is_one_undated_arrival_of_one_type() -> None:
    minimal = contract()
    assert not minimal.dated
    assert minimal.type.constant == "event"
    assert minimal.source.delimiter == ","
    assert minimal.fields_from("log") == ()
    assert (minimal.targets, minimal.context, minimal.label, minimal.event_id, minimal.key) == ((), (), None, None, ())


def test_fields_by_source_keep_the_contract_s_order() -> None:
    side = {"path": "users.csv", "format": "csv", "key": "id"}
    fields = [
        {"name": "z", "kind": "multi", "separator": "|"},
        {"name": "age", "kind": "numeric", "source": "users", "column": "Age"},
        {"name": "a", "kind": "categorical", "column": "A"},
    ]
    made = contract(source={"path": "logs/{date}/x.csv", "format": "csv"}, users=side, fields=fields)
    assert made.dated
    assert [(f.name, f.raw_column) for f in made.fields_from("log")] == [("z", "z"), ("a", "A")]
    assert made.kinds_from("log") == [("z", Kind.MULTI), ("a", Kind.CATEGORICAL)]
    assert made.kinds_from("users") == [("age", Kind.NUMERIC)]
    assert made.kinds_from("items") == []


@pytest.mark.parametrize("file", sorted(CONTRACTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_contracts_of_our_recipes_are_valid(file: Path) -> None:
    loaded = load(file, Contract)
    assert loaded.fields
    assert loaded.label is not None


CATEGORICAL = {"name": "x", "kind": "categorical"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time": {"column": "t"}}, "exactly one of unit and format"),
        ({"time": {"column": "t", "unit": "s", "format": "%Y"}}, "exactly one of unit and format"),
        ({"time": {"column": "t", "unit": "minutes"}}, "time.unit"),
        ({"type": {}}, "exactly one of column and constant"),
        ({"type": {"column": "a", "constant": "b"}}, "exactly one of column and constant"),
        ({"type": {"constant": ""}}, "type.constant"),
        ({"label": {"column": "r"}}, "exactly one of at_least and one_of"),
        ({"label": {"column": "r", "at_least": 1, "one_of": ["a"]}}, "exactly one of at_least and one_of"),
        ({"label": {"column": "r", "at_least": float("nan")}}, "label.at_least.*finite number"),
        ({"label": {"column": "r", "one_of": []}}, "label.one_of"),
        ({"fields": [CATEGORICAL, CATEGORICAL]}, "'x'.*given twice"),
        ({"fields": [{**CATEGORICAL, "name": "item"}]}, "'item'.*rename"),
        ({"fields": [{**CATEGORICAL, "name": "Bad Name"}]}, "fields.0.name"),
        ({"fields": [{**CATEGORICAL, "kind": "text"}]}, "fields.0.kind"),
        ({"fields": [{**CATEGORICAL, "separator": " "}]}, "separator: only a multi field"),
        ({"fields": [{**CATEGORICAL, "name": f"f{i}"} for i in range(61)]}, "at most 60"),
        ({"fields": [{**CATEGORICAL, "source": "items"}]}, "items: a field comes from there"),
        ({"fields": [{**CATEGORICAL, "source": "time"}]}, "column: of an event's time there are hour, weekday"),
        ({"fields": [{"name": "hour", "kind": "numeric", "source": "time"}]}, "kind: hour comes from the event's time"),
        ({"users": {"path": "{date}.csv", "format": "csv", "key": "u"}}, "side files carry no {date}"),
        ({"event_id": "id", "key": ["a"]}, "key: event_id identifies"),
        ({"context": ["view"]}, "context: without targets"),
        ({"type": {"constant": "rating"}, "targets": ["click"]}, "targets: every event is of type 'rating'"),
        ({"rules": {"max_bad_share": 1.5}}, "rules.max_bad_share"),
        ({"rules": {"window_days": -1}}, "rules.window_days"),
        ({"rules": {"min_time": "2024-01-01", "max_time": "2024-01-01"}}, "min_time must lie before max_time"),
        ({"source": {"path": "a.csv", "format": "csv", "delimiter": "ab"}}, "source.delimiter"),
        ({"source": {"path": "a.csv", "format": "csv", "delimiter": '"'}}, "delimiter: a quote"),
        ({"source": {"path": "a.json", "format": "json", "columns": ["u"]}}, "columns: json files name their own"),
        ({"source": {"path": "a.csv", "format": "csv", "columns": ["u", "u"]}}, "columns: a name is given twice"),
        ({"source": {"path": "", "format": "csv"}}, "source.path"),
        ({"source": {"path": "a.xml", "format": "xml"}}, "source.format"),
        ({"surprise": 1}, "surprise: unknown setting"),
        ({"time": {"column": "t", "unit": "AUTO"}}, "time.unit"),
        ({"rules": {"max_line_bytes": 0}}, "rules.max_line_bytes"),
        ({"event_id": "u"}, "event_id: the column 'u' holds user ids"),
        ({"item": "u"}, "item: the column 'u' holds user ids"),
        ({"type": {"column": "u"}}, "type.column: the column 'u' holds user ids"),
        ({"fields": [{**CATEGORICAL, "column": "u"}]}, "fields: x: the column 'u' holds user ids"),
        (
            {
                "users": {"path": "users.csv", "format": "csv", "key": "id"},
                "fields": [{**CATEGORICAL, "column": "id", "source": "users"}],
            },
            "fields: x: the column 'id' holds user ids",
        ),
    ],
)
def test_what_cannot_be_meant_names_its_field(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        contract(**settings)


def test_ids_are_personal_unless_the_contract_says_otherwise() -> None:
    assert contract().personal
    shown = contract(personal=False, item="u", event_id="u", fields=[{**CATEGORICAL, "column": "u"}])
    assert not shown.personal


def test_sixty_fields_fit_the_mask() -> None:
    assert len(contract(fields=[{**CATEGORICAL, "name": f"f{i}"} for i in range(60)]).fields) == 60


def test_numbers_as_event_types_and_labels_are_read_like_the_log_s() -> None:
    assert Label(column="click", one_of=(1, 2.0)).one_of == ("1", "2")  # type: ignore[arg-type]
