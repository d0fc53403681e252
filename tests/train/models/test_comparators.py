"""What AsymDiffRec is compared with, around the same base. B samples, N fields, W embedding width, D width of h(x)."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.train.models.contract import FIELDS, RankingModelContract, impressions, seeded
from train.diffusion.dropping import drop, drop_each
from train.models import build_ranking
from train.ranking_configs import (
    AsymDiffRecConfig,
    CDAEConfig,
    ContrastiveConfig,
    DCNv2Config,
    DeepFMConfig,
    DNNConfig,
    FeatureDropoutConfig,
    FinalMLPConfig,
    LatentDiffusionConfig,
    MultVAEConfig,
)  # fmt: skip

SMALL = {"embedding_width": 4, "hidden": (16, 8), "dropout": 0.0}
BASES = [DNNConfig(**SMALL), DCNv2Config(**SMALL), DeepFMConfig(**SMALL), FinalMLPConfig(second=(6,), **SMALL)]
BASE = BASES[0]
GONE = torch.zeros(16, 4, dtype=torch.bool)


def built(config):
    torch.manual_seed(0)
    return build_ranking(config, FIELDS).eval()


def bce(model, z, batch):
    return F.binary_cross_entropy(model.base.head(z).sigmoid(), batch.label_B).item()


class WrappedContract(RankingModelContract):
    config = FeatureDropoutConfig(base=BASE)

    def build(self):
        return build_ranking(self.config, FIELDS)


class TestFeatureDropout(WrappedContract):
    pass


class TestCDAE(WrappedContract):
    config = CDAEConfig(base=BASE, code=6)


class TestMultVAE(WrappedContract):
    config = MultVAEConfig(base=BASE, code=6)


class TestContrastive(WrappedContract):
    config = ContrastiveConfig(base=BASE)


class TestLatentDiffusion(WrappedContract):
    config = LatentDiffusionConfig(base=BASE, hidden=12)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.model)
@pytest.mark.parametrize(
    "wrapper", [FeatureDropoutConfig, CDAEConfig, MultVAEConfig, ContrastiveConfig, LatentDiffusionConfig]
)
def test_every_base_can_be_wrapped(wrapper, base):
    model = built(wrapper(base=base))
    assert type(model.base) is type(built(base))
    model.loss(impressions(), seeded()).total.backward()
    assert model.logits(impressions()).isfinite().all()


@pytest.mark.parametrize(("rate", "power"), [(0.3, 1), (None, 1), (None, 2)])
def test_feature_dropout_is_the_base_on_a_sample_with_holes(rate, power):
    model, batch = built(FeatureDropoutConfig(base=BASE, rate=rate, drop_power=power)), impressions(16)
    seen = batch.missing_BN
    holes = drop(seen, seeded(3), power=power) if rate is None else drop_each(seen, rate, seeded(3))
    expected = model.base.loss(batch.with_missing(holes), seeded()).total
    assert model.loss(batch, seeded(3)).total == expected
    assert torch.equal(model.logits(batch), model.base.logits(batch))


def autoencoded(model, e, missing):
    """e' written out, the code served without noise."""
    x = torch.cat([e.flatten(1), missing.float()], dim=1)
    if hasattr(model, "beta"):
        code = (torch.tanh(x @ model.hidden.weight.T + model.hidden.bias) @ model.moments.weight.T)[:, :6]
        code = code + model.moments.bias[:6]
    else:
        code = (x @ model.hidden.weight.T + model.hidden.bias).clamp(min=0)
    return (code @ model.decode.weight.T + model.decode.bias).view_as(e)


@pytest.mark.parametrize("config", [CDAEConfig, MultVAEConfig])
def test_an_autoencoder_serves_what_is_there_and_restores_the_rest(config):
    model, batch = built(config(base=BASE, code=6)), impressions(16)
    e = model.base.fields(batch)
    restored = autoencoded(model, e, batch.missing_BN)
    filled = torch.where(batch.missing_BN[..., None], restored, e)
    torch.testing.assert_close(model.logits(batch), model.base.head(model.base.mlp(filled.flatten(1))))
    whole = batch.with_missing(GONE)
    assert torch.equal(model.logits(whole), model.base.logits(whole))


def test_the_loss_of_cdae_by_hand():
    model, batch = built(CDAEConfig(base=BASE, code=6, recon_weight=0.5, aux_weight=2)), impressions(16)
    holes = drop(batch.missing_BN, seeded(3))
    e, holed = model.base.fields(batch), model.base.fields(batch.with_missing(holes))
    restored = autoencoded(model, holed, holes)
    recon = sum(
        ((restored[b, n] - e[b, n]) ** 2).mean() for b in range(16) for n in range(4) if not batch.missing_BN[b, n]
    ) / (16 * 4)
    filled = torch.where(holes[..., None], restored, holed)
    found = model.loss(batch, seeded(3))
    main, aux = bce(model, model.base.encode(batch), batch), bce(model, model.base.mlp(filled.flatten(1)), batch)
    assert found.parts["main"].item() == pytest.approx(main, rel=1e-5)
    assert found.parts["recon"].item() == pytest.approx(recon.item(), rel=1e-5)
    assert found.parts["aux"].item() == pytest.approx(aux, rel=1e-5)
    assert found.total.item() == pytest.approx(main + 0.5 * recon.item() + 2 * aux, rel=1e-5)


