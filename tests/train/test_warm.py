"""Warm start: what is taken over, grown and left, what is refused, and a run that goes on without the champion."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

import train
from infra.config import Settings
from infra.errors import ArtifactError, TrainingError
from infra.tables import Kind
from tests.train.tables import write_samples
from tests.train.test_loop import ADREC, SASREC, KilledError, job, rows_of, run, same, worker_of
from tests.train.test_trainer import VOCABULARY, in_this_process, request_for
from train import artifact, trainer
from train.configs import (
    ADRecConfig,
    AsymDiffRecConfig,
    ContrastiveConfig,
    DimeRecConfig,
    DINConfig,
    DNNConfig,
    MINDConfig,
    ModelConfig,
    MultVAEConfig,
    PopularityConfig,
    SASRecConfig,
)
from train.job import Job
from train.protocol import FieldSpec, SequenceBatch
from train.trainer import fit
from train.warm import require_vocabulary, start_from

TABLE_FIRST = ADREC.model_copy(update={"pretrain": "table", "positions": False})
"""As published: a stage with an encoder of its own."""
TINY = SASRecConfig(width=4, blocks=1, heads=1, max_length=3)
MIND = MINDConfig(width=4, max_length=3)
DIMEREC = DimeRecConfig(width=4, max_length=3, hidden=8, steps=4, interests=2)
RANKER = DNNConfig(embedding_width=2, hidden=(4,))
WRAPPED = AsymDiffRecConfig(base=RANKER, hidden=4)
FIELDS = (
    FieldSpec("colour", Kind.CATEGORICAL, 4),
    FieldSpec("price", Kind.NUMERIC, mean=1.0, std=2.0),
    FieldSpec("tags", Kind.MULTI, 5),
    FieldSpec("shop", Kind.CATEGORICAL, 2),
)
GROWN = tuple(replace(f, size=size, mean=3.0) for f, size in zip(FIELDS, (6, 0, 5, 4), strict=True))


def without_pretraining(config: ADRecConfig) -> ADRecConfig:
    return config.model_copy(update={"pretrain_share": 0})


def built(config: ModelConfig, catalogue: int | None, fields: Sequence[FieldSpec], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return artifact.build(config, catalogue, fields)


def champion(
    path: Path, config: ModelConfig = TINY, catalogue: int | None = 5, fields: Sequence[FieldSpec] = ()
) -> dict[str, torch.Tensor]:
    """The weights of an artifact that is written there; none of them is what another model begins with."""
    model = built(config, catalogue, fields, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    about = {"lineage": {}, "vocabulary_hash": "", "metrics": {}, "catalogue": catalogue, "vocabulary": VOCABULARY}
    artifact.save(path, model, config, fields=fields, **about)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def started(
    path: Path, config: ModelConfig = TINY, catalogue: int | None = 5, fields: Sequence[FieldSpec] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(freshly initialised weights and buffers, the same after the start from the artifact)."""
    model = built(config, catalogue, fields, seed=2)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    start_from(model, config, fields, path)
    assert torch.equal(torch.get_rng_state(), before)
    return fresh, model.state_dict()


