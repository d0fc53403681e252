"""featurize/evolution.py: what each change of a contract means for the arrivals published before it."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from featurize.contract import Contract
from featurize.evolution import Verdict, compare, introduced

BASE: dict[str, Any] = {
    "name": "shop",
    "source": {"path": "events/{date}", "format": "csv", "columns": ["u", "i", "t", "kind", "stars", "id", "x", "y"]},
    "user": "u",
    "item": "i",
    "time": {"column": "t", "unit": "s"},
    "type": {"column": "kind"},
    "event_id": "id",
    "targets": ["click"],
    "label": {"column": "stars", "at_least": 4},
    "fields": [
        {"name": "device", "kind": "categorical", "column": "x"},
        {"name": "tags", "kind": "multi", "column": "y", "separator": "|"},
        {"name": "age", "kind": "numeric", "source": "users"},
    ],
    "users": {"path": "users.csv", "format": "csv", "key": "u"},
}


def contract(**changes: Any) -> Contract:
    """BASE with `a__b=value` set, or removed where the value is ...; fields__0__kind reaches into lists."""
    data = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node: Any = data
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is ...:
            del node[int(last) if isinstance(node, list) else last]
        else:
            node[int(last) if isinstance(node, list) else last] = value
    return Contract.model_validate(data)


def change(**changes: Any) -> tuple[Verdict, dict[str, str]]:
    found = compare(contract(), contract(**changes))
    return found.verdict, {d.setting: d.words for d in found.differences}


def test_the_same_contract() -> None:
    assert change() == (Verdict.SAME, {})
    assert change(fields__2__column="age") == (Verdict.SAME, {})  # spelt out, it is the same column


COMPATIBLE = {
    "path": ({"source__path": "logs/{date}"}, {"source.path"}),
    "format": ({"source__format": "json", "source__columns": ...}, {"source.format", "source.columns"}),
    "delimiter": ({"source__delimiter": "\t"}, {"source.delimiter"}),
    "user renamed": ({"user": "user_id"}, {"user"}),
    "item renamed": ({"item": "item_id"}, {"item"}),
    "time renamed": ({"time__column": "at"}, {"time.column"}),
    "time unit": ({"time__unit": "ms"}, {"time.unit"}),
    "time format": ({"time": {"column": "t", "format": "%Y"}}, {"time.unit", "time.format"}),
    "type renamed": ({"type__column": "action"}, {"type.column"}),
    "label renamed": ({"label__column": "rating"}, {"label.column"}),
    "id renamed": ({"event_id": "event"}, {"event_id"}),
    "targets": ({"targets": ["buy"], "context": ["click"]}, {"targets", "context"}),
    "rules": ({"rules": {"window_days": 9, "max_bad_share": 1}}, {"rules.window_days", "rules.max_bad_share"}),
    "side file": ({"users__path": "people.csv", "users__key": "id"}, {"users.path", "users.key"}),
    "side file gone": (
        {"users": ..., "fields__2": ...},
        {"users.path", "users.format", "users.delimiter", "users.key", "fields.age"},
    ),
    "new field": ({"fields": [*BASE["fields"], {"name": "price", "kind": "numeric"}]}, {"fields.price"}),
    "dropped field": ({"fields__0": ...}, {"fields.device"}),
    "field's column renamed": ({"fields__0__column": "dev"}, {"fields.device.column"}),
    "separator": ({"fields__1__separator": ","}, {"fields.tags.separator"}),
    "field's source": ({"fields__2__source": "log"}, {"fields.age.source"}),
    "field from the time": (
        {"fields__0": {"name": "device", "kind": "categorical", "source": "time", "column": "hour"}},
        {"fields.device.source"},
    ),
    "order of fields": ({"fields": [BASE["fields"][i] for i in (1, 0, 2)]}, {"fields"}),
}


@pytest.mark.parametrize("case", COMPATIBLE)
def test_compatible(case: str) -> None:
    changes, settings = COMPATIBLE[case]
    verdict, found = change(**changes)
    assert (verdict, set(found)) == (Verdict.COMPATIBLE, settings)
    assert all(found.values())


REFUSED = {
    "label rule": ({"label__at_least": 3}, Verdict.REBUILD, "label.at_least", "4.0 became 3.0; labels of older"),
    "no label": ({"label": ...}, Verdict.REBUILD, "label.column", '"stars" became nothing; labels'),
    "kind": ({"fields__0__kind": "numeric"}, Verdict.REBUILD, "fields.device.kind", '"categorical" became "numeric"'),
    "kind of a side field": ({"fields__2__kind": "categorical"}, Verdict.REBUILD, "fields.age.kind", "other kind"),
    "no event id": ({"event_id": ...}, Verdict.REBUILD, "event_id", '"id" became nothing; copies of older events'),
    "constant type": (
        {"type": {"constant": "click"}},
        Verdict.REBUILD,
        "type.constant",
        'nothing became "click"; events of older arrivals',
    ),
    "personal": ({"personal": not contract().personal}, Verdict.WORKSPACE, "personal", "as logged or as pseudonyms"),
    "name": ({"name": "other"}, Verdict.WORKSPACE, "name", '"shop" became "other"; another name is another log'),
    "undated": ({"source__path": "events"}, Verdict.WORKSPACE, "source.path", "with and without {date}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changes, verdict, setting, words = REFUSED[case]
    found, differences = change(**changes)
    assert found is verdict
    assert words in differences[setting]


def test_the_farthest_reaching_difference_decides_and_comes_first() -> None:
    found = compare(contract(), contract(user="user_id", fields__0__kind="numeric", name="x"))
    assert [d.setting for d in found.differences] == ["name", "fields.device.kind", "user"]
    assert (found.verdict, [d.setting for d in found.refused]) == (Verdict.WORKSPACE, ["name", "fields.device.kind"])
    assert str(found.differences[2]).startswith('user: "u" became "user_id"; taken for the same ids')


def test_the_order_of_label_values_is_no_rule() -> None:
    one, two = (contract(label={"column": "kind", "one_of": v}) for v in (["a", "b"], ["b", "a"]))
    assert compare(one, two).verdict is Verdict.SAME


class TestKey:
    """The columns that identify an event where it has no id of its own."""

    @pytest.mark.parametrize(
        ("before", "after", "verdict"),
        [
            (["u", "i"], ["u", "i"], Verdict.SAME),
            (["u", "i"], ["i", "u"], Verdict.REBUILD),  # the id is a hash of the values in order
            (["u", "i"], ["u"], Verdict.REBUILD),
            ([], ["u", "i", "t", "kind"], Verdict.REBUILD),
            (["u", "page"], ["u", "url"], Verdict.REBUILD),  # nothing else says that one is the other
        ],
    )
    def test_its_columns(self, before: list[str], after: list[str], verdict: Verdict) -> None:
        found = compare(*(contract(event_id=..., key=k) for k in (before, after)))
        assert found.verdict is verdict
        assert {d.setting for d in found.differences} == (set() if verdict is Verdict.SAME else {"key"})

    def test_columns_that_the_rest_of_the_contract_renames_too(self) -> None:
        old = contract(event_id=..., key=["u", "t", "x", "kind"])
        new = contract(
            event_id=..., key=["who", "at", "dev", "what"], user="who", time__column="at", type__column="what"
        )
        renamed = compare(old, new)  # x is still read as x: dev is another column
        assert (renamed.verdict, [d.setting for d in renamed.refused]) == (Verdict.REBUILD, ["key"])
        new = contract(
            event_id=...,
            key=["who", "at", "dev", "what"],
            user="who",
            time__column="at",
            type__column="what",
            fields__0__column="dev",
        )
        assert compare(old, new).verdict is Verdict.COMPATIBLE

    def test_from_ids_to_a_key(self) -> None:
        assert compare(contract(), contract(event_id=..., key=["u", "i"])).verdict is Verdict.REBUILD


def test_every_setting_of_a_contract_is_spoken_of() -> None:
    """A setting that is added to the contract and not thought of here is refused; this list says which were."""

    def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
        kinds = {name: (f.annotation, *get_args(f.annotation)) for name, f in model.model_fields.items()}
        found = {n: [t for t in k if isinstance(t, type) and issubclass(t, BaseModel)] for n, k in kinds.items()}
        return {name: models[0] for name, models in found.items() if models}

    inner = sections(Contract)
    settings = {*Contract.model_fields} - {*inner}
    settings |= {f"{s}.{n}" for s, m in inner.items() if s not in ("users", "items", "rules") for n in m.model_fields}
    assert settings == {
        *("name", "personal", "user", "item", "event_id", "key", "targets", "context"),
        *("source.path", "source.format", "source.delimiter", "source.columns"),
        *("time.column", "time.unit", "time.format", "type.column", "type.constant"),
        *("label.column", "label.at_least", "label.one_of"),
        *("fields.name", "fields.kind", "fields.column", "fields.source", "fields.separator"),
    }


def test_fields_that_the_log_must_know_from_now_on() -> None:
    old = contract()
    new = contract(
        fields=[
            {"name": "device", "kind": "categorical", "column": "dev"},  # renamed
            {"name": "tags", "kind": "multi", "column": "y", "separator": ","},
            {"name": "age", "kind": "numeric"},  # was in the side file
            {"name": "city", "kind": "categorical", "source": "users"},
            {"name": "price", "kind": "numeric"},
        ]
    )
    assert introduced(old, new) == ("device", "age", "price")
    assert introduced(new, new) == ()
