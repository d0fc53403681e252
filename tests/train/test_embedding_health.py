"""Figures of a table by hand, against numpy over all pairs and eigenvalues, and over any cut of its rows."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from tests.train.sharded_ranks import on_ranks
from tests.train.test_loop import KilledError, Tiny, job, run, scripted, with_model
from train import embedding_health as health
from train.configs import DreamRecConfig, PopularityConfig, SASRecConfig
from train.embedding_health import (
    FIGURES,
    KEPT,
    PREFIX,
    Moments,
    embedding_health,
    figures_at,
    health_metrics,
    with_validation,
)
from train.item_table import ItemModel
from train.models.dreamrec import DreamRec
from train.models.popularity import PopularityModel
from train.sharded import ShardedTable

WORST_2 = math.log(1e12)  # of two dimensions: 2 / 2 ln 1e12


def table(rows) -> torch.Tensor:
    """e_VD: the rows behind padding and unknown, which are far off and must not count."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    return torch.cat([torch.full((FIRST_INDEX, rows.shape[1]), 1e6), rows])


def drawn(seed: int, count: int = 40, width: int = 5) -> torch.Tensor:
    """Rows of unlike spread in each dimension, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(width, generator=generator) + 0.1
    return torch.randn(count, width, generator=generator) * spread + torch.rand(width, generator=generator)


class TestByHand:
    def test_two_unlike_axes(self):
        # Variances 4/2 and 1/2, mean 5/4. Pairs: -1 twice, 0 four times. KL = -1/2 ln(8/5 x 2/5).
        found = embedding_health(table([[2, 0], [-2, 0], [0, 1], [0, -1]]))
        assert found == pytest.approx(
            {"variance": 1.25, "mean_cosine": -1 / 3, "isotropy": 0.25, "kl_gaussian": -0.5 * math.log(0.64)}
        )

    def test_the_mean_is_in_the_cosine_alone(self):
        # Unit rows (1, 0), (3, 4)/5 and (0, 1): cosines 3/5, 0, 4/5.
        rows = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 7.0]])
        assert embedding_health(table(rows))["mean_cosine"] == pytest.approx(1.4 / 3)
        moved = embedding_health(table(rows + 10))
        assert moved["mean_cosine"] > 0.9
        for name in ("variance", "isotropy", "kl_gaussian"):
            assert moved[name] == pytest.approx(embedding_health(table(rows))[name], rel=1e-6)

    def test_one_direction(self):
        # Variance 8/3 of (3, 3) x {1, ...}: rows k (1, 1), k = 1, 3, 5, have eigenvalues 0 and 16/3, mean 8/3.
        found = embedding_health(table([[1, 1], [3, 3], [5, 5]]))
        kl = -0.5 * (math.log(2) + math.log(1e-12))
        assert found == pytest.approx({"variance": 8 / 3, "mean_cosine": 1, "isotropy": 0, "kl_gaussian": kl})

    def test_a_row_of_zeros_has_no_direction(self):
        found = embedding_health(table([[0, 0], [1, 0], [1, 0]]))
        assert found["mean_cosine"] == pytest.approx(1)
        assert found["variance"] == pytest.approx(1 / 9)  # (2/9 + 0) / 2: it is an item all the same

    @pytest.mark.parametrize(
        ("rows", "cosine"),
        [
            (np.full((5, 2), 3.3), 1.0),  # one row over and over
            (np.zeros((5, 2)), 0.0),
            (np.ones((1, 2)), 0.0),
            (np.ones((0, 2)), 0.0),
        ],
        ids=["equal", "zeros", "one", "none"],
    )
    def test_what_has_no_spread(self, rows, cosine):
        worst = {"variance": 0, "mean_cosine": cosine, "isotropy": 0, "kl_gaussian": WORST_2}
        assert embedding_health(table(rows)) == pytest.approx(worst)

    def test_a_table_shorter_than_its_reserved_rows(self):
        assert embedding_health(torch.ones(1, 2))["variance"] == 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_values_that_are_not_finite(self, bad):
        with pytest.raises(TrainingError, match="item table holds values that are not finite"):
            embedding_health(table([[1, bad], [0, 1]]))

    def test_of_a_gaussian_as_published(self):
        """The notebook has isotropy .517 and KL 0.88 on Baby's shape; a draw of the table moves both a little."""
        rows = torch.randn(4731, 128, generator=torch.Generator().manual_seed(0))
        found = embedding_health(table(rows))
        assert found["variance"] == pytest.approx(1, abs=0.01)
        assert found["mean_cosine"] == pytest.approx(0, abs=1e-3)
        assert found["isotropy"] == pytest.approx(0.517, abs=0.02)
        assert found["kl_gaussian"] == pytest.approx(0.88, abs=0.04)


