"""Drawing by hand, refusals, choosing; and real searches on a private cluster: one with a failure and two runs that
a killed search left behind, one that halves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

import train
from infra.cluster import RaySettings, cluster
from infra.errors import ConfigError, TrainingError
from tests.train.test_trainer import in_this_process, request_for
from train import checkpoint
from train import search as module
from train.configs import ADRecConfig, AsymDiffRecConfig
from train.search import Trial, chosen, search
from train.space import SearchSettings, Values, put
from train.trainer import TrainRequest, fit, job_of

RATE = {"training.learning_rate": {"log": [1e-4, 1e-2]}}


class Middle:
    """A generator that always draws the middle of what it is asked for."""

    def uniform(self, low, high):
        return (low + high) / 2

    def integers(self, low, high=None, endpoint=False):
        return (low + high + endpoint) // 2 if high is not None else low // 2


class TestDrawing:
    @pytest.mark.parametrize(
        ("values", "middle"),
        [
            ({"log": [1e-4, 1e-2]}, 1e-3),
            ({"log": ["1e-4", "1"]}, 1e-2),  # YAML reads 1e-4 as text
            ({"uniform": [0, 0.3]}, 0.15),
            ({"uniform": [1 / 3, 1 / 3 + 1e-9]}, 1 / 3),  # never rounded out of its bounds
            ({"integer": [1, 4]}, 3),
            ({"choice": [128, 256, 512]}, 256),
            ({"choice": [[64], None, "cosine", True]}, "cosine"),
        ],
    )
    def test_the_middle(self, values, middle):
        drawn = Values(**values).draw(Middle())
        assert drawn == pytest.approx(middle, rel=1e-8) if isinstance(middle, float) else drawn == middle

    def test_stays_in_bounds_and_reaches_both_halves(self):
        space = {"a": {"log": [1e-4, 1e-2]}, "b": {"uniform": [0, 0.3]}, "c": {"integer": [1, 3]}}
        drawn = SearchSettings(trials=400, space=space).drawn()
        assert len(drawn) == 400
        assert all(1e-4 <= d["a"] <= 1e-2 and 0 <= d["b"] <= 0.3 for d in drawn)
        assert 0.4 < sum(d["a"] < 1e-3 for d in drawn) / 400 < 0.6  # by orders of magnitude, not by length
        assert 0.4 < sum(d["b"] < 0.15 for d in drawn) / 400 < 0.6
        assert {d["c"] for d in drawn} == {1, 2, 3}
        assert all(float(f"{d['a']:.4g}") == d["a"] for d in drawn)

    def test_depends_on_the_seed_alone(self):
        space = {**RATE, "config.blocks": {"integer": [1, 3]}}
        few, more = (SearchSettings(trials=n, space=space) for n in (3, 5))
        assert more.drawn()[:3] == few.drawn()
        turned = SearchSettings(trials=3, space=dict(reversed(space.items())))
        assert turned.drawn() == few.drawn()
        assert SearchSettings(trials=3, space=space, seed=1).drawn() != few.drawn()

    def test_what_is_drawn_twice_is_tried_once(self):
        space = {"training.batch_size": {"choice": [8, 16]}}
        drawn = SearchSettings(trials=20, space=space).drawn()
        assert sorted(d["training.batch_size"] for d in drawn) == [8, 16]

    def test_what_is_written_down_reads_back(self):
        given = SearchSettings(trials=2, space={**RATE, "config.hidden": {"choice": [[8], [8, 4]]}})
        assert SearchSettings.model_validate(given.model_dump(mode="json")) == given
        assert SearchSettings.model_validate_json(given.model_dump_json(exclude_none=True)) == given

    def test_corners(self):
        space = {"b": {"uniform": [0, 1]}, "a": {"choice": [1, 2, 3]}}
        corners = list(SearchSettings(trials=1, space=space).corners())
        assert corners == [{"a": a, "b": b} for a in (1, 2, 3) for b in (0, 1)]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"space": {}}, "space"),
            ({"trials": 0}, "trials"),
            ({"seed": -1}, "seed"),
            ({"parallel": 0}, "parallel"),
            ({"epochs_first": 0}, "epochs_first"),
            ({"metric": "test"}, "metric"),
            ({"space": {"a": {}}}, "a.*exactly one of choice, uniform, log, integer"),
            ({"space": {"a": {"log": [1, 2], "uniform": [1, 2]}}}, "a.*exactly one"),
            ({"space": {"a": {"choice": None}}}, "a.*exactly one"),
            ({"space": {"a": {"choice": []}}}, "a.choice"),
            ({"space": {"a": {"normal": [0, 1]}}}, "a.normal"),
            ({"space": {"a": {"uniform": [2, 1]}}}, r"a\n.*the first has to be less"),
            ({"space": {"a": {"integer": [1, 1]}}}, r"a\n.*the first has to be less"),
            ({"space": {"a": {"integer": [1, 2.5]}}}, "a.integer"),
            ({"space": {"a": {"uniform": [0, math.inf]}}}, "a.uniform"),
            ({"space": {"a": {"log": [0, 1]}}}, r"a\n.*above 0"),
            ({"space": {"config.model": {"choice": ["sasrec"]}}}, "config.model cannot be searched: another arch"),
            ({"space": {"training.workers": {"choice": [1, 2]}}}, "training.workers cannot.*how a run is carried out"),
        ],
    )
    def test_refusals(self, changes, message):
        with pytest.raises(ValidationError, match=message):
            SearchSettings(**{"trials": 2, "space": RATE, **changes})

    @pytest.mark.parametrize(
        "name", ["config.dropuot", "dropout", "config", "config.width.x", "model.width", "config."]
    )
    def test_a_setting_that_is_not_there(self, name):
        with pytest.raises(ValueError, match=f"'{name}' is no setting of this model"):
            put({"config": ADRecConfig().model_dump(), "training": {}}, {name: 1})

    def test_nested_settings(self):
        before = {"config": AsymDiffRecConfig().model_dump()}
        after = put(before, {"config.base.dropout": 0.5, "config.base.hidden": [8]})
        assert AsymDiffRecConfig.model_validate(after["config"]).base.hidden == (8,)
        assert before["config"]["base"]["dropout"] == 0.1


class TestChoosing:
    @pytest.mark.parametrize(
        ("values", "highest", "lowest"),
        [
            ([0.1, 0.3, 0.2], 1, 0),
            ([0.2, 0.3, 0.3, 0.2], 1, 0),
            ([math.nan, 0.2, math.nan], 1, 1),
            ([None, 0.2, 0.1], 1, 2),
            ([0.0], 0, 0),
            ([math.nan, None], None, None),
            ([], None, None),
        ],
    )
    def test_the_first_of_the_best(self, values, highest, lowest):
        trials = [Trial({}, str(i), "finished", value) for i, value in enumerate(values)]
        assert chosen(trials, "valid_ndcg_20") == highest
        assert chosen(trials, "valid_log_loss") == lowest

    def test_only_what_finished(self):
        trials = [Trial({}, "a", "failed", 0.9), Trial({}, "b", "stopped", 0.8), Trial({}, "c", "finished", 0.1)]
        assert chosen(trials, "valid_ndcg_20") == 2
        assert chosen(trials[:2], "valid_ndcg_20") is None


def scripted(monkeypatch, ends: dict[int, dict]) -> None:
    """Tune's part, without Ray."""
    monkeypatch.setattr(module, "_tuned", lambda jobs, trackers, settings, folder, progress: ends)


