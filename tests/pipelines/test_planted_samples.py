"""Samples of a workspace with cells taken away: real tables, read back as models read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluate.missingness import removed
from infra.commit import commit, write_file
from infra.errors import DataRefused, UsageError
from infra.lake import Lake
from infra.ledger import Ledger
from infra.tables import FIELDS, Kind, samples
from pipelines import planted_samples
from pipelines.planted_samples import LoggedSamples, Planting, read, write
from train.ranking_data import RankingData

KINDS = [("user", Kind.CATEGORICAL), ("price", Kind.NUMERIC), ("tags", Kind.MULTI)]
DAY = "2024-03-04"
ALL = ("train", "valid", "test")


def workspace(folder: Path, splits: tuple[str, ...] = ALL, day: str = DAY, seed: int = 0, days: int = 3) -> Path:
    """60 samples a split of 12 users over some days, the second of the fields sometimes missing."""
    lake, table, rng = Lake(folder / "lake"), samples(KINDS), np.random.default_rng(seed)
    files = []
    for split in splits:
        rows = [
            {
                "event_id": f"{split}{i:03d}", "user": f"u{i % 12}", "item": 2, "label": (i // 12 + i) % 2,
                "label_source": "observed", "ts": datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=i % days),
                "missing": 2 if i % 5 == 0 else 0,
                "f_user": 2 + i % 12, "f_price": None if i % 5 == 0 else float(rng.integers(0, 100)),
                "f_tags": [2, 3][: i % 3],
            }
            for i in range(60)
        ]  # fmt: skip
        data = pa.Table.from_pylist(rows, schema=table.file_schema)
        files.append(write_file(lake.path("samples"), table, {"as_of": day, "split": split}, [data]))
    specs = [
        {"position": i, "name": name, "kind": str(kind), "size": size, "mean": 1.0, "std": 2.0, "missing_rate": 0.5}
        for i, ((name, kind), size) in enumerate(zip(KINDS, (14, 0, 4), strict=True))
    ]
    fields = write_file(
        lake.path("fields"), FIELDS, {"as_of": day}, [pa.Table.from_pylist(specs, schema=FIELDS.file_schema)]
    )
    versions = {
        "samples": commit(lake, table, files, replace={"as_of": [day]}, metadata={}),
        "fields": commit(lake, FIELDS, [fields], replace={"as_of": [day]}, metadata={}),
    }
    Ledger(lake).publish(
        unit="samples", date=day, inputs={}, config={}, outputs=versions, report={}, seconds=0.0, run_id="test"
    )
    return folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> LoggedSamples:
    return read(workspace(tmp_path_factory.mktemp("workspace"), days=8))


def planted(folder: Path, logged: LoggedSamples, **planting: object) -> dict[str, RankingData]:
    lake = Lake(folder)
    versions = write(lake, logged, Planting.model_validate(planting))
    return {
        split: RankingData.from_lake(lake, versions["samples"], versions["fields"], logged.as_of, split)
        for split in ("train", "valid", "test")
    }


def test_by_day_needs_days(tmp_path: Path) -> None:
    few = read(workspace(tmp_path / "few"))
    with pytest.raises(DataRefused, match=r"planting\.pattern: by_day .* a split has 3 days of 7"):
        planted(tmp_path / "planted", few, rate=0.3, pattern="by_day")


def test_nothing_planted_is_the_log(tmp_path: Path, logged: LoggedSamples) -> None:
    for split, data in planted(tmp_path, logged).items():
        own = logged.data[split]
        assert (data.missing_N == own.missing_N).all()
        assert (data.numeric_NG == own.numeric_NG).all()
        assert (data.categorical_NF == own.categorical_NF).all()
        assert (data.multi[0].values == own.multi[0].values).all()
        assert data.user_N.tolist() == own.user_N.tolist()


@pytest.mark.parametrize("pattern", ["at_random", "by_activity", "by_day"])
def test_every_split_loses_what_the_pattern_removes(tmp_path: Path, logged: LoggedSamples, pattern: str) -> None:
    found = planted(tmp_path, logged, rate=0.4, pattern=pattern, seed=2)
    for number, split in enumerate(ALL):
        own = logged.data[split]
        gone = removed(pattern, 0.4, own, 2, stream=1 + number)
        assert (found[split].missing_N == own.missing_N | gone).all()
        left = (gone >> 2 & 1) == 0
        lengths = np.diff(found[split].multi[0].offsets)
        assert (lengths == np.where(left, np.diff(own.multi[0].offsets), 0)).all()
        assert (found[split].label_N == own.label_N).all()


def test_the_fields_are_described_by_what_is_left(tmp_path: Path, logged: LoggedSamples) -> None:
    data = planted(tmp_path, logged, rate=0.5, seed=1)["train"]
    there = (data.missing_N >> 1 & 1) == 0
    prices = data.numeric_NG[there, 0].astype(np.float64)
    user, price, tags = data.fields
    assert price.missing_rate == pytest.approx(1 - there.mean())
    assert (price.mean, price.std) == pytest.approx((prices.mean(), prices.std()))
    for bit, spec in ((0, user), (2, tags)):
        assert spec.missing_rate == pytest.approx((data.missing_N >> bit & 1).mean())
    assert (user.size, tags.size) == (14, 4)


def test_a_numeric_field_of_which_nothing_is_left(tmp_path: Path, logged: LoggedSamples) -> None:
    price = planted(tmp_path, logged, rate=0.999, seed=1)["train"].fields[1]
    assert (price.missing_rate, price.mean, price.std) == (1.0, 0.0, 1.0)


def test_another_seed_takes_other_cells_and_the_same_seed_the_same(tmp_path: Path, logged: LoggedSamples) -> None:
    masks = [planted(tmp_path / str(n), logged, rate=0.4, seed=s)["test"].missing_N for n, s in enumerate((1, 1, 2))]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_the_newest_date_and_a_digest_of_what_is_in_it(tmp_path: Path) -> None:
    first = read(workspace(tmp_path / "a"))
    assert first.as_of == DAY
    assert first.digest == read(workspace(tmp_path / "b")).digest
    assert first.digest != read(workspace(tmp_path / "c", seed=1)).digest
    workspace(tmp_path / "a", day="2024-03-05", seed=1)
    assert read(tmp_path / "a").as_of == "2024-03-05"


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no samples are published there; run `logs2rec stage samples`"):
        read(tmp_path / "nothing")
    with pytest.raises(DataRefused, match="no row in valid"):
        read(workspace(tmp_path / "w", splits=("train", "test")))
    assert planted_samples.SPLITS == ("train", "valid", "test")