class TestAgainstNumpy:
    @pytest.mark.parametrize(("seed", "count"), [(0, 40), (1, 7), (2, 3)])
    def test_pairs_and_eigenvalues(self, seed, count):
        rows = drawn(seed, count)
        x = rows.double().numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = (unit @ unit.T)[np.triu_indices(count, 1)]
        spectrum = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))
        found = embedding_health(table(rows))
        assert found["variance"] == pytest.approx(x.var(axis=0).mean(), rel=1e-9)
        assert found["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-12)
        assert found["isotropy"] == pytest.approx(max(0, spectrum[0] / spectrum[-1]), rel=1e-6, abs=1e-12)
        if count > 5:  # fewer rows than dimensions leave directions flat
            gaussians = (
                torch.distributions.MultivariateNormal(torch.zeros(5), torch.from_numpy(covariance).float())
                for covariance in (np.cov(x, rowvar=False, bias=True), np.eye(5) * x.var(axis=0).mean())
            )
            kl = torch.distributions.kl_divergence(*gaussians).item()
            assert found["kl_gaussian"] == pytest.approx(kl, rel=1e-3)
        else:
            assert found["isotropy"] == 0

    def test_in_blocks(self, monkeypatch):
        whole = embedding_health(table(drawn(3)))
        monkeypatch.setattr(health, "_BLOCK", 7)
        assert embedding_health(table(drawn(3))) == pytest.approx(whole, rel=1e-12)

    def test_no_gradient_and_the_table_as_it_was(self):
        weight = table(drawn(4)).requires_grad_()
        before = weight.detach().clone()
        embedding_health(weight)
        assert torch.equal(weight, before)
        assert weight.grad is None


class TestInvariances:
    @given(st.integers(0, 10_000))
    def test_a_rotation_changes_nothing(self, seed):
        rows = drawn(seed).double()
        rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double())
        plain, turned = Moments.of(rows).figures(), Moments.of(rows @ rotation).figures()
        assert turned == pytest.approx(plain, rel=1e-9, abs=1e-12)

    @given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
    def test_a_scale_shows_in_the_variance_alone(self, seed, scale):
        rows = drawn(seed).double()
        plain = Moments.of(rows).figures()
        expected = {**plain, "variance": plain["variance"] * scale**2}
        assert Moments.of(rows * scale).figures() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @given(st.integers(0, 10_000), st.integers(0, 30), st.integers(1, 8))
    def test_bounds(self, seed, count, width):
        found = Moments.of(drawn(seed, count, width)).figures()
        assert list(found) == list(health.FIGURES)
        assert all(math.isfinite(value) for value in found.values())
        assert found["variance"] >= 0
        assert -1 <= found["mean_cosine"] <= 1
        assert 0 <= found["isotropy"] <= 1
        assert found["kl_gaussian"] >= 0


