"""A study of counted rows, resumed, interrupted and shared; once a model that is trained, with its one pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from infra.cluster import RaySettings, cluster
from infra.errors import ArtifactError, ConfigError, DataRefused, TrainingError, UsageError
from infra.lock import WorkspaceLock
from pipelines import published_split, replicate, study_plan, workbench
from pipelines.progress import Progress
from pipelines.published_split import PublishedSplit
from pipelines.study import Outcome, study
from pipelines.study_cells import Cells
from pipelines.study_kinds import KINDS
from tests.evaluate.publish.test_report import Page
from tests.pipelines.commands import RECIPES, logs2rec
from tests.pipelines.test_published_split import written
from tests.pipelines.test_replicate import ITEMS, USERS, by_hand, drawn

#: Two cells of one trained model (another batch size decides no figure of a counted model), and one of another.
ROWS = [
    {"name": "popularity", "model": "popularity", "inference": {"in sevens": {"evaluation.batch_size": 7}}},
    {"name": "other split", "model": "popularity", "set": {"training.epochs": 3}, "compare_to": "popularity"},
]
NO_SPLIT = PublishedSplit([], *[np.zeros(0, np.int64)] * 4, digest="0")
CELLS = ["small: popularity, seed {}", "small: in sevens, seed {}", "small: other split, seed {}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("split"), **drawn())


def planned(folder: Path, split: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A plan file with one table."""
    plan: dict[str, Any] = {
        "data": {"small": str(split)},
        "seeds": [3, 4],
        "tables": [{"title": "Counted", "data": "small", "rows": rows or ROWS}],
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


def carried_out(plan: Path, out: Path, *only: str, page_only: bool = False) -> Outcome:
    with Progress(1) as progress:
        return study(plan, out, only, progress, page_only)


def measured_by(monkeypatch: pytest.MonkeyPatch, measure: Any) -> None:
    """Stands in for training and evaluation."""
    monkeypatch.setitem(KINDS, "sequences", replace(KINDS["sequences"], on=measure))


def cells_in(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "cells").iterdir())