class TestWhatIsTakenOver:
    def test_new_items_by_hand(self, tmp_path):
        old = champion(tmp_path / "m")
        fresh, now = started(tmp_path / "m", catalogue=7)
        table = "items.weight"
        assert torch.equal(now[table][:5], old[table])
        mean = (old[table][2] + old[table][3] + old[table][4]) / 3  # 0 is padding, 1 unknown
        torch.testing.assert_close(now[table][5:], fresh[table][5:] + mean)
        assert not torch.equal(now[table][5], now[table][6])
        assert all(torch.equal(now[name], old[name]) for name in old if name != table)

    @pytest.mark.parametrize(("config", "prefix"), [(RANKER, ""), (WRAPPED, "base.")], ids=["dnn", "asymdiffrec"])
    def test_new_values_by_hand(self, tmp_path, config, prefix):
        old = champion(tmp_path / "m", config, None, FIELDS)
        fresh, now = started(tmp_path / "m", config, None, GROWN)
        name = f"{prefix}fields.table.weight"
        colour, tags, shop = now[name].split([6, 5, 4])
        old_colour, old_tags, old_shop = old[name].split([4, 5, 2])
        fresh_colour, _, fresh_shop = fresh[name].split([6, 5, 4])
        assert torch.equal(colour[:4], old_colour)
        torch.testing.assert_close(colour[4:], fresh_colour[4:] + (old_colour[2] + old_colour[3]) / 2)
        assert torch.equal(tags, old_tags)
        assert torch.equal(shop, torch.cat([old_shop, fresh_shop[2:]]))  # it had no key yet
        assert now[f"{prefix}fields.mean_G"].tolist() == [3.0]
        assert all(torch.equal(now[other], old[other]) for other in old if other != name)

    def test_rows_that_two_fields_share_grow_once(self, tmp_path):
        def fields(items):
            return FieldSpec("item", Kind.CATEGORICAL, items), FieldSpec("history", Kind.MULTI, items)

        config, table = DINConfig(embedding_width=2, hidden=(4,)), "fields.table.weight"
        old = champion(tmp_path / "m", config, None, fields(5))
        fresh, now = started(tmp_path / "m", config, None, fields(7))
        assert now[table].shape == (7, 2)
        assert torch.equal(now[table][:5], old[table])
        torch.testing.assert_close(now[table][5:], fresh[table][5:] + old[table][2:].mean(dim=0))

    @pytest.mark.parametrize("config", [MIND, DIMEREC], ids=["mind", "dimerec"])
    def test_a_model_of_interests_answers_as_its_champion(self, tmp_path, config):
        """First logits of its routing and a table of cosines included, with a vocabulary that grew."""
        champion(tmp_path / "m", config)
        model = built(config, 7, (), seed=2)
        start_from(model, config, (), tmp_path / "m")
        old: Any = artifact.load(tmp_path / "m").model
        histories = SequenceBatch.left_padded(torch.tensor([[2, 3, 4], [0, 4, 2]]))
        found = [m.eval().user_vectors(histories, 0, torch.Generator()) for m in (old, model)]
        torch.testing.assert_close(found[1], found[0])
        torch.testing.assert_close(model.item_table()[:5], old.item_table())

    def test_the_same_vocabulary_is_a_copy(self, tmp_path):
        old = champion(tmp_path / "m")
        _, now = started(tmp_path / "m")
        assert same(old, now)

    def test_what_only_the_champion_has_is_left_out(self, tmp_path):
        old = champion(tmp_path / "m", TABLE_FIRST, 10)
        _, now = started(tmp_path / "m", without_pretraining(TABLE_FIRST), 10)
        assert {name.partition(".")[0] for name in old.keys() - now.keys()} == {"pretrain_encoder"}
        assert all(torch.equal(now[name], old[name]) for name in old.keys() & now.keys())

    @pytest.mark.parametrize(
        ("had", "changes"),
        [
            (TINY, {"dropout": 0.5, "embedding_dropout": 0.0, "negatives": 3}),
            (TABLE_FIRST, {"pretrain_share": 0.5, "align_share": 0.0, "mse_weight": 2.0, "max_length": 9}),
            (ADREC, {"combine": "project", "sampler": "ddim", "align": "shrinking", "denoiser_start": "random"}),
            (
                WRAPPED,
                {
                    "recon_weight": 0.5, "aux_weight": 0.5, "stop_gradient": False,
                    "base": RANKER.model_copy(update={"dropout": 0.5}),
                },
            ),
            (WRAPPED, {"drop_by": "missing_rate", "count_missing": False}),
            (MultVAEConfig(base=RANKER), {"rate": 0.5, "beta": 0.1}),
            (ContrastiveConfig(base=RANKER), {"rate": 0.5, "weight": 2.0}),
        ],
        ids=lambda value: value.model if isinstance(value, Settings) else "",
    )  # fmt: skip
    def test_settings_of_the_training_may_change(self, tmp_path, had, changes):
        catalogue, fields = (10, ()) if had.kind == "sequence" else (None, FIELDS)
        old = champion(tmp_path / "m", had, catalogue, fields)
        _, now = started(tmp_path / "m", had.model_copy(update=changes), catalogue, fields)
        assert all(torch.equal(now[name], old[name]) for name in old)