class TestParts:
    @given(st.integers(0, 10_000), st.lists(st.integers(0, 40), max_size=4))
    def test_moments_add_up(self, seed, cuts):
        rows = drawn(seed).double()
        edges = [0, *sorted(cuts), len(rows)]
        parts = [Moments.of(rows[a:b]) for a, b in pairwise(edges)]
        together = parts[0]
        for part in parts[1:]:
            together = together + part
        assert together.figures() == pytest.approx(Moments.of(rows).figures(), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize(("rows", "world"), [(10, 1), (10, 2), (11, 3), (9, 5)])
    def test_a_shard_leaves_out_the_rows_that_are_no_candidates(self, monkeypatch, rows, world):
        """Each rank's own part, caught where it would be exchanged."""
        parts = []
        monkeypatch.setattr(Moments, "over_ranks", lambda self: parts.append(self) or self)
        for rank in range(world):
            health_metrics(model_on(ShardedTable(rows, 4, rank, world, std=1.0)))
        together = parts[0]
        for part in parts[1:]:
            together = together + part
        whole = ShardedTable(rows, 4, std=1.0).weight
        assert together.rows.item() == rows - FIRST_INDEX
        assert together.figures() == pytest.approx(embedding_health(whole), rel=1e-9)

    def test_two_ranks_tell_what_the_whole_table_tells(self, tmp_path):
        whole = embedding_health(ShardedTable(23, 4, std=1.0).weight)
        expected = [whole[name] for name in health.FIGURES]
        for answer in on_ranks(2, tmp_path / "ranks", told_by_rank):
            assert answer["figures"].tolist() == pytest.approx(expected, rel=1e-9)


def told_by_rank(rank: int, world: int, folder) -> dict[str, torch.Tensor]:
    found = health_metrics(model_on(ShardedTable(23, 4, rank, world, std=1.0)))
    return {"figures": torch.tensor(list(found.values()), dtype=torch.float64)}


def model_on(items) -> ItemModel:
    return ItemModel(SASRecConfig(width=4, heads=1), 10, items)


class TestMetrics:
    def test_names(self):
        names = ["embedding_variance", "embedding_mean_cosine", "embedding_isotropy", "embedding_kl_gaussian"]
        assert list(health_metrics(model_on(None))) == names

    def test_a_table_without_a_softmax(self):
        assert len(health_metrics(DreamRec(DreamRecConfig(width=4), 10))) == 4

    def test_a_model_that_learns_no_table(self):
        assert health_metrics(PopularityModel(PopularityConfig(), 10)) == {}


class TestHistory:
    def test_it_stays_short_and_keeps_first_best_and_new(self):
        history: list[dict[str, float]] = []
        for epoch in range(1, 2000):
            history = with_validation(history, {"epoch": epoch}, best_epoch=min(epoch, 444))
            assert len(history) <= KEPT
            assert history[-1]["epoch"] == epoch
        epochs = [entry["epoch"] for entry in history]
        assert epochs == sorted(set(epochs))
        assert {1, 444, 1999} <= set(epochs)

    def test_the_figures_of_an_epoch(self):
        history = [{"epoch": e, "valid_ndcg_20": 0.5, "embedding_variance": float(e)} for e in (2, 4)]
        assert figures_at(history, 4) == {"embedding_variance": 4.0}
        assert figures_at(history, 3) == {}


class TestInTheLoop:
    NAMES = tuple(PREFIX + name for name in FIGURES)

    def test_with_each_validation_and_no_other_report(self, tmp_path):
        worker, reports = run(job(tmp_path, epochs=5, validate_every=2))
        assert [set(self.NAMES) <= set(m) for m in reports] == [False, True, False, True, True]
        wanted = ("epoch", "valid_ndcg_20", *self.NAMES, "loss", "loss_ce")
        assert worker.state.validations == [{k: m[k] for k in wanted} for m in reports if "valid_ndcg_20" in m]
        last = embedding_health(worker.model.items.weight)
        assert [reports[-1][name] for name in self.NAMES] == list(last.values())

    @pytest.mark.parametrize("killed_after", [1, 3])
    def test_a_resumed_run_keeps_its_history(self, tmp_path, killed_after):
        straight, _ = run(job(tmp_path, run="a"))
        with pytest.raises(KilledError):
            run(job(tmp_path, run="b"), kill_after=killed_after)
        resumed, _ = run(job(tmp_path, run="b"))
        assert [v["epoch"] for v in resumed.state.validations] == [1, 2, 3, 4]
        assert resumed.state.validations == straight.state.validations

    def test_of_a_model_that_learns_no_table_there_is_none(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Tiny())
        scripted(monkeypatch, [0.1] * 4)
        worker, reports = run(job(tmp_path))
        assert worker.state.validations == []
        assert not any(name.startswith(PREFIX) for name in reports[-1])
