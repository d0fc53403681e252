"""Whole runs on a private Ray cluster of two CPUs: two workers, errors, the artifact. Crashes: tests/faults."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import train
from infra.cluster import RaySettings, cluster
from infra.errors import EnvironmentProblem, TrainingError
from tests.train.tables import AS_OF, write_samples, write_sequences
from tests.train.test_loop import CHUNKS, TARGETS, rows_of
from train import checkpoint, trainer, validation
from train.configs import (
    ADRecConfig,
    AsymDiffRecConfig,
    BigramConfig,
    DiffuRecConfig,
    DNNConfig,
    DreamRecConfig,
    GRU4RecConfig,
    PopularityConfig,
    SASRecConfig,
)
from train.embedding_health import embedding_health
from train.job import Job, opened
from train.loop import Worker
from train.settings import TrainingSettings
from train.trainer import TrainRequest, fit

VOCABULARY = pa.table(
    {
        "field": ["__item__"] * 8,
        "index": pa.array(range(2, 10), pa.int32()),
        "key": [f"item{i}" for i in range(2, 10)],
    }
)
SASREC = SASRecConfig(width=8, blocks=1, heads=1, max_length=4, dropout=0, embedding_dropout=0)
CPU = torch.device("cpu")
ADREC = ADRecConfig(width=8, blocks=1, heads=1, denoiser_blocks=1, steps=4, max_length=4)


@pytest.fixture(scope="module")
def ray_cluster():
    with cluster(RaySettings(cpus=2, object_store_mb=100)):
        yield


def request_for(root: Path, model=SASREC, name: str = "run", **settings) -> TrainRequest:
    if not (root / "sequences").exists():
        write_sequences(root, CHUNKS, TARGETS)
    return TrainRequest(
        lake=root, versions={"sequences": 0}, as_of=AS_OF, model=model, run_name=name,
        training=TrainingSettings(**{"epochs": 3, "batch_size": 8, "learning_rate": 0.01, **settings}),
        vocabulary_hash="beef", vocabulary=VOCABULARY,
    )  # fmt: skip


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    """The last weights of a run, not its best."""
    return checkpoint.latest_valid(checkpoint.candidates(root / "runs" / name))[1].body.model


def test_a_cluster_that_is_not_there():
    dead = RaySettings(address="127.0.0.1:1")
    with pytest.raises(EnvironmentProblem, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray\.address"), cluster(dead):
        pytest.fail("connected to nothing")


@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_two_workers_train_what_one_trains(self, tmp_path, monkeypatch):
        progress: list[dict] = []
        alone: list[dict] = []
        fit(request_for(tmp_path, name="two", workers=2), tmp_path / "m2", tmp_path / "runs", progress.append)
        metrics = train.load(tmp_path / "m2").metrics
        in_this_process(job_of(request_for(tmp_path), run=str(tmp_path / "runs" / "one")), alone.append)
        assert [m["loss"] for m in progress] == pytest.approx([m["loss"] for m in alone], rel=1e-6)
        one, two = (weights(tmp_path, name)["items.weight"] for name in ("one", "two"))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert (metrics["epochs"], metrics["steps"], metrics["examples"], metrics["workers"]) == (3, 9, 60, 2)
        assert metrics["examples_per_second"] > 0
        assert 0 <= metrics["valid_metric"] <= 1
        assert [m["epoch"] for m in progress] == [1, 2, 3]
        assert metrics["peak_memory_bytes"] == max(m["peak_memory_bytes"] for m in progress)
        assert metrics["peak_memory_bytes"] > 1.5 * progress[-1]["peak_memory_gb"] * 2**30  # of both, not of one
        assert max(m["valid_ndcg_20"] for m in progress) == metrics["valid_metric"]

        loaded = train.load(tmp_path / "m2")
        assert (loaded.lineage, loaded.vocabulary_hash, loaded.catalogue) == ({"sequences": 0}, "beef", 10)
        assert loaded.vocabulary.equals(VOCABULARY)
        assert loaded.metrics == metrics
        settings = request_for(tmp_path).training
        with opened(job_of(request_for(tmp_path)), 0, 1) as splits:
            _, value = validation.validate(loaded.model, splits.valid, settings, 0, 1, CPU)
        assert value == pytest.approx(metrics["valid_metric"], abs=1e-9)  # the best weights, not the last

        best = {f"embedding_{name}": value for name, value in embedding_health(loaded.model.item_table()).items()}
        assert {name: metrics[name] for name in best} == pytest.approx(best, rel=1e-9)
        wanted = ("epoch", "valid_ndcg_20", *best, "loss", "loss_ce")
        assert metrics["validations"] == [{name: m[name] for name in wanted} for m in progress]

        # A finished run needs no worker any more, and its artifact is the one that is there.
        monkeypatch.setattr(trainer, "_run_workers", None)
        assert fit(request_for(tmp_path, name="two", workers=2), tmp_path / "m2", tmp_path / "runs") == metrics

    def test_two_workers_share_the_table_and_the_artifact_has_it_whole(self, tmp_path):
        model = SASRecConfig(**{**SASREC.model_dump(), "negatives": 20})
        request = request_for(tmp_path, model, "shared", workers=2, sharded=True, learning_rate=0.1)
        progress: list[dict] = []
        metrics = fit(request, tmp_path / "m", tmp_path / "runs", progress.append)
        assert progress[-1]["loss"] < progress[0]["loss"]
        newest, *_ = checkpoint.candidates(tmp_path / "runs" / "shared")
        shards = [checkpoint.read_tensors(newest / f"shard-{rank:05d}.safetensors") for rank in (0, 1)]
        name = "weight" if metrics["best_epoch"] == 3 else "best.weight"
        loaded = train.load(tmp_path / "m")
        assert torch.equal(loaded.model.item_table(), torch.stack([shards[i % 2][name][i // 2] for i in range(10)]))
        with opened(job_of(request), 0, 1) as splits:
            _, value = validation.validate(loaded.model, splits.valid, request.training, 0, 1, CPU)
        assert value == pytest.approx(metrics["valid_metric"], abs=1e-9)

    def test_a_workers_error_is_one_message(self, tmp_path):
        hopeless = request_for(tmp_path, name="hopeless", learning_rate=1e30, workers=2)
        with pytest.raises(
            TrainingError, match=r"run hopeless: .* is (nan|inf) in stage 'main', epoch 1, step 2"
        ) as raised:
            fit(hopeless, tmp_path / "m", tmp_path / "runs")
        assert len(str(raised.value)) < 400
        assert raised.value.__cause__ is None
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"workers": 3}, "3 workers with 1 threads each need 3 CPUs, the Ray cluster has 2"),
            ({"workers": (3, 8)}, "3 workers"),
            ({"workers": 1, "threads": 4}, "need 4 CPUs"),
            ({"use_gpu": True}, "asks for 1 GPUs, the Ray cluster has 0"),
        ],
    )
    def test_too_small_a_cluster_says_so_at_once(self, tmp_path, settings, message):
        started = time.monotonic()
        with pytest.raises(TrainingError, match=message):
            fit(request_for(tmp_path, **settings), tmp_path / "m", tmp_path / "runs")
        assert time.monotonic() - started < 2

    def test_the_cluster_is_private_and_reused(self):
        import ray

        assert ray.util.get_node_ip_address() == "127.0.0.1"
        node = ray.get_runtime_context().get_node_id()
        with cluster(RaySettings(cpus=1)):
            assert ray.get_runtime_context().get_node_id() == node
        assert ray.is_initialized()


def in_this_process(job: Job, told=lambda metrics: None) -> None:
    """The whole run as one worker, without Ray."""
    with opened(job, 0, 1) as splits:
        Worker(job, splits, 0, 1, CPU).run(lambda metrics, path: told(metrics))


def job_of(request: TrainRequest, run: str = "") -> Job:
    return Job(
        lake=str(request.lake), versions=request.versions, as_of=request.as_of, model=request.model,
        training=request.training, catalogue=10, run=run, config_hash="",
    )  # fmt: skip


#: Trained like SASRec.
OTHERS = [
    GRU4RecConfig(width=8, hidden=6, max_length=4),
    DreamRecConfig(width=8, max_length=4, steps=3),
    DiffuRecConfig(width=8, heads=2, max_length=4, steps=3),
]


class TestWithoutRay:
    def test_popularity_is_counted(self, tmp_path):
        # A chunk of one event has no target but is an event; 1 is unknown and never counted.
        write_sequences(tmp_path, [[2, 3, 3], [4], [3, 1, 1, 1, 1]], [([2], 3, True), ([3], 4, True), ([2], 9, True)])
        metrics = fit(request_for(tmp_path, PopularityConfig()), tmp_path / "m", tmp_path / "runs")
        loaded = train.load(tmp_path / "m")
        assert loaded.model.item_table()[:, 0].tolist() == [0, 0, 1, 3, 1, 0, 0, 0, 0, 0]
        # Ranks without the history: 3 is first; 4 is second behind 2; 9 is last of seven.
        expected = (1 + 1 / math.log2(3) + 1 / math.log2(8)) / 3
        assert metrics["valid_metric"] == pytest.approx(expected)
        assert (metrics["epochs"], metrics["examples"]) == (0, 9)
        assert metrics["peak_memory_bytes"] > 50 * 2**20  # torch alone is more
        assert not (tmp_path / "runs").exists()

    def test_bigrams_are_counted(self, tmp_path):
        # 2 -> 3 twice, 3 -> 3 once; 1 is unknown, and 4 in the last chunk is no target, but what follows it is.
        write_sequences(
            tmp_path, [[2, 3, 3], [2, 3, 1], [3, 4, 5]], [([4], 5, True), ([2], 4, True), ([], 2, True)],
            is_target={2: [True, False, True]},
        )  # fmt: skip
        metrics = fit(request_for(tmp_path, BigramConfig(followers=2)), tmp_path / "m", tmp_path / "runs")
        loaded = train.load(tmp_path / "m")
        assert loaded.model.next_VM[2:6].tolist() == [[3, 0], [3, 0], [5, 0], [0, 0]]
        assert loaded.model.count_VM[2:6].tolist() == [[2, 0], [1, 0], [1, 0], [0, 0]]
        # After 4 comes 5, first; after 2 come 3 by count and 5 by popularity, then 4 of those that were never
        # targets; without a history 3 comes first, then 2.
        assert metrics["valid_metric"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(3)) / 3)
        assert (metrics["epochs"], metrics["examples"]) == (0, 9)

    @pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.model)
    def test_a_sequence_model_of_the_literature(self, tmp_path, monkeypatch, config):
        monkeypatch.setattr(trainer, "_run_workers", lambda job, use_gpu, tracker: in_this_process(job))
        monkeypatch.setattr(trainer, "require_resources", lambda settings: False)
        metrics = fit(request_for(tmp_path, config), tmp_path / "m", tmp_path / "runs")
        assert (metrics["epochs"], metrics["examples"]) == (3, 60)
        assert 0 <= metrics["valid_metric"] <= 1
        assert train.load(tmp_path / "m").config == config

    def test_a_ranking_model(self, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "_run_workers", lambda job, use_gpu, tracker: in_this_process(job))
        monkeypatch.setattr(trainer, "require_resources", lambda settings: False)
        write_samples(tmp_path, rows_of(20) + [{**r, "split": "valid"} for r in rows_of(6)])
        config = AsymDiffRecConfig(base=DNNConfig(embedding_width=2, hidden=(4,)), hidden=4)
        plain = request_for(tmp_path, config, "ranking", epochs=2)
        versions = {"samples": 0, "fields": 0}
        metrics = fit(TrainRequest(**{**vars(plain), "versions": versions}), tmp_path / "m", tmp_path / "runs")
        loaded = train.load(tmp_path / "m")
        assert [f.name for f in loaded.fields] == ["colour", "price", "tags", "shop"]
        assert (loaded.kind, loaded.catalogue) == ("ranking", None)
        assert 0 < metrics["valid_metric"] < 5
        assert "validations" not in metrics

    def test_no_connection(self, tmp_path, monkeypatch):
        import ray

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(TrainingError, match=r"call fit inside infra\.cluster\.cluster"):
            fit(request_for(tmp_path), tmp_path / "m", tmp_path / "runs")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"versions": {"samples": 0}}, "no version of table 'sequences'"),
            ({"vocabulary": None}, "needs the item vocabulary"),
            ({"vocabulary": VOCABULARY.slice(0, 0)}, "vocabulary is empty"),
            ({"model": PopularityConfig(), "vocabulary": VOCABULARY.slice(0, 3)}, "beyond the vocabulary"),
        ],
    )
    def test_a_request_that_does_not_fit(self, tmp_path, changes, message):
        with pytest.raises(TrainingError, match=message):
            fit(TrainRequest(**{**vars(request_for(tmp_path)), **changes}), tmp_path / "m", tmp_path / "runs")

    def test_the_hash_covers_what_decides_the_weights(self, tmp_path):
        base = request_for(tmp_path).config_hash
        assert request_for(tmp_path, workers=2, max_failures=3, threads=2).config_hash == base
        assert request_for(tmp_path, seed=1).config_hash != base
        assert request_for(tmp_path, ADREC).config_hash != base
        assert request_for(tmp_path, epochs=4).config_hash != base
        assert replace(request_for(tmp_path), vocabulary_hash="cafe").config_hash != base

    def test_a_run_of_another_vocabulary_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "require_resources", lambda settings: False)
        monkeypatch.setattr(trainer, "_run_workers", lambda job, use_gpu, tracker: in_this_process(job))
        request = request_for(tmp_path, epochs=1)
        fit(request, tmp_path / "m", tmp_path / "runs")
        with pytest.raises(TrainingError, match="holds a run of another configuration or other inputs"):
            fit(replace(request, vocabulary_hash="cafe"), tmp_path / "n", tmp_path / "runs")

    def test_settings_that_contradict_each_other(self):
        with pytest.raises(ValueError, match="batch_size 2 is the global batch"):
            TrainingSettings(batch_size=2, workers=(1, 3))
        with pytest.raises(ValueError, match="minimum exceeds the maximum"):
            TrainingSettings(workers=(3, 1))
        with pytest.raises(ValueError, match="keep_checkpoints"):
            TrainingSettings(keep_checkpoints=1)
        with pytest.raises(ValueError, match="table_learning_rate is the step size of a sharded table"):
            TrainingSettings(table_learning_rate=0.2)