class TestResuming:
    def test_only_what_is_missing_is_measured(
        self, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, out = planned(tmp_path, data), tmp_path / "out"
        first = carried_out(plan, out)
        assert first.measured == [cell.format(seed) for seed in (3, 4) for cell in CELLS]  # seeds are the outer loop
        assert len(cells_in(out)) == 6
        assert len(list((out / "work").iterdir())) == 4  # two trainings with two seeds
        assert len(list((out / "work").glob("*/artifacts/*"))) == 4

        measured_by(monkeypatch, None)  # nothing to do is nothing done
        again = carried_out(plan, out)
        assert (again.measured, again.skipped) == ([], first.measured)
        assert [table["rows"] for table in again.study["tables"]] == [table["rows"] for table in first.study["tables"]]
        monkeypatch.undo()

        import train.trainer

        monkeypatch.setattr(train.trainer, "fit", None)  # the artifact is there
        gone = cells_in(out)[2]
        shutil.rmtree(out / "cells" / gone)
        third = carried_out(plan, out)
        assert (len(third.measured), len(third.skipped)) == (1, 5)
        assert gone in cells_in(out)

    def test_killed_between_and_while_writing(
        self, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, out, calls = planned(tmp_path, data), tmp_path / "out", []
        whole = replicate.on_split

        def interrupted(*given: Any) -> workbench.Replication:
            calls.append(given)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return whole(*given)

        measured_by(monkeypatch, interrupted)
        with pytest.raises(KeyboardInterrupt):
            carried_out(plan, out)
        assert len(cells_in(out)) == 1
        assert "1 of 2" in (out / "study.html").read_text()
        monkeypatch.undo()

        import train.checkpoint

        def killed(*given: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(train.checkpoint, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            carried_out(plan, out, "popularity")
        assert len(cells_in(out)) == 1
        monkeypatch.undo()
        assert (len(carried_out(plan, out).measured), len(cells_in(out))) == (5, 6)

    def test_rows_that_mean_the_same_share_a_cell(self, tmp_path: Path, data: Path) -> None:
        twins = [
            {"name": "a", "model": "popularity"},
            {"name": "b", "model": "popularity", "set": {"training.workers": 2}, "compare_to": "a"},
        ]
        found = carried_out(planned(tmp_path, data, twins, seeds=[0]), tmp_path / "out")
        assert found.measured == ["small: a, seed 0"]
        assert [row["seeds"] for row in found.study["tables"][0]["rows"]] == [1, 1]

    def test_another_file_is_another_cell(self, tmp_path: Path, data: Path) -> None:
        out = tmp_path / "out"
        carried_out(planned(tmp_path, data), out)
        changed = {**drawn(), "test": [1] * USERS}
        found = carried_out(planned(tmp_path, written(tmp_path / "other", **changed)), out)
        assert (len(found.measured), len(cells_in(out))) == (6, 12)

    def test_only_some_rows_and_only_the_page(self, tmp_path: Path, data: Path) -> None:
        plan, out = planned(tmp_path, data), tmp_path / "out"
        nothing = carried_out(plan, out, page_only=True)
        assert not nothing.measured
        assert "Nothing was measured yet" in Page((out / "study.html").read_text()).text
        found = carried_out(plan, out, "other split")
        assert found.measured == [CELLS[2].format(seed) for seed in (3, 4)]
        with pytest.raises(UsageError, match="--only 'pop': the plan's rows are popularity, other split"):
            carried_out(plan, out, "pop")

    def test_a_training_that_another_study_is_at_is_left_to_it(self, tmp_path: Path, data: Path) -> None:
        plan, out = planned(tmp_path, data, seeds=[3]), tmp_path / "out"
        loaded = study_plan.read(plan)
        table = study_plan.resolve(plan, loaded, {"small": published_split.read(data)})[0]
        other = WorkspaceLock(out / "work" / table.rows[0].cells[0].training_key)
        other.hold("another study")
        found = carried_out(plan, out)
        assert found.busy == [cell.format(3) for cell in CELLS[:2]]
        assert found.measured == [CELLS[2].format(3)]
        other.release()
        assert carried_out(plan, out).measured == found.busy

    def test_two_that_measure_the_same_keep_the_first(self, tmp_path: Path, data: Path) -> None:
        plan, out = planned(tmp_path, data, ROWS[1:2] + ROWS[:1], seeds=[3]), tmp_path / "out"
        carried_out(plan, out)
        split = published_split.read(data)
        cell = study_plan.resolve(plan, study_plan.read(plan), {"small": split})[0].rows[0].cells[0]
        before = (Cells(out).path(cell) / "cell.json").read_bytes()
        with Progress(1) as progress:
            found = replicate.on_split("popularity", split, cell.settings, tmp_path / "w", progress)
        Cells(out).publish(cell, found)
        assert (Cells(out).path(cell) / "cell.json").read_bytes() == before
        assert not list((out / "cells").glob(".*"))

    def test_a_damaged_cell_is_named(self, tmp_path: Path, data: Path) -> None:
        plan, out = planned(tmp_path, data), tmp_path / "out"
        carried_out(plan, out, "other split")
        path = out / "cells" / cells_in(out)[0] / "users.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactError, match=r"users\.parquet: .*; remove .*, and the cell is made again"):
            carried_out(plan, out, page_only=True)


class TestWhatIsKept:
    def test_a_cell_holds_its_key_and_every_user(self, tmp_path: Path, data: Path) -> None:
        out = tmp_path / "out"
        carried_out(planned(tmp_path, data, seeds=[3]), out, "other split")
        (folder,) = (out / "cells").iterdir()
        about = json.loads((folder / "cell.json").read_text())
        assert (about["key"], about["model"], about["seed"], about["data"]) == (folder.name, "popularity", 3, "small")
        assert about["parts"]["training"]["epochs"] == 3
        assert about["parts"]["evaluation"]["seed"] == 3
        assert about["figures"]["users"] == USERS
        assert {"date", "code", "cores"} <= about.keys()
        table = pq.ParquetFile(folder / "users.parquet").read()
        assert table["user"].to_pylist() == [str(user) for user in drawn()["user"]]
        for name, users in by_hand(drawn()).items():
            for metric in ("hr_at_20", "ndcg_at_20", "hr_at_10", "ndcg_at_50"):
                expected = [users.get(user, {}).get(metric) for user in drawn()["user"]]
                assert table[f"{name}/{metric}"].to_pylist() == pytest.approx(expected)
        assert None in table["history_removed/ndcg_at_20"].to_pylist()

    def test_the_page_and_its_figures(self, tmp_path: Path, data: Path) -> None:
        out = tmp_path / "out"
        plan = planned(tmp_path, data)
        carried_out(plan, out, "popularity")
        found = json.loads((out / "study.json").read_text())["tables"][0]
        first, sevens, missing = found["rows"]
        for name, users in by_hand(drawn()).items():
            mean = np.mean([values["ndcg_at_20"] for values in users.values()])
            told = first["figures"][f"{name}/ndcg_at_20"]
            assert told == {"mean": pytest.approx(100 * mean), "deviation": pytest.approx(0)}
        assert first["figures"]["valid/ndcg_at_20"]["mean"] > 0
        assert sevens["figures"]["valid/ndcg_at_20"] is None  # selected by the trained row's inference
        assert (first["seeds"], missing["seeds"], missing["figures"]["all_items/hr_at_20"]) == (2, 0, None)
        same, other = found["contrasts"][:2], found["contrasts"][2:]
        assert [(c["row"], c["against"], c["column"], c["same_model"]) for c in same] == [
            ("popularity", "in sevens", "all_items/ndcg_at_20", True),
            ("popularity", "in sevens", "history_removed/ndcg_at_20", True),
        ]  # fmt: skip
        assert {c["verdict"] for c in same} == {"no difference shown"}
        assert (same[0]["comparison"]["p"], same[0]["comparison"]["seeds"]) == (1, 2)
        assert same[0]["comparison"]["users"] == USERS
        assert same[1]["comparison"]["users"] == len(by_hand(drawn())["history_removed"])
        assert {c["verdict"] for c in other} == {"not run yet"}

        source = (out / "study.html").read_text()
        page = Page(source)
        for words in ("2 of 2", "not run yet", f"{USERS} users, {ITEMS} items", "CPU cores", "validation items alone"):
            assert words in page.text
        assert "popularity against in sevens, NDCG@20, all items: +0.00 points" in page.text
        assert first["figures"]["all_items/ndcg_at_20"]["mean"] in page.figures
        assert str(data) not in source
        assert "script" not in {tag for tag, _ in page.tags}

    def test_nobody_left(self, tmp_path: Path) -> None:
        """With the history removed no user is left to compare."""
        split = written(tmp_path / "split", train=[[1, 2], [1, 2]], val=[3, 1], test=[2, 2])
        found = carried_out(planned(tmp_path, split, seeds=[0]), tmp_path / "out")
        verdicts = [c["verdict"] for c in found.study["tables"][0]["contrasts"]]
        assert verdicts == ["no difference shown", "not defined"] * 2


def test_a_failed_training_stops_no_other(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    whole, tried = replicate.on_split, []

    def failing(model: str, split: Any, settings: Any, *given: Any) -> workbench.Replication:
        tried.append(settings)
        if settings.training.epochs != 3:
            raise TrainingError("loss is nan at step 7")
        return whole(model, split, settings, *given)

    measured_by(monkeypatch, failing)
    plan = planned(tmp_path, data, seeds=[3])
    with pytest.raises(SystemExit) as ended:
        main(["study", "--plan", str(plan), "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failed"] == dict.fromkeys([cell.format(3) for cell in CELLS[:2]], "loss is nan at step 7")
    assert found["measured"] == [CELLS[2].format(3)]
    assert len(tried) == 2  # the other evaluation of what failed does not train it again


def test_through_the_command_line(tmp_path: Path, data: Path) -> None:
    plan, out = planned(tmp_path, data, seeds=[0]), tmp_path / "out"
    done = logs2rec("study", "--plan", plan, "--out", out, "--only", "other split", "--json")
    assert done.code == 0, done.stderr
    assert list(done.json) == ["measured", "skipped", "busy", "failed", "page", "study"]
    assert done.json["measured"] == ["small: other split, seed 0"]
    assert "small: other split, seed 0: published" in done.stderr
    assert "1 cells measured, 0 were there" in done.stdout
    assert "…" not in done.stdout  # names and heads are whole
    assert Path(done.json["page"]).is_file()


class TestPlans:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tabels": []}, r"plan\.yaml: tabels: unknown setting"),
            ({"seeds": []}, r"plan\.yaml: seeds:"),
            ({"seeds": [1, 1]}, "seeds: one is there twice"),
            ({"seeds": [-1]}, r"seeds\.0"),
            ({"data": {"big": "x"}}, r"tables\.0\.data: 'small' is none of big"),
            ({"data": {"small": "nowhere"}}, r"plan\.yaml: data\.small: nowhere: no such folder"),
        ],
    )
    def test_refused_by_file_and_field(self, tmp_path: Path, data: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            carried_out(planned(tmp_path, data, **changes), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"modle": "adrec"}, r"tables\.0\.rows\.1\.modle: unknown setting"),
            ({"model": "sasrek"}, r"tables\.0\.rows\.1\.model: replicate\.yaml has no section 'sasrek'; it has popul"),
            ({"name": "popularity"}, "the name 'popularity' is there twice"),
            ({"name": "in sevens"}, "the name 'in sevens' is there twice"),
            ({"compare_to": "nobody"}, "'mine': compare_to 'nobody' is no other row"),
            ({"compare_to": "mine"}, "'mine': compare_to 'mine' is no other row"),
            ({"compare_to": ["popularity", "nobody"]}, "'mine': compare_to 'nobody' is no other row"),
            ({"set": {"config.widht": 8}}, r"plan\.yaml: tables\.0\.rows\.1: config\.adrec\.widht: unknown setting"),
            ({"set": {"config.model.name": 8}}, r"tables\.0\.rows\.1: 'model' holds a single value"),
            ({"set": {"training.seed": 8}}, r"rows\.1\.set: training\.seed comes from the plan's seeds"),
            ({"inference": {"x": {"evaluation.seed": 8}}}, r"inference\.x: evaluation\.seed comes from the plan"),
            ({"inference": {"x": {"config.steps": 8}}}, r"inference\.x: config\.steps decides the training"),
            ({"inference": {"x": {"evaluation.steps": -1}}}, r"rows\.1: evaluation\.steps"),
            ({"inference": {"x": {"evaluation.steps": 64}}}, r"evaluation\.steps 64 exceeds the model's 32 steps"),
        ],
    )
    def test_a_wrong_row(self, tmp_path: Path, data: Path, row: dict[str, Any], message: str) -> None:
        plan = planned(tmp_path, data, [ROWS[0], {"name": "mine", "model": "adrec", **row}])
        with pytest.raises(ConfigError, match=message):
            carried_out(plan, tmp_path / "out")

    def test_a_wrong_split(self, tmp_path: Path) -> None:
        with pytest.raises(DataRefused, match="val"):
            carried_out(planned(tmp_path, written(tmp_path / "split", val=None)), tmp_path / "out")

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"columns": ["all_items/map_at_20"]}, r"columns: 'all_items/map_at_20' is not measured"),
            ({"compare": ["lists/gini"]}, r"compare: 'lists/gini' is not measured"),
            ({"compare": ["lists/category_count"]}, r"tables\.0: lists/category_count needs categories\.small"),
            ({"columns": ["all_items/hr_at_7"]}, r"rows\.0: evaluation\.ks has to hold 7"),
        ],
    )
    def test_columns_that_are_not_measured(
        self, tmp_path: Path, data: Path, table: dict[str, Any], message: str
    ) -> None:
        tables = [{"title": "Counted", "data": "small", "rows": ROWS, **table}]
        with pytest.raises(ConfigError, match=message):
            carried_out(planned(tmp_path, data, tables=tables), tmp_path / "out")
        with pytest.raises(ConfigError, match=r"categories: 'large' is none of small"):
            carried_out(planned(tmp_path, data, categories={"large": "x"}), tmp_path / "out")
        with pytest.raises(ConfigError, match=r"plan\.yaml: categories\.small: .*no such file"):
            carried_out(planned(tmp_path, data, categories={"small": "x"}), tmp_path / "out")

    def test_the_cutoff_of_the_tables_has_to_be_measured(self, tmp_path: Path, data: Path) -> None:
        row = {"name": "popularity", "model": "popularity", "set": {"evaluation.ks": [10]}}
        with pytest.raises(ConfigError, match=r"tables\.0\.rows\.0: evaluation\.ks has to hold 20"):
            carried_out(planned(tmp_path, data, [row]), tmp_path / "out")

    def test_validation_needs_no_cutoff(self, tmp_path: Path, data: Path) -> None:
        row = {"name": "popularity", "model": "popularity", "set": {"evaluation.ks": [10]}}
        table = {"title": "t", "data": "small", "rows": [row], "compare": ["all_items/ndcg_at_10"],
                 "columns": ["all_items/ndcg_at_10", "valid/ndcg_at_20"]}  # fmt: skip
        assert len(carried_out(planned(tmp_path, data, tables=[table]), tmp_path / "out").measured) == 2

    def test_the_shipped_plan(self) -> None:
        plan = study_plan.read(RECIPES / "study.yaml")
        tables = study_plan.resolve(Path("study.yaml"), plan, dict.fromkeys(plan.data, NO_SPLIT))
        rows = [row for table in tables for row in table.rows if table.data == "ml-100k"]
        keys = {row.name: row.cells[0] for row in rows}
        assert keys["ADRec"].key == keys["T = 32"].key == keys["scale 0.001, as published"].key
        assert keys["ADRec"].training_key == keys["ADRec, one pass, no noise"].training_key
        assert len({cell.training_key for cell in keys.values()}) == len({row.planned for row in rows}) - 2


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=1, object_store_mb=100)):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_one_training_evaluated_in_two_ways(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "config.width": 8, "config.heads": 1, "config.blocks": 1, "config.denoiser_blocks": 1, "config.max_length": 4,
        "config.steps": 4, "config.noise_scale": 1, "training.epochs": 3, "training.workers": 1,
        "training.batch_size": 32,
    }  # fmt: skip
    one_pass = {"one pass, no noise": {"evaluation.steps": 0}}
    rows = [
        {"name": "adrec", "model": "adrec", "set": small, "inference": one_pass, "compare_to": "popularity"},
        {"name": "popularity", "model": "popularity"},
    ]
    plan, out = planned(tmp_path, data, rows, seeds=[0]), tmp_path / "out"
    found = carried_out(plan, out)
    assert len(found.measured) == 3
    assert len(list((out / "work").glob("*/artifacts/adrec-*"))) == 1
    full, single, counted = found.study["tables"][0]["rows"]
    assert full["train_seconds"] == single["train_seconds"]
    assert full["figures"] != counted["figures"]
    cells = [json.loads(path.read_text()) for path in (out / "cells").glob("*/cell.json")]
    assert sorted(str(cell["parts"]["evaluation"]["steps"]) for cell in cells) == ["0", "None", "None"]
    contrasts = found.study["tables"][0]["contrasts"]
    assert [(c["against"], c["same_model"]) for c in contrasts[::2]] == [
        ("popularity", False), ("one pass, no noise", True),
    ]  # fmt: skip
    assert all(c["adjusted_p"] >= c["comparison"]["p"] for c in contrasts)

    # A further inference of the same model: no training, no Ray.
    import train.trainer

    monkeypatch.setattr(train.trainer, "fit", None)
    monkeypatch.setattr(workbench, "cluster", None)
    one_pass["two steps"] = {"evaluation.steps": 2}
    assert carried_out(planned(tmp_path, data, rows, seeds=[0]), out).measured == ["small: two steps, seed 0"]