class TestRefusals:
    @pytest.mark.parametrize(
        ("had", "wanted", "message"),
        [
            (TINY, ADREC, "the champion is a sasrec model, this one is adrec; set training.start: fresh, or"),
            (
                without_pretraining(TABLE_FIRST),
                TABLE_FIRST,
                r"has no tensor pretrain_encoder\.norm\.weight; set training.start",
            ),
            (TINY, TINY.model_copy(update={"max_length": 6}), r"tensor places.weight is \(3, 4\) .* and \(6, 4\) here"),
        ],
        ids=["architecture", "missing", "places are no vocabulary"],
    )
    def test_another_model(self, tmp_path, had, wanted, message):
        champion(tmp_path / "m", had, 10)
        model = built(wanted, 10, (), seed=2)
        fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(TrainingError, match=message):
            start_from(model, wanted, (), tmp_path / "m")
        assert same(fresh, model.state_dict())

    @pytest.mark.parametrize(
        ("had", "changes", "message"),
        [
            (SASREC, {"width": 16}, "config.width is 8 in the champion and 16 here; set training.start: fresh, or"),
            (SASREC, {"heads": 2}, "config.heads is 1 in the champion and 2 here"),
            (SASREC.model_copy(update={"blocks": 3}), {"blocks": 2}, "config.blocks is 3 in the champion and 2 here"),
            (SASREC, {"positions": False}, "config.positions is True in the champion and False here"),
            (ADREC, {"schedule": "cosine"}, "config.schedule is 'trunc_lin' in the champion and 'cosine' here"),
            (ADREC, {"steps": 8}, "config.steps is 4 in the champion and 8 here"),
            (ADREC, {"noise_scale": 0.1}, "config.noise_scale is 0.001 in the champion and 0.1 here"),
            (
                ADREC,
                {"noise_scaling": "normalised"},
                "config.noise_scaling is 'fixed' in the champion and 'normalised'",
            ),
            (ADREC, {"denoiser": "mlp"}, "config.denoiser is 'attention' in the champion and 'mlp' here"),
            (ADREC, {"seen_padding": True}, "config.seen_padding is False in the champion and True here"),
            (
                WRAPPED,
                {"base": RANKER.model_copy(update={"missing": "zero"})},
                r"config.base.missing is 'learned' in the champion and 'zero' here",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_another_architecture_by_name_and_both_values(self, tmp_path, had, changes, message):
        catalogue, fields = (10, ()) if had.kind == "sequence" else (None, FIELDS)
        champion(tmp_path / "m", had, catalogue, fields)
        with pytest.raises(TrainingError, match=message):
            started(tmp_path / "m", had.model_copy(update=changes), catalogue, fields)

    def test_fewer_items_than_the_champion(self, tmp_path):
        champion(tmp_path / "m", catalogue=6)
        with pytest.raises(TrainingError, match=r"\(field '__item__'\) has 6 rows in the champion and 5 here"):
            started(tmp_path / "m", catalogue=5)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ((FIELDS[2], *FIELDS[1::-1], FIELDS[3]), r"field 1 is 'colour' \(categorical\) .* 'tags' \(multi\) today"),
            (FIELDS[:3], r"feature field 4 is 'shop' \(categorical\) in the champion and none today; set training.st"),
            ((*FIELDS, FieldSpec("age", Kind.NUMERIC)), r"field 5 is none in the champion and 'age' \(numeric\)"),
            ((*FIELDS[:2], replace(FIELDS[2], kind=Kind.CATEGORICAL), FIELDS[3]), r"'tags' \(multi\) in the champion"),
        ],
        ids=["order", "gone", "new", "kind"],
    )
    def test_other_fields(self, tmp_path, fields, message):
        champion(tmp_path / "m", RANKER, None, FIELDS)
        with pytest.raises(TrainingError, match=message):
            started(tmp_path / "m", RANKER, None, fields)

    def test_a_damaged_champion(self, tmp_path):
        champion(tmp_path / "m")
        with (tmp_path / "m" / "model.safetensors").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ArtifactError, match=r"model\.safetensors: .* bytes, the manifest says"):
            started(tmp_path / "m")


