"""A replication on a split of sixty users: popularity against an own count, SASRec once on two workers."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evaluate.metrics.diversity import ItemCategories
from infra.cluster import RaySettings, cluster
from infra.config import read_yaml
from infra.errors import ConfigError, UsageError
from infra.lake import Lake
from infra.tables import FIRST_INDEX
from pipelines import published_split, workbench
from pipelines import replicate as steering
from pipelines.progress import Progress
from pipelines.replicate import Fit, replicate, settings_of
from pipelines.workbench import Replication
from tests.conftest import REAL_DATA
from tests.pipelines.commands import logs2rec
from tests.pipelines.test_published_split import written
from train import artifact
from train.configs import SASRecConfig
from train.models import build_sequence
from train.settings import TrainingSettings

USERS, ITEMS, KS = 60, 12, (5, 10, 20, 50)
UNSEEN = ITEMS  # the last id is no one's but as a test item
SASREC = [
    *("config.width=8", "config.heads=1", "config.blocks=1", "config.max_length=4"),
    *("training.epochs=2", "training.batch_size=16", "training.validate_every=1"),
]


def drawn() -> dict[str, list[Any]]:
    """Users out of order, skewed items, one user without a training item, one with a single one, an unseen target."""
    draw = random.Random(3)
    items = range(1, UNSEEN)
    train = [draw.choices(items, weights=items, k=draw.randint(2, 9)) for _ in range(USERS)]
    train[4], train[5] = [], [11]
    val, test = ([draw.choice(items) for _ in range(USERS)] for _ in range(2))
    test[9] = UNSEEN
    users = [100 - number for number in range(USERS)]
    return {"user": users, "train": train, "val": [[item] for item in val], "test": test}


def by_hand(split: dict[str, list[Any]]) -> dict[str, dict[int, dict[str, float]]]:
    """{candidate set: {user: metrics}} of popularity: lone events are not counted, ties go to the lower id."""
    counts = Counter(item for items in split["train"] if len(items) > 1 for item in items)
    order = sorted(range(1, ITEMS + 1), key=lambda item: (-counts[item], item))
    known = {item for items in split["train"] for item in items}
    out: dict[str, dict[int, dict[str, float]]] = {"all_items": {}, "history_removed": {}}
    for user, train, (val,), test in zip(*split.values(), strict=True):
        taken = {*train, val}
        ranks = {"all_items": order.index(test) + 1}
        if test not in taken:
            ranks["history_removed"] = [i for i in order if i not in taken].index(test) + 1
        for name, rank in ranks.items():
            hits = {k: test in known and rank <= k for k in KS}
            gain = {f"ndcg_at_{k}": hit / math.log2(1 + rank) for k, hit in hits.items()}
            out[name][user] = {f"hr_at_{k}": float(hit) for k, hit in hits.items()} | gain
    return out


def carried_out(model: str, data: Path, workspace: Path | None = None, *overrides: str) -> Replication:
    with Progress(2) as progress:
        return replicate(model, data, settings_of(model, overrides, seed=5), workspace, progress)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("split"), **drawn())


class TestPopularity:
    def test_is_what_counting_gives(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        found = carried_out("popularity", data)
        for name, users in by_hand(drawn()).items():
            assert found.users[name].tolist() == [str(user) for user in users]  # in the order of the file
            for metric, mean in found.summary[name].items():
                expected = [values[metric] for values in users.values()]
                assert found.per_user[f"{name}/{metric}"].tolist() == pytest.approx(expected)
                assert mean == pytest.approx(np.mean(expected))
        assert found.metrics["targets_unseen_share"] == pytest.approx(1 / USERS)
        assert found.summary["all_items"]["hr_at_20"] == pytest.approx(1 - 1 / USERS)  # the catalogue ends before 20
        assert not list(tmp_path.glob("logs2rec-replicate-*"))

    def test_through_the_command_line(self, data: Path) -> None:
        done = logs2rec("replicate", "--model", "popularity", "--data", data, "--seed", 5, "--json")
        assert done.code == 0, done.stderr
        found = done.json
        assert list(found) == [
            *("model", "data", "seed", "users", "items", "all_items", "history_removed", "lists", "table"),
            *("train_seconds", "score_seconds", "peak_memory_bytes", "valid", "best_epoch", "embedding_health"),
            *("epochs", "losses", "config", "training", "evaluation"),
        ]
        told = [found[name] for name in ("model", "data", "seed", "users", "items")]
        assert told == ["popularity", str(data), 5, USERS, ITEMS]
        assert list(found["all_items"]) == [f"{metric}_at_{k}" for k in KS for metric in ("hr", "ndcg")]
        assert (found["training"]["seed"], found["evaluation"]["seed"]) == (5, 5)
        assert f"{found['history_removed']['ndcg_at_10']:.4f}" in done.stdout.split("ndcg_at_10")[1].splitlines()[0]
        assert "replicate:popularity: published" in done.stderr

    def test_nobody_left_is_null(self, tmp_path: Path) -> None:
        """Each test item was taken before; of the validation items one was not."""
        data = written(tmp_path, train=[[1, 2], [1, 2]], val=[3, 1], test=[2, 2])
        summary = carried_out("popularity", data).summary
        assert set(summary["history_removed"].values()) == {None}
        assert summary["all_items"]["hr_at_5"] == 1
        assert "NaN" not in json.dumps(summary)
        steering.show(summary)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=2, object_store_mb=100)):
        yield


def test_items_with_categories_are_probed_and_so_are_lists(tmp_path: Path, data: Path) -> None:
    split = published_split.read(data)
    two = ItemCategories.from_lists([[], [], *([i % 2] for i in range(split.items))])
    config = SASRecConfig(width=4, blocks=1, heads=1, max_length=3)
    model: Any = build_sequence(config, FIRST_INDEX + split.items)
    with torch.no_grad():
        model.items.weight[2::2] += 1
    artifact.save(tmp_path / "m", model, config, lineage={}, vocabulary_hash="", metrics={}, catalogue=2 + split.items)
    assert steering._probed(tmp_path / "m", two) == 1.0
    pq.write_table(
        pa.table({"item": range(1, split.items + 1), "categories": [[str(i % 2)] for i in range(split.items)]}),
        tmp_path / "items.parquet",
    )
    done = logs2rec("replicate", "--model", "popularity", "--data", data, "--categories", tmp_path / "items.parquet",
                    "--json")  # fmt: skip
    assert 1 <= done.json["lists"]["category_count"] <= 2
    assert 0 < done.json["lists"]["intra_list_distance"] < 1
    assert done.json["table"] == {}
    assert "category count" in done.stdout


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_train_it_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = carried_out("sasrec", data, tmp_path / "w", *SASREC)
    summary = first.summary
    assert (summary["epochs"], summary["seed"], summary["training"]["workers"]) == (2, 5, 2)
    assert 1 <= summary["best_epoch"] <= 2
    assert 0 < summary["valid"]["ndcg_at_20"] <= 1
    assert set(summary["embedding_health"]) == {"variance", "mean_cosine", "isotropy", "kl_gaussian"}
    assert summary["all_items"]["hr_at_20"] == pytest.approx(1 - 1 / USERS)
    assert summary["train_seconds"] > 0
    assert summary["score_seconds"] > 0
    assert summary["peak_memory_bytes"] > 2 * 50 * 2**20  # torch alone is more than 50 MB in each
    assert first.users["all_items"].tolist() == [str(user) for user in drawn()["user"]]

    carried_out("popularity", data, tmp_path / "w")  # cuts the split otherwise, in a version of its own

    # Published: no training, no Ray, and the same figures; asked of another number of workers too.
    import train.trainer

    monkeypatch.setattr(train.trainer, "fit", None)
    monkeypatch.setattr(workbench, "cluster", None)
    for more in ([], ["training.workers=1"]):
        again = carried_out("sasrec", data, tmp_path / "w", *SASREC, *more)
        assert again.per_user.keys() == first.per_user.keys()
        assert all(np.array_equal(again.per_user[name], values) for name, values in first.per_user.items())
        assert again.summary["train_seconds"] == summary["train_seconds"]
        assert again.summary["training"]["workers"] == 2  # those that trained
    with pytest.raises(TypeError, match="not callable"):
        carried_out("sasrec", data, tmp_path / "w", *SASREC, "training.epochs=1")


class TestSettings:
    @pytest.mark.parametrize("model", read_yaml(steering.SETTINGS))
    def test_every_section_is_valid(self, model: str) -> None:
        settings = settings_of(model, seed=9)
        assert (settings.training.seed, settings.evaluation.seed) == (9, 9)

    def test_overrides_lie_below_the_section(self) -> None:
        settings = settings_of("adrec", ["config.width=64", "training.epochs=5", "evaluation.steps=4"])
        assert settings.config.width == 64  # type: ignore[union-attr]
        assert (settings.training.epochs, settings.evaluation.steps, settings.evaluation.seed) == (5, 4, 0)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("config.widht=64", r"replicate\.yaml: sasrec: config\.sasrec\.widht: unknown setting"),
            ("evaluation.kss=[5]", r"sasrec: evaluation\.kss: unknown setting"),
            ("training.epochs=0", r"training\.epochs"),
            ("evaluation.steps=-1", r"evaluation\.steps"),
            ("training.start=champion", r"training\.start: a replication is one fresh run"),
            ("search={trials: 2, space: {config.blocks: {integer: [1, 2]}}}", "search: a replication is one fresh run"),
            ("evaluation.category_field=genre", r"evaluation\.category_field: a replication is"),
            ("name=mine", "name: a replication is"),
            ("epochs", "expected a.b=value"),
        ],
    )
    def test_refused_by_name(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            settings_of("sasrec", [override])

    def test_one_pass_without_noise(self) -> None:
        assert settings_of("adrec", ["evaluation.steps=0"]).evaluation.steps == 0

    def test_more_steps_than_the_model_has(self) -> None:
        with pytest.raises(ConfigError, match=r"evaluation\.steps 64 exceeds the model's 32 steps"):
            settings_of("adrec", ["evaluation.steps=64"])

    def test_a_model_without_a_section(self) -> None:
        with pytest.raises(UsageError, match="--model 'sasrek': choose one of popularity, sasrec"):
            settings_of("sasrek")

    def test_a_seed_below_zero(self) -> None:
        with pytest.raises(ConfigError, match=r"training\.seed"):
            settings_of("sasrec", seed=-1)

    def test_a_seed_that_no_generator_takes(self) -> None:
        """Refused before anything is trained, not by the noise at inference after it."""
        with pytest.raises(ConfigError, match=r"evaluation\.seed"):
            settings_of("adrec", ["evaluation.seed=99999999999999999999"])

    def test_a_schedule_that_its_steps_do_not_fit(self) -> None:
        with pytest.raises(ConfigError, match="schedule pw_lin needs more than 10 steps, not 10"):
            settings_of("adrec", ["config.schedule=pw_lin", "config.steps=10"])


def test_exit_codes(tmp_path: Path) -> None:
    absent = logs2rec("replicate", "--model", "popularity", "--data", tmp_path / "none", "--json")
    assert (absent.code, "no such folder" in absent.json["error"]) == (2, True)
    split = written(tmp_path / "split", val=None)
    refused = logs2rec("replicate", "--model", "popularity", "--data", split, "--workspace", tmp_path / "w", "--json")
    assert (refused.code, "val" in refused.json["error"]) == (3, True)
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_popularity_on_the_published_split_of_adrec() -> None:
    """The reference figures were computed by other code, in percent."""
    folder = REAL_DATA / "adrec-ml-100k"
    if not folder.is_dir():
        pytest.skip("ADRec's split of MovieLens 100K is not at ../shared/data/adrec-ml-100k")
    summary = carried_out("popularity", folder).summary
    assert (summary["users"], summary["items"]) == (938, 1008)
    for name, hr, ndcg in (("all_items", 10.02, 3.65), ("history_removed", 13.75, 5.48)):
        assert 100 * summary[name]["hr_at_20"] == pytest.approx(hr, abs=0.02)
        assert 100 * summary[name]["ndcg_at_20"] == pytest.approx(ndcg, abs=0.02)


def test_the_batch_size_follows_the_size_of_the_split() -> None:
    """By hand: 1,000 rows of 5 events each; 500 events are 100 rows."""
    training = Fit(batch_events=500).fitted(TrainingSettings(seed=3, epochs=7), 1000, 5000)
    assert (training.batch_size, training.epochs, training.seed) == (100, 7, 3)


def test_what_training_says_itself_stays() -> None:
    assert Fit(batch_events=500).fitted(TrainingSettings(batch_size=50), 1000, 5000).batch_size == 50


def test_a_small_split_is_one_batch_that_every_worker_has_a_row_of() -> None:
    assert Fit(batch_events=1).fitted(TrainingSettings(workers=2), 9, 30).batch_size == 2
    assert Fit(batch_events=10**6).fitted(TrainingSettings(), 9, 30).batch_size == 9


def test_fewer_rows_than_workers_are_fewer_workers() -> None:
    training = Fit(batch_events=100).fitted(TrainingSettings(workers=2), 1, 3)
    assert (training.batch_size, training.workers) == (1, 1)


def test_a_workspace_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a workspace"):
        carried_out("popularity", data, tmp_path / "file")


def test_a_name_that_looks_like_markup_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a[" / "b]"
    folder.mkdir(parents=True)
    steering.show(carried_out("popularity", written(folder, **drawn())).summary)
    assert "a[/b]" in capsys.readouterr().out.replace("\n", "")


def test_the_rows_that_are_fitted_are_those_that_are_written(data: Path, tmp_path: Path) -> None:
    split = published_split.read(data)
    for length in (None, 3):
        lake = Lake(tmp_path / str(length))
        version = published_split.write(lake, split, length)
        rows = lake.read("sequences", version, {"as_of": published_split.AS_OF, "split": "train"}, ["items"])
        lengths = [len(items) for items in rows["items"].to_pylist()]
        assert split.training_size(length) == (len(lengths), sum(lengths) - len(lengths))