class TestShippedPlanOfDimeRec:
    def test_rows_that_share_a_training_and_those_that_do_not(self) -> None:
        plan = study_plan.read(RECIPES / "dimerec.yaml")
        tables = study_plan.resolve(Path("dimerec.yaml"), plan, dict.fromkeys(plan.data, NO_SPLIT))
        first, second, ablations, _, settings = ({row.name: row.cells[0] for row in table.rows} for table in tables)
        defaults = (first["DimeRec"], ablations["DimeRec"], settings["lambda 0.3, mu 1, T 32, K 4"])
        assert len({cell.key for cell in defaults}) == 1
        assert second["DimeRec"].training_key == first["DimeRec"].training_key
        planned = {row.name for table in (tables[2], tables[4]) for row in table.rows if row.planned == row.name}
        cells = [*ablations.items(), *settings.items()]
        trained = [cell.training_key for name, cell in cells if name in planned]
        assert len(set(trained)) == len(trained) - 1
        assert first["DimeRec, 4 draws"].training_key == first["DimeRec"].training_key


class TestColumnsThatCameLater:
    def test_cells_without_them_are_measured_again(self, tmp_path: Path, data: Path) -> None:
        out = tmp_path / "out"
        carried_out(planned(tmp_path, data), out, "popularity")
        table = {"title": "Counted", "data": "small", "rows": ROWS, "columns": ["lists/exposure_entropy"]}
        assert len(carried_out(planned(tmp_path, data, tables=[table]), out, "popularity").measured) == 4
        found = json.loads((out / "study.json").read_text())["tables"][0]["rows"][0]
        assert 0 < found["figures"]["lists/exposure_entropy"]["mean"] < 1
        assert len(list((out / "work").iterdir())) == 2, "of the same trained models"