def keys(**fields: str) -> pa.Table:
    """One letter a key, from index 2."""
    rows = [(f, 2 + i, key) for f, letters in fields.items() for i, key in enumerate(letters)]
    schema = artifact.VOCABULARY_SCHEMA
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def with_vocabulary(path: Path, vocabulary: pa.Table | None) -> Path:
    model = built(TINY, 5, (), seed=1)
    about = {"lineage": {}, "vocabulary_hash": "", "metrics": {}, "catalogue": 5, "vocabulary": vocabulary}
    artifact.save(path, model, TINY, **about)
    return path


class TestVocabulary:
    @pytest.mark.parametrize(
        "today", [keys(__item__="abc", colour="xy"), keys(colour="xyz", shop="q", __item__="abcd")]
    )
    def test_it_may_grow(self, tmp_path, today):
        path = with_vocabulary(tmp_path / "m", keys(__item__="abc", colour="xy"))
        require_vocabulary(path, today)
        require_vocabulary(path, today.take(list(reversed(range(len(today))))))  # in any order of rows

    @pytest.mark.parametrize(
        ("today", "message"),
        [
            (keys(__item__="acb", colour="xy"), "field '__item__', index 3: the champion's key is 'b', today's is 'c'"),
            (keys(__item__="abc", colour="ay"), "field 'colour', index 2: the champion's key is 'x', today's is 'a'"),
            (keys(__item__="ab", colour="xy"), "field '__item__', index 4: the champion's key is 'c', .* is missing"),
            (keys(__item__="abc"), "field 'colour', index 2: .* today's is missing; .* set training.start: fresh"),
            (None, "this run has no vocabulary to compare"),
        ],
    )
    def test_any_other_change_is_refused(self, tmp_path, today, message):
        path = with_vocabulary(tmp_path / "m", keys(__item__="abc", colour="xy"))
        with pytest.raises(TrainingError, match=message):
            require_vocabulary(path, today)

    def test_a_champion_without_one(self, tmp_path):
        with pytest.raises(TrainingError, match="the champion has no vocabulary to compare"):
            require_vocabulary(with_vocabulary(tmp_path / "m", None), keys(__item__="abc"))


def warm(what: Job, initial: Path) -> Job:
    return replace(what, initial=str(initial))


def trained(root: Path, model: ModelConfig) -> Path:
    """The artifact of a run that has learnt something."""
    worker, _ = run(job(root, model, "champion", epochs=15))
    about = {"lineage": {}, "vocabulary_hash": "", "metrics": {}, "catalogue": 10, "vocabulary": VOCABULARY}
    artifact.save(root / "m", worker.model.to("cpu"), model, **about)
    return root / "m"


