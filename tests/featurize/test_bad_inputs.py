"""Every bad input in its class, and every row accounted for: by the parser alone, then through Spark and Delta."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.contract import Contract
from featurize.ingest import ingest
from featurize.pseudonyms import UserKeys
from featurize.reasons import Reason
from featurize.rows import RowPlan, parse_split
from featurize.sources import columns_needed, list_files, refuse_changed, splits
from infra.errors import ConfigError, DataRefused, Logs2RecError
from infra.lake import Lake
from tests.featurize.bad_inputs import ARRIVAL, CASES, CONTRACTS, NOON, Case

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

KEYS = UserKeys((b"a key of the tests, 32 bytes long",))


def write(root: Path, *cases: Case) -> Path:
    folder = root / "log" / ARRIVAL
    folder.mkdir(parents=True)
    for case in cases:
        (folder / case.file).write_bytes(case.content)
    return root


def parsed(root: Path, contract: Contract, keys: UserKeys | None = None) -> tuple[list[dict[str, Any]], int]:
    """The rows in the order of their positions, and how many the tasks reported."""
    plan = RowPlan.of(contract, keys)
    shares = splits(root, list_files(root, contract.source), contract.source, columns_needed(contract))
    found = [row for share in shares for batch in parse_split(plan, share) for row in batch.to_pylist()]
    rows = [row for row in found if row["lines"] is None]
    return sorted(rows, key=lambda r: r["position"]), sum(row["lines"] or 0 for row in found)


def contract_of(case: Case, **over: Any) -> Contract:
    return Contract.model_validate({**CONTRACTS[case.group], **over})


def test_the_corpus_is_large_and_its_names_are_distinct() -> None:
    assert len(CASES) >= 120
    assert len({case.file for case in CASES}) == len({case.name for case in CASES}) == len(CASES)
    classes = {word for case in CASES for word in case.want}
    assert classes == {"event", "duplicate", *(r.value for r in Reason)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_each_row_lands_in_its_class(tmp_path: Path, case: Case) -> None:
    """Without Spark: which event came first is not known to a task, so copies and conflicts are events here."""
    root = write(tmp_path, case)
    rows, reported = parsed(root, contract_of(case))
    want = ["event" if w in ("duplicate", "id_conflict") else w for w in case.want]
    assert [row["reason"] or "event" for row in rows] == want
    assert reported == len(rows) == len(want)
    assert len({row["position"] for row in rows}) == len(rows)
    if case.users is not None:
        assert tuple(row["user"] for row in rows if row["reason"] is None) == case.users


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_with_personal_ids_the_classes_are_the_same_and_nothing_shows_a_value(tmp_path: Path, case: Case) -> None:
    root = write(tmp_path, case)
    plain, _ = parsed(root, contract_of(case))
    rows, _ = parsed(root, contract_of(case, personal=True), KEYS)
    assert [(r["position"], r["reason"], r["ds"], r["event_id"]) for r in rows] == [
        (r["position"], r["reason"], r["ds"], r["event_id"]) for r in plain
    ]
    for row, as_logged in zip(rows, plain, strict=True):
        assert not row["raw"]
        if row["reason"] is None:
            assert row["user"] == KEYS.pseudonym(as_logged["user"])
        else:
            assert not re.search(r"\bann\b", row["detail"])
            assert str(NOON)[:6] not in row["detail"]


@pytest.mark.parametrize("group", CONTRACTS)
def test_all_together_through_spark_and_delta(spark: SparkSession, tmp_path: Path, lake: Lake, group: str) -> None:
    """The tables hold each row once, in its class, and each file's account says so."""
    cases = [case for case in CASES if case.group == group]
    root, contract = write(tmp_path, *cases), Contract.model_validate(CONTRACTS[group])
    files = list_files(root, contract.source)
    result = ingest(spark, lake, contract, root, files, None, {})
    got: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    users: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in lake.read("events", result.versions["events"]).to_pylist():
        got[row["file"]].append((row["position"], "event"))
        users[row["file"]].append((row["position"], row["user"]))
    for row in lake.read("quarantine", result.versions["quarantine"]).to_pylist():
        got[row["file"]].append((row["position"], row["reason"]))
    accounts = {a["path"]: a for a in lake.read("ingested_files", result.versions["ingested_files"]).to_pylist()}
    assert len(accounts) == len(cases)
    for case in cases:
        file, want = f"log/{ARRIVAL}/{case.file}", Counter(case.want)
        assert [word for _, word in sorted(got[file])] == [w for w in case.want if w != "duplicate"], case.name
        counts = {k: accounts[file][k] for k in ("rows", "events", "duplicates", "quarantined")}
        expected = {"rows": len(case.want), "events": want["event"], "duplicates": want["duplicate"]}
        expected["quarantined"] = len(case.want) - want["event"] - want["duplicate"]
        assert counts == expected, case.name
        if case.users is not None:
            assert tuple(user for _, user in sorted(users[file])) == case.users, case.name
    everything = Counter(word for case in cases for word in case.want)
    assert result.reasons == {ARRIVAL: {w: n for w, n in everything.items() if w not in ("event", "duplicate")}}