class TestCategories:
    COLUMNS = ("history_removed/hr_at_50", "lists/category_count", "lists/gini")

    def test_lists_are_measured_and_compared(self, tmp_path: Path, data: Path) -> None:
        """Every item has a category of its own but the first ten, which share one."""
        rows = {"item": range(1, ITEMS + 1), "categories": [["c" if i <= 10 else f"c{i}"] for i in range(1, ITEMS + 1)]}
        pq.write_table(pa.table(rows), tmp_path / "items.parquet")
        table = {"title": "Counted", "data": "small", "rows": ROWS, "columns": self.COLUMNS,
                 "compare": ["lists/category_count"]}  # fmt: skip
        files = {"small": str(tmp_path / "items.parquet")}
        plan, out = planned(tmp_path, data, tables=[table], categories=files), tmp_path / "out"
        carried_out(plan, out, "popularity")
        found = json.loads((out / "study.json").read_text())["tables"][0]
        assert found["columns"] == list(self.COLUMNS)
        figures = found["rows"][0]["figures"]
        folder = next(iter((out / "cells").iterdir()))
        users = pq.read_table(folder / "users.parquet")
        assert users["user"].to_pylist() == [str(user) for user in drawn()["user"]]
        count = np.mean(users["lists/category_count"].to_pylist())
        assert 1 < count <= 20
        assert figures["lists/category_count"]["mean"] == pytest.approx(count)
        assert 0 < figures["lists/gini"]["mean"] < 1
        assert [c["column"] for c in found["contrasts"]] == ["lists/category_count"] * 2
        without = planned(tmp_path, data)
        assert len(carried_out(without, out, "popularity").measured) == 4, "without categories they are other cells"
        assert len(list((out / "work").iterdir())) == 2, "of the same trained models"