def test_the_divergence_of_multvae_is_that_of_the_normal_distributions():
    model, batch = built(MultVAEConfig(base=BASE, code=6, beta=0.5)), impressions(16)
    x = torch.randn(16, model.inputs, generator=seeded(1))
    code, own = model.code(x, seeded(2))
    mu, log_variance = model.moments(model.hidden(x).tanh()).chunk(2, dim=1)
    drawn = torch.distributions.Normal(mu, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = torch.distributions.kl_divergence(drawn, prior).mean(dim=1).sum()
    torch.testing.assert_close(own["divergence"].sum, expected)
    assert own["divergence"].weight == 0.5
    noise = (code - mu) / (log_variance / 2).exp()
    torch.testing.assert_close(noise, torch.randn(16, 6, generator=seeded(2)))
    assert "divergence" in model.loss(batch, seeded()).parts


def test_the_views_of_the_contrastive_task_pair_by_pair():
    model, batch = built(ContrastiveConfig(base=BASE, temperature=0.5, weight=0.3)), impressions(6)
    generator = seeded(3)
    views = [model.project(model.base.encode(batch.with_missing(drop(batch.missing_BN, generator)))) for _ in range(2)]
    cosine = torch.stack([F.cosine_similarity(a, views[1]) for a in views[0]]) / 0.5
    expected = -sum(cosine[i, i] - torch.logsumexp(cosine[i], 0) for i in range(6)) / 6
    found = model.loss(batch, seeded(3))
    assert found.parts["self"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.total.item() == pytest.approx((found.parts["main"] + 0.3 * expected).item(), rel=1e-5)


def test_views_are_told_apart_within_groups():
    model, batch = built(ContrastiveConfig(base=BASE, group=4)), impressions(10)
    a, b = (torch.randn(10, model.base.width, generator=seeded(n)) for n in (1, 2))
    views = iter([a, b])
    model._view = lambda *_: next(views)
    unit_a, unit_b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    cosines = [unit_a[part] @ unit_b[part].T / 0.1 for part in parts]
    expected = sum(-cosine.log_softmax(dim=1).diagonal().sum() for cosine in cosines) / 10
    assert model.loss(batch, seeded()).parts["self"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        *(shape(base=BASE) for shape in (FeatureDropoutConfig, CDAEConfig, MultVAEConfig, ContrastiveConfig)),
        LatentDiffusionConfig(base=BASE), AsymDiffRecConfig(base=BASE), AsymDiffRecConfig(base=BASE, residual=False),
    ],
    ids=lambda config: config.model,
)  # fmt: skip
def test_a_number_that_is_none_is_a_missing_field(config):
    model, batch = built(config), impressions(16, missing=0.0)
    nothing = batch.numeric_BG.clone()
    nothing[::2] = torch.nan
    flagged = batch.missing_BN.clone()
    flagged[::2, 1] = True
    found, meant = replace(batch, numeric_BG=nothing), batch.with_missing(flagged)
    assert torch.equal(model.logits(found), model.logits(meant))
    assert model.loss(found, seeded()).total == model.loss(meant, seeded()).total


@pytest.mark.parametrize(
    ("shape", "settings", "where"),
    [
        (AsymDiffRecConfig, {"shared_head": False, "aux_weight": 0}, "nothing trains a head of its own"),
        (AsymDiffRecConfig, {"recon_weight": 0, "aux_weight": 0}, "nothing trains g"),
        (CDAEConfig, {"recon_weight": 0, "aux_weight": 0}, "nothing trains what restores"),
        (LatentDiffusionConfig, {"recon_weight": 0, "aux_weight": 0}, "nothing trains the denoiser"),
        (FeatureDropoutConfig, {"drop_power": 2}, "drop_power: means nothing"),
    ],
)  # fmt: skip
def test_what_could_not_be_trained_is_refused(shape, settings, where):
    with pytest.raises(ValidationError, match=where):
        shape(**settings)


def test_noise_on_the_representation_and_its_way_back():
    model, batch = built(LatentDiffusionConfig(base=BASE, hidden=12, steps=3, noise=0.3)), impressions(16)
    torch.testing.assert_close(model.diffusion.alphas_cumprod, torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))
    z = model.base.encode(batch)
    for t, (before, now) in zip((2, 1, 0), ((0.8, 0.7), (0.9, 0.8), (1.0, 0.9)), strict=True):
        z0 = model.denoiser(torch.cat([z, model.steps.weight[t].expand(16, -1)], dim=1))
        beta = 1 - now / before
        z = (before**0.5 * beta * z0 + (1 - before) * (1 - beta) ** 0.5 * z) / (1 - now)
    torch.testing.assert_close(model.logits(batch), model.base.head(z))


def test_the_aims_are_not_moved():
    """The error of what is restored trains the restoring part, and what it reads, never what it aims at."""
    for config in (CDAEConfig, MultVAEConfig, LatentDiffusionConfig):
        model, batch = built(config(base=BASE, aux_weight=0)), impressions(16, missing=0.0)
        for name, parameter in model.named_parameters():
            if not name.startswith("base."):
                torch.nn.init.zeros_(parameter)
        total = model.loss(batch, seeded()).total - model.base.loss(batch, seeded()).total
        grads = torch.autograd.grad(total, [*model.base.parameters()], allow_unused=True)
        assert all(g is None or not g.abs().gt(1e-8).any() for g in grads), config
