"""featurize/raw_log.py: a change of schema, as the files show it, and what truth.json says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurize.contract import Contract
from featurize.simulate import simulate
from tests.featurize.simulated import accounted, recount

CONTRACT = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts" / "simulator.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("log")
    simulate(root, users=300, items=40, days=6, seed=12, schema_change=4)
    return root


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return found


def test_every_row_of_a_file_has_its_side_s_schema(folder: Path, truth: dict[str, Any]) -> None:
    change = truth["schema_change"]
    assert change["arrival"] == "2026-01-04"
    names: dict[bool, set[str]] = {False: set(), True: set()}
    for arrival, _, row, _ in accounted(folder):
        names[arrival >= change["arrival"]] |= set(row) - {"digits"}
    common = {"event_id", "user_id", "item_id", "time", "event", "device", "country", "age", "price"}
    assert names == {False: common | {"channel"}, True: common | {"source_channel", "app_version"}}


def test_truth_counts_both_sides(folder: Path, truth: dict[str, Any]) -> None:
    """Copies across the change are none, so the plain recount's duplicates stay exact."""
    counted, rows = recount(folder)
    change = truth["schema_change"]
    old = [row for row in rows if row["arrival"] < change["arrival"]]
    new = [row for row in rows if row["arrival"] >= change["arrival"]]
    assert change["events"] == {"before": len(old), "after": len(new)}
    assert change["missing"] == {
        "channel": sum(row.get("channel") is None for row in old),
        "source_channel": sum(row.get("source_channel") is None for row in new),
        "app_version": sum(row.get("app_version") is None for row in new),
    }
    assert truth["missing"]["channel"] == change["missing"]["channel"] + change["missing"]["source_channel"]
    assert {name: truth[name] for name in counted if name != "missing"} == {
        name: value for name, value in counted.items() if name != "missing"
    }
    assert {row["app_version"] for row in new if row.get("app_version")} == {"5.0", "5.1", "6.0"}


def test_the_fields_named_make_two_contracts(truth: dict[str, Any]) -> None:
    """`contract_fields` replace the field `channel` of the simulator's contract."""
    for side, columns in (("before", {"channel"}), ("after", {"source_channel", "app_version"})):
        raw = yaml.safe_load(CONTRACT.read_text())
        kept = [field for field in raw["fields"] if field["name"] != "channel"]
        contract = Contract.model_validate(raw | {"fields": kept + truth["schema_change"]["contract_fields"][side]})
        others = {"device", "country", "age", "price"}
        assert {field.raw_column for field in contract.fields_from("log")} - others == columns


def test_without_a_change_truth_says_so(tmp_path: Path) -> None:
    assert simulate(tmp_path, users=5, items=10, days=3, seed=0)["schema_change"] is None
