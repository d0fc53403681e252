"""The audit trail: appended, never rewritten, read oldest first."""

import getpass
import json
from datetime import UTC, datetime, timedelta

from evaluate.publish import promotions
from infra.lake import Lake


def record(lake, name, action, before, after, reasons=(), run_id="r1"):
    promotions.record(
        lake, name=name, action=action, from_version=before, to_version=after, reasons=reasons, run_id=run_id
    )


def test_a_workspace_without_promotions_has_no_history(tmp_path):
    assert promotions.history(Lake(tmp_path)) == []
    assert promotions.history(Lake(tmp_path), "demo.ranking") == []


def test_rows_are_appended_and_read_oldest_first(tmp_path):
    lake = Lake(tmp_path)
    started = datetime.now(UTC)
    record(lake, "demo.retrieval", "promote", None, "1", ["no champion yet", 'Größe "5" > 3'])
    record(lake, "demo.ranking", "hold", "4", "5")
    record(lake, "demo.retrieval", "promote", "1", "2", run_id="r2")
    record(lake, "demo.retrieval", "rollback", "2", "1", ["complaints"])
    rows = promotions.history(lake, "demo.retrieval")
    assert [(r["action"], r["from_version"], r["to_version"]) for r in rows] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
    ]
    assert json.loads(rows[0]["reasons"]) == ["no champion yet", 'Größe "5" > 3']
    assert rows[1]["actor"].split() == [getpass.getuser(), "r2"]
    assert started - timedelta(seconds=1) <= rows[0]["at"] < rows[1]["at"] < rows[2]["at"] <= datetime.now(UTC)
    assert [r["name"] for r in promotions.history(lake)] == [
        f"demo.{n}" for n in ("retrieval", "ranking", *["retrieval"] * 2)
    ]
    assert promotions.history(lake, "demo.nothing") == []


def test_one_commit_per_row_even_for_equal_rows(tmp_path):
    lake = Lake(tmp_path)
    for _ in range(2):
        record(lake, "demo.ranking", "hold", "1", "2", ["the same"])
    assert len(promotions.history(lake)) == 2
    # Version 0 creates the table; no commit replaces a file of an earlier one.
    added = [pair for pair in lake.open("promotions").history() if pair["operation"] == "WRITE"]
    assert [entry["operationParameters"]["mode"] for entry in added] == ["Append", "Append"]
    assert len(lake.files("promotions", lake.version("promotions"))) == 2


def test_a_user_without_a_name(tmp_path, monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    record(Lake(tmp_path), "demo.ranking", "reject", None, "1")
    assert promotions.history(Lake(tmp_path))[0]["actor"] == "unknown r1"