class TestRefusals:
    """What is refused as a whole: by a typed error that names the file, before any row is read."""

    def refused(self, root: Path, group: str, error: type[Logs2RecError], words: str, path: str = "log/{date}") -> None:
        over = {"source": {**CONTRACTS[group]["source"], "path": path}}
        contract = Contract.model_validate({**CONTRACTS[group], **over})
        with pytest.raises(error, match=words):
            splits(root, list_files(root, contract.source), contract.source, columns_needed(contract))

    def file(self, root: Path, name: str, content: bytes) -> Path:
        path = root / "log" / ARRIVAL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"u,i,e,r,p,d,m,id\n", r"a\.csv: the column\(s\) 't' named by the contract are not there"),
            (b"user,i,t,e,r,p,d,m,id\n", r"a\.csv: the column\(s\) 'u'"),
            (b"u,i,t,e,r,p,d,m,id,u\n", r"a\.csv: the column\(s\) 'u' are there more than once"),
            (b"u;i;t;e;r;p;d;m;id\n", r"a\.csv: the column\(s\) 'u', 'i'"),
            (b'u,i,"t\n', r"a\.csv: its first line is no csv header"),
            (b"u\xff,i\n", r"a\.csv: its first line is no csv header"),
            ("u,i,t,e,r,p,d,m,id\n".encode("utf-16"), r"a\.csv: its first line is no csv header"),
            (b"\nann,x\n", r"a\.csv: the column\(s\)"),
        ],
    )
    def test_headers(self, tmp_path: Path, content: bytes, words: str) -> None:
        self.file(tmp_path, "a.csv", content)
        self.refused(tmp_path, "csv", DataRefused, words)

    def test_one_file_of_many_lacks_a_column(self, tmp_path: Path) -> None:
        self.file(tmp_path, "a.csv", b"u,i,t,e,r,p,d,m,id\n")
        self.file(tmp_path, "b.csv", b"u,i,t,e,r,p,d,m\n")
        self.refused(tmp_path, "csv", DataRefused, r"b\.csv: the column\(s\) 'id'")

    def test_parquet_without_a_column_and_what_is_no_parquet(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, "a.parquet", b"u,i\n" * 9)
        self.refused(tmp_path, "parquet", DataRefused, r"a\.parquet: not a readable Parquet file")
        pq.write_table(pa.table({"u": ["ann"]}), path)
        self.refused(tmp_path, "parquet", DataRefused, r"a\.parquet: the column\(s\) 'i', 't'")

    def test_no_file_no_folder_no_day(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "json", DataRefused, "no file there")
        self.refused(tmp_path / "nowhere", "json", ConfigError, "does not exist")
        (tmp_path / "log" / "2024-02-30").mkdir(parents=True)
        (tmp_path / "log" / "2024-02-30" / "a").write_bytes(b"")
        self.refused(tmp_path, "json", DataRefused, "2024-02-30 is no day of the calendar")

    def test_a_folder_named_like_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "log.json").mkdir()
        self.refused(tmp_path, "json", DataRefused, "no file there", path="log.json")
        (tmp_path / "log.json" / "part").write_bytes(b"{}\n")
        contract = Contract.model_validate({**CONTRACTS["json"], "source": {"path": "log.json", "format": "json"}})
        assert [f.path for f in list_files(tmp_path, contract.source)] == ["log.json/part"]

    @pytest.mark.parametrize("path", ["log/{date}", "log/{date}/*", "log/{date}/gon?"])
    def test_a_link_to_nothing(self, tmp_path: Path, path: str) -> None:
        self.file(tmp_path, "a", b"{}\n").with_name("gone").symlink_to(tmp_path / "nowhere")
        self.refused(
            tmp_path, "json", DataRefused, r"gone: No such file or directory \(a symbolic link to nothing\)", path
        )

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        self.file(tmp_path, "a", b"{}\n").with_name("loop").symlink_to("loop")
        self.refused(tmp_path, "json", DataRefused, "loop: Too many levels")

    def test_no_permission_for_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file(tmp_path, "a", b"{}\n")
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
        self.refused(tmp_path, "json", DataRefused, "a: no permission to read it")

    def test_no_permission_for_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = tmp_path / "log" / ARRIVAL / "closed"
        closed.mkdir(parents=True)
        real = os.scandir

        def scandir(path: Any = ".") -> Any:
            if str(path) == str(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        self.refused(tmp_path, "json", DataRefused, "closed: Permission denied; grant access")

    def test_a_file_that_vanishes_while_files_are_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.file(tmp_path, "a", b"{}\n")
        real = Path.is_file

        def is_file(self: Path) -> bool:
            there = real(self)
            path.unlink(missing_ok=True)
            return there

        monkeypatch.setattr(Path, "is_file", is_file)
        self.refused(tmp_path, "json", DataRefused, "a: No such file or directory; restore the file")

    def test_a_header_that_vanishes(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, "a.csv", b"u\n")
        contract = Contract.model_validate(CONTRACTS["csv"])
        files = list_files(tmp_path, contract.source)
        path.unlink()
        with pytest.raises(DataRefused, match=r"a\.csv: No such file"):
            splits(tmp_path, files, contract.source, [])

    def test_a_file_that_changed_since_it_was_listed(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, "a", b"{}\n")
        files = list_files(tmp_path, Contract.model_validate(CONTRACTS["json"]).source)
        refuse_changed(tmp_path, files)
        path.write_bytes(b"{}\n{}\n")
        with pytest.raises(DataRefused, match="a: it changed while it was read"):
            refuse_changed(tmp_path, files)


@pytest.mark.parametrize("change", ["vanish", "grow"])
def test_a_file_that_changes_during_the_job_publishes_nothing(
    spark: SparkSession, tmp_path: Path, lake: Lake, change: str
) -> None:
    """After listing and before the tasks read: they fail over and over, or read what was not listed."""
    case = next(c for c in CASES if c.name == "plain")
    root, contract = write(tmp_path, case), contract_of(case)
    files = list_files(root, contract.source)
    path = root / files[0].path
    if change == "vanish":
        path.unlink()
    else:
        path.write_bytes(case.content + case.content)
    words = "plain: No such file or directory" if change == "vanish" else "plain: it changed while it was read"
    with pytest.raises(DataRefused, match=words):
        ingest(spark, lake, contract, root, files, None, {})
    assert not lake.exists("events")