def left_behind(root: Path, request: TrainRequest, values: dict, epochs: int) -> Path:
    """The run of a trial that was killed after so many epochs, with its record."""
    job = job_of(module._variant(request, values), root / "runs")
    Path(job.run).mkdir(parents=True)
    reports: list[dict] = []
    in_this_process(job, reports.append)
    for newer in checkpoint.candidates(Path(job.run))[: request.training.epochs - epochs]:
        (newer / checkpoint.MANIFEST).unlink()
    (Path(job.run) / "progress.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports[:epochs]))
    return Path(job.run)


class TestWithoutRay:
    def test_finished_runs_are_only_published(self, tmp_path, monkeypatch):
        request = request_for(tmp_path, epochs=2)
        settings = SearchSettings(trials=2, space={"training.learning_rate": {"log": [1e-3, 1e-1]}})
        runs = [left_behind(tmp_path, request, values, 2) for values in settings.drawn()]
        monkeypatch.setattr(module, "require_resources", None)
        found = search(request, settings, tmp_path / "runs")
        assert [t.run for t in found.trials] == [run.name for run in runs]
        assert all(t.state == "finished" and t.epochs == 2 and t.error is None for t in found.trials)
        assert found.values in settings.drawn()
        metrics = fit(found.request, tmp_path / "m", tmp_path / "runs")
        assert metrics["valid_metric"] == max(t.metric for t in found.trials)
        assert metrics["search"] == {"trials": 2, "values": found.values}
        assert train.load(tmp_path / "m").metrics == metrics

    def test_names_tell_configurations_apart_and_nothing_else(self, tmp_path):
        request = request_for(tmp_path)
        names = [module._variant(request, {"config.dropout": d}).run_name for d in (0.1, 0.2, 0.1)]
        assert names[0] == names[2] != names[1]
        assert all(n.startswith("run-") for n in names)
        assert module._variant(request_for(tmp_path, workers=2), {"config.dropout": 0.1}).run_name == names[0]

    def test_failures_are_told_and_not_chosen(self, tmp_path, monkeypatch, caplog):
        request = request_for(tmp_path, epochs=2)
        settings = SearchSettings(trials=2, space={"training.learning_rate": {"log": [1e-3, 1e-1]}})
        for values in settings.drawn():
            left_behind(tmp_path, request, values, 2)
        scripted(monkeypatch, {1: {"state": "failed", "error": "loss is nan"}})
        found = search(request, settings, tmp_path / "runs")
        assert (found.trials[1].state, found.trials[1].error) == ("failed", "loss is nan")
        assert found.values == settings.drawn()[0]
        assert "loss is nan" in caplog.text

    def test_no_trial_finishes(self, tmp_path, monkeypatch):
        settings = SearchSettings(trials=2, space=RATE)
        ends = {0: {"state": "failed", "error": "first cause"}, 1: {"state": "failed", "error": "second"}}
        scripted(monkeypatch, ends)
        with pytest.raises(
            TrainingError, match="search run: none of 2 trials finished; the first that failed: first cause"
        ):
            search(request_for(tmp_path), settings, tmp_path / "runs")

    def test_a_trial_that_did_not_finish_shows_how_far_it_came(self, tmp_path, monkeypatch):
        request = request_for(tmp_path, epochs=3)
        settings = SearchSettings(trials=2, space={"training.learning_rate": {"log": [1e-3, 1e-1]}})
        left_behind(tmp_path, request, settings.drawn()[0], 3)
        run = left_behind(tmp_path, request, settings.drawn()[1], 2)
        record = [{"epoch": 1, "valid_ndcg_20": 0.1}, {"epoch": 2, "valid_ndcg_20": 0.2}, {"epoch": 2, "loss": 1.0}]
        cut = '{"epoch": 9, "valid_nd'
        (run / "progress.jsonl").write_text("".join(json.dumps(r) + "\n" for r in record) + cut)
        scripted(monkeypatch, {1: {"state": "stopped"}})
        found = search(request, settings, tmp_path / "runs").trials[1]
        assert (found.state, found.metric, found.epochs, found.error) == ("stopped", 0.2, 2, None)

    def test_a_value_that_the_model_refuses(self, tmp_path):
        settings = SearchSettings(trials=1, space={"config.dropout": {"choice": [1.5]}})
        with pytest.raises(ConfigError, match=r"search.space, config.dropout=1.5: config: dropout: .* less than 1"):
            search(request_for(tmp_path), settings, tmp_path / "runs")

    def test_what_a_request_lacks(self, tmp_path):
        request = replace(request_for(tmp_path), versions={})
        with pytest.raises(TrainingError, match="no version of table 'sequences'"):
            search(request, SearchSettings(trials=1, space=RATE), tmp_path / "runs")


@pytest.fixture(scope="class")
def ray_cluster():
    with cluster(RaySettings(cpus=1, object_store_mb=100)):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_a_search_after_one_that_was_killed(self, tmp_path, capfd):
        request = request_for(tmp_path)
        settings = SearchSettings(trials=9, space={"training.learning_rate": {"choice": [0.01, 0.02, 1e30]}})
        rates = [d["training.learning_rate"] for d in settings.drawn()]
        assert sorted(rates) == [0.01, 0.02, 1e30]
        done = left_behind(tmp_path, request, {"training.learning_rate": 0.01}, 3)
        half = left_behind(tmp_path, request, {"training.learning_rate": 0.02}, 2)
        untouched = {p: p.stat().st_mtime_ns for p in done.rglob("*")}
        told: list[dict] = []
        found = search(request, settings, tmp_path / "runs", told.append)
        assert untouched == {p: p.stat().st_mtime_ns for p in done.rglob("*")}
        states = {t.values["training.learning_rate"]: t for t in found.trials}
        assert {rate: t.state for rate, t in states.items()} == {0.01: "finished", 0.02: "finished", 1e30: "failed"}
        assert "in stage 'main', epoch 1" in states[1e30].error
        assert states[0.02].run == half.name
        newest = checkpoint.candidates(half)[0]
        assert newest.name.startswith("epoch-000003")
        # The one that was cut goes on with its third epoch and ends where it had ended before.
        lines = (half / "progress.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
        assert {m["trial"] for m in told} <= {rates.index(0.02) + 1, rates.index(1e30) + 1}
        assert {m["trials"] for m in told} == {3}
        assert fit(found.request, tmp_path / "m", tmp_path / "runs")["search"]["values"] == found.values
        assert {p.name for p in (tmp_path / "runs").iterdir()} == {t.run for t in found.trials}
        assert capfd.readouterr().out == ""

    def test_halving_stops_the_worst(self, tmp_path):
        """Stories are told again from the records, so nothing is trained: who starts with 0.1 is stopped at once."""
        request = request_for(tmp_path, epochs=2)
        settings = SearchSettings(trials=3, space={"training.learning_rate": {"log": [1e-3, 1e-1]}}, epochs_first=1)
        runs = [left_behind(tmp_path, request, values, 2) for values in settings.drawn()]
        for run, first in zip(runs, (0.5, 0.9, 0.1), strict=True):
            lines = [json.dumps({"epoch": e, "valid_ndcg_20": first}) + "\n" for e in (1, 2)]
            (run / "progress.jsonl").write_text("".join(lines))
        found = search(request, settings, tmp_path / "runs")
        assert [t.state for t in found.trials] == ["finished", "finished", "stopped"]
        assert found.trials[2].metric == 0.1
