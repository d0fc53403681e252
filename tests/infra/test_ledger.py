"""The ledger: what is published once stays, under a key that everything it depends on goes into."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infra import ledger as module
from infra.commit import append_rows
from infra.lake import Lake
from infra.ledger import REBUILT, Ledger, Published, code_version, key_of
from infra.tables import FORMAT_VERSION, RUNS


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Lake(tmp_path / "lake"))


def publish(ledger: Ledger, unit: str = "events", **changes: Any) -> Published:
    row: dict[str, Any] = {
        "unit": unit,
        "date": "2026-01-03",
        "inputs": {"b": 2, "a": None},
        "config": {"epochs": 3},
        "outputs": {"events": 4, "quarantine": 5},
        "report": {"rows": 10, "share": 0.5, "name": "ü"},
        "seconds": 1.25,
        "run_id": "r1",
    }
    return ledger.publish(**{**row, **changes})


def test_nothing_is_published_in_an_empty_lake(ledger: Ledger) -> None:
    assert ledger.rows() == []
    assert ledger.find("k") is None
    assert not ledger.lake.root.exists()


def test_what_was_published_is_found_again(ledger: Ledger) -> None:
    before = datetime.now(UTC)
    row = publish(ledger)
    key = key_of("events", "2026-01-03", {"a": None, "b": 2}, {"epochs": 3})
    found = Ledger(ledger.lake).find(key)
    assert found == row
    assert found is not None
    assert (found.unit, found.date, found.run_id, found.seconds) == ("events", "2026-01-03", "r1", 1.25)
    assert (found.inputs, found.report) == ({"a": None, "b": 2}, {"rows": 10, "share": 0.5, "name": "ü"})
    assert (found.version("events"), found.version("quarantine")) == (4, 5)
    assert before <= found.published_at <= before + timedelta(minutes=1)
    assert found.code_version == code_version()


def test_a_second_one_gets_what_the_first_published(ledger: Ledger) -> None:
    """Else a command that lost a race would go on with versions that the ledger does not know."""
    first = publish(ledger)
    second = publish(ledger, outputs={"events": 9}, run_id="r2")
    assert second == first
    assert ledger.rows() == [first]


def test_threads_publish_a_key_once(ledger: Ledger) -> None:
    barrier, returned = threading.Barrier(4), list[Published]()

    def job(version: int) -> None:
        barrier.wait()
        returned.append(publish(Ledger(ledger.lake), outputs={"events": version}))

    threads = [threading.Thread(target=job, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = ledger.rows()
    assert returned == [row] * 4


def test_rows_come_oldest_first_and_again_when_others_publish(ledger: Ledger) -> None:
    publish(ledger, "b")
    assert [r.unit for r in ledger.rows()] == ["b"]
    publish(Ledger(ledger.lake), "a")  # another process's
    assert [r.unit for r in ledger.rows()] == ["b", "a"]
    ledger.rows().clear()
    assert [r.unit for r in ledger.rows()] == ["b", "a"]


def test_an_unchanged_ledger_is_read_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(ledger)
    ledger.rows()
    monkeypatch.setattr(Lake, "read", lambda *_: pytest.fail("read again"))
    assert len(ledger.rows()) == 1


def test_what_was_made_again_stands_for_what_it_replaces(ledger: Ledger) -> None:
    """Whoever asks for the first one's key gets the newest; the first stays in the record."""
    first = publish(ledger)
    again = [publish(ledger, inputs={**first.inputs, REBUILT: {"of": first.key, "run": r}}) for r in ("r2", "r3")]
    assert len({first.key, *(a.key for a in again)}) == 3
    assert [a.stands_for for a in again] == [first.key] * 2
    assert ledger.find(first.key) == again[1]
    assert ledger.find(again[0].key) == again[0]
    assert ledger.rows() == [first, *again]