class TestInTheWorker:
    def test_the_first_epoch_goes_on_where_the_champion_ended(self, tmp_path):
        # Without dropout, which would hide the difference on so little data.
        config = SASREC.model_copy(update={"dropout": 0, "embedding_dropout": 0})
        path = trained(tmp_path, config)
        _, fresh = run(job(tmp_path, config, "fresh", epochs=1))
        _, champions = run(warm(job(tmp_path, config, "warm", epochs=1), path))
        assert champions[0]["loss"] < 0.8 * fresh[0]["loss"]

    @pytest.mark.parametrize("killed_after", [1, 3])
    def test_resumed_without_the_champion_bit_for_bit(self, tmp_path, killed_after):
        path = trained(tmp_path, ADREC)
        straight, _ = run(warm(job(tmp_path, ADREC, "a", ema=0.9), path))
        fresh, _ = run(job(tmp_path, ADREC, "fresh", ema=0.9))
        with pytest.raises(KilledError):
            run(warm(job(tmp_path, ADREC, "b", ema=0.9), path), kill_after=killed_after)
        shutil.rmtree(path)
        resumed, _ = run(warm(job(tmp_path, ADREC, "b", ema=0.9), path))
        assert same(straight.model.state_dict(), resumed.model.state_dict())
        assert same(straight.average.average, resumed.average.average)
        assert same(straight.best, resumed.best)
        assert not same(straight.model.state_dict(), fresh.model.state_dict())

    def test_the_moving_average_begins_with_the_champion(self, tmp_path):
        path = trained(tmp_path, SASREC)
        worker = worker_of(warm(job(tmp_path, ema=0.9), path))
        worker._resume()
        assert same(dict(worker.model.named_parameters()), worker.average.average)
        assert same(train.load(path).model.state_dict(), worker.average.average)

    def test_a_ranking_model(self, tmp_path):
        rows = rows_of(12)
        write_samples(tmp_path, rows + [{**r, "split": "valid"} for r in rows])
        old = champion(tmp_path / "m", RANKER, None, FIELDS)
        ranking = replace(job(tmp_path, RANKER, epochs=1, learning_rate=1e-9), versions={"samples": 0, "fields": 0})
        worker, _ = run(warm(ranking, tmp_path / "m"))
        now = worker.model.state_dict()
        assert [len(rows) for rows in worker.model.fields.blocks.values()] == [6, 9, 4]
        torch.testing.assert_close(now["fields.table.weight"][6:11], old["fields.table.weight"][4:9])
        torch.testing.assert_close(now["mlp.0.weight"], old["mlp.0.weight"])


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_run_workers", lambda job, use_gpu, tracker: in_this_process(job))
    monkeypatch.setattr(trainer, "require_resources", lambda settings: False)


def forbidden(*_: object) -> None:
    pytest.fail("trained")


@pytest.mark.usefixtures("without_ray")
class TestFit:
    def test_the_artifact_says_what_it_started_from(self, tmp_path, monkeypatch: pytest.MonkeyPatch):
        places = tmp_path / "m", tmp_path / "runs"
        request = replace(request_for(tmp_path, SASREC, epochs=1), initial=trained(tmp_path, SASREC))
        metrics = fit(request, tmp_path / "out", tmp_path / "runs")
        digest = artifact.load(places[0]).files["model.safetensors"]["sha256"]
        assert metrics["initial"] == train.load(tmp_path / "out").metrics["initial"] == digest
        fresh = replace(request, initial=None, run_name="fresh")
        assert fit(fresh, tmp_path / "fresh", tmp_path / "runs")["initial"] is None
        monkeypatch.setattr(trainer, "_run_workers", forbidden)
        assert fit(request, tmp_path / "out", tmp_path / "runs") == metrics

    def test_the_hash_covers_the_champions_weights(self, tmp_path):
        request = request_for(tmp_path, TINY)
        champion(tmp_path / "m", catalogue=10)
        champion(tmp_path / "other", catalogue=11)
        artifact.copy(tmp_path / "m", tmp_path / "same")
        hashes = [replace(request, initial=tmp_path / name).config_hash for name in ("m", "same", "other")]
        assert hashes[0] == hashes[1]
        assert len({request.config_hash, *hashes}) == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda r: replace(r, vocabulary=VOCABULARY.slice(0, 7)), "index 9: the champion's key is 'item9'"),
            (lambda r: replace(r, model=PopularityConfig()), "popularity is counted and continues nothing"),
        ],
    )
    def test_refused_before_any_worker_is_started(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch, change: Callable, message: str
    ):
        monkeypatch.setattr(trainer, "_run_workers", forbidden)
        champion(tmp_path / "m", catalogue=10)
        request = replace(request_for(tmp_path, TINY), initial=tmp_path / "m")
        with pytest.raises(TrainingError, match=message):
            fit(change(request), tmp_path / "out", tmp_path / "runs")