def test_rows_of_another_format_are_told_apart(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    row = publish(ledger)
    assert row.of_this_format
    monkeypatch.setattr(module, "FORMAT_VERSION", FORMAT_VERSION + 1)
    assert not row.of_this_format


def test_a_commit_of_a_table_publishes_nothing(ledger: Ledger) -> None:
    append_rows(ledger.lake, RUNS, [], app_id="crashed before its row")
    assert ledger.rows() == []


def test_a_second_engine_reads_it(ledger: Ledger) -> None:
    publish(ledger)
    files = ledger.lake.files(RUNS.name, ledger.lake.version(RUNS.name) or 0)
    columns = "unit, outputs->>'events', json_valid(inputs), json_valid(report)"
    assert duckdb.read_parquet(files).project(columns).fetchall() == [("events", "4", True, True)]


class TestKeys:
    def test_by_hand(self) -> None:
        config = hashlib.sha256(b'{"epochs":3}').hexdigest()[:16]
        text = f'{{"config":"{config}","date":"d","format":{FORMAT_VERSION},"inputs":{{"t":1}},"unit":"u"}}'
        assert key_of("u", "d", {"t": 1}, {"epochs": 3}) == hashlib.sha256(text.encode()).hexdigest()[:16]

    def test_everything_goes_into_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = [
            key_of("u", "d", {"t": 1}, {"e": 3}),
            key_of("v", "d", {"t": 1}, {"e": 3}),
            key_of("u", "e", {"t": 1}, {"e": 3}),
            key_of("u", "d", {"t": 2}, {"e": 3}),
            key_of("u", "d", {"t": 1}, {"e": 4}),
        ]
        monkeypatch.setattr(module, "FORMAT_VERSION", FORMAT_VERSION + 1)
        keys.append(key_of("u", "d", {"t": 1}, {"e": 3}))
        assert len(set(keys)) == 6

    def test_the_order_of_inputs_does_not(self) -> None:
        assert key_of("u", "d", {"a": 1, "b": 2}, None) == key_of("u", "d", {"b": 2, "a": 1}, None)


class TestCodeVersion:
    @pytest.fixture(autouse=True)
    def fresh(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The module as if it lay in tmp_path/infra, with nothing remembered."""
        (tmp_path / "infra").mkdir()
        monkeypatch.setattr(module, "__file__", str(tmp_path / "infra" / "ledger.py"))
        monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 9.9")
        code_version.cache_clear()
        yield
        code_version.cache_clear()

    def repository(self, folder: Path) -> str:
        def git(*command: str) -> str:
            who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
            return subprocess.run(
                ["git", *who, *command], cwd=folder, capture_output=True, text=True, check=True
            ).stdout

        git("init", "-q")
        (folder / "infra" / "a.py").write_text("1")
        git("add", ".")
        git("commit", "-q", "-m", "first")
        git("tag", "-a", "v1", "-m", "one")
        return git("rev-parse", "HEAD").strip()

    def test_the_revision_of_a_clean_checkout(self, tmp_path: Path) -> None:
        revision = self.repository(tmp_path)
        assert code_version() == revision

    def test_uncommitted_changes_are_said(self, tmp_path: Path) -> None:
        revision = self.repository(tmp_path)
        (tmp_path / "infra" / "a.py").write_text("2")
        assert code_version() == f"{revision}-dirty"

    def test_installed_inside_a_strangers_checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository(tmp_path)
        (tmp_path / "site-packages" / "infra").mkdir(parents=True)
        monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "infra" / "ledger.py"))
        assert code_version() == "logs2rec 9.9"

    def test_outside_a_checkout_or_without_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert code_version() == "logs2rec 9.9"
        (tmp_path / ".git").mkdir()  # no repository
        code_version.cache_clear()
        assert code_version() == "logs2rec 9.9"
        code_version.cache_clear()
        monkeypatch.setenv("PATH", "")
        assert code_version() == "logs2rec 9.9"
