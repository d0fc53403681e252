"""AsymDiffRec. B samples, N fields, D width of h(x)."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.train.models.contract import FIELDS, RankingModelContract, impressions, seeded
from train.diffusion.dropping import drop
from train.models.asymdiffrec import AsymDiffRec
from train.ranking_configs import AsymDiffRecConfig, DCNv2Config, DNNConfig

BASE = DNNConfig(embedding_width=4, hidden=(16, 8), dropout=0.0)


def asymdiffrec(**settings) -> AsymDiffRec:
    torch.manual_seed(0)
    return AsymDiffRec(AsymDiffRecConfig(base=BASE, hidden=12, **settings), FIELDS).eval()


class TestAsymDiffRec(RankingModelContract):
    def build(self):
        return AsymDiffRec(AsymDiffRecConfig(base=BASE, hidden=12), FIELDS)


class TestGradientThroughTheTarget(RankingModelContract):
    def build(self):
        # Through z_0 the shipped weight of L_recon shrinks h faster than so few steps can teach it the rule.
        return AsymDiffRec(AsymDiffRecConfig(base=BASE, hidden=12, stop_gradient=False, recon_weight=1.0), FIELDS)


class TestAsThePaperWritesIt(RankingModelContract):
    def build(self):
        paper = AsymDiffRecConfig(base=BASE, hidden=12, residual=False, drop_power=1.0, recon_weight=8.0)  # h is 8 wide
        return AsymDiffRec(paper, FIELDS)


def reverse(model, missing, z):
    """g written out: two linear layers around a ReLU on [s, z]."""
    first, _, second = model.reverse
    hidden = F.relu(torch.cat([missing.float(), z], dim=1) @ first.weight.T + first.bias)
    return hidden @ second.weight.T + second.bias


@pytest.mark.parametrize(("residual", "power"), [(False, 1.0), (True, 2.0)])
def test_the_loss_is_the_papers_sum_by_hand(residual, power):
    model, batch = asymdiffrec(recon_weight=0.5, aux_weight=2.0, residual=residual, drop_power=power), impressions(16)
    missing = drop(batch.missing_BN, seeded(3), power=power)
    z0 = model.base.encode(batch)
    z = model.base.encode(batch.with_missing(missing))
    restored = reverse(model, missing, z)
    if residual:
        restored = z + missing.float().mean(dim=1).sqrt()[:, None] * restored
    main = F.binary_cross_entropy(model.base.head(z0).sigmoid(), batch.label_B)
    aux = F.binary_cross_entropy(model.base.head(restored).sigmoid(), batch.label_B)
    recon = sum(((a - b) ** 2).sum() / 8 for a, b in zip(restored, z0, strict=True)) / 16
    parts = model.loss(batch, seeded(3))
    assert parts.parts["main"].item() == pytest.approx(main.item(), rel=1e-5)
    assert parts.parts["aux"].item() == pytest.approx(aux.item(), rel=1e-5)
    assert parts.parts["recon"].item() == pytest.approx(recon.item(), rel=1e-5)
    assert parts.total.item() == pytest.approx((main + 0.5 * recon + 2 * aux).item(), rel=1e-5)


def test_serving_restores_with_the_really_missing_fields():
    model, batch = asymdiffrec(residual=False), impressions()
    restored = reverse(model, batch.missing_BN, model.base.encode(batch))
    torch.testing.assert_close(model.logits(batch), model.base.head(restored))


def test_with_a_residual_a_complete_sample_is_served_as_the_base_serves_it():
    model, batch = asymdiffrec(), impressions()
    complete = batch.with_missing(torch.zeros_like(batch.missing_BN))
    assert torch.equal(model.logits(complete), model.base.logits(complete))
    assert not torch.allclose(model.logits(batch), model.base.logits(batch))


def test_the_main_loss_sees_the_sample_as_logged():
    model, batch = asymdiffrec(), impressions(16)
    base_loss = model.base.loss(batch, seeded()).total.item()
    for seed in range(3):
        assert model.loss(batch, seeded(seed)).parts["main"].item() == pytest.approx(base_loss)


def test_really_missing_fields_are_missing_after_dropping_too():
    model, batch = asymdiffrec(), impressions(16)
    seen = []
    inner = model.base.encode
    model.base.encode = lambda b: seen.append(b.missing_BN) or inner(b)
    model.loss(batch, seeded(1))
    assert torch.equal(seen[0], batch.missing_BN)
    assert (seen[1] | ~batch.missing_BN).all()
    assert (seen[1] & ~batch.missing_BN).any()


@pytest.mark.parametrize("stop", [True, False])
def test_the_gradient_of_the_reconstruction_target(stop):
    """With g = 0 the restored vector is 0 and constant: L_recon reaches h through z_0 or not at all."""
    model, batch = asymdiffrec(stop_gradient=stop, residual=False), impressions(4)
    for parameter in model.reverse.parameters():
        torch.nn.init.zeros_(parameter)
    z0 = model.base.encode(batch)
    expected = torch.autograd.grad(z0.square().mean(), model.base.fields.missing_NW)[0]
    only_recon = AsymDiffRecConfig(
        base=BASE, hidden=12, stop_gradient=stop, aux_weight=0.0, residual=False, recon_weight=1.0
    )
    model.config = only_recon
    total = model.loss(batch, seeded()).total
    main = model.base.loss(batch, seeded()).total
    got = torch.autograd.grad(total - main, model.base.fields.missing_NW)[0]
    wanted = torch.zeros_like(expected) if stop else expected
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_one_generator_one_drop():
    model, batch = asymdiffrec(), impressions(32)
    recon = [model.loss(batch, seeded(s)).parts["recon"].item() for s in (1, 1, 2)]
    assert recon[0] == recon[1] != recon[2]


def test_the_base_is_a_dnn_unless_it_says_otherwise():
    read = AsymDiffRecConfig.model_validate
    assert read({"base": {"embedding_width": 4, "hidden": [16, 8], "dropout": 0}}).base == BASE
    assert read({"base": {"model": "dcnv2", "crosses": 2}}).base == DCNv2Config(crosses=2)
    assert read(AsymDiffRecConfig(base=DCNv2Config()).model_dump()).base == DCNv2Config()
    with pytest.raises(ValidationError, match=r"base\.dnn\.crosses"):
        read({"base": {"crosses": 2}})
    with pytest.raises(ValidationError, match="'dnn', 'dcnv2', 'deepfm', 'finalmlp'"):
        read({"base": {"model": "sasrec"}})


def test_a_head_of_its_own_for_what_is_restored():
    model, batch = asymdiffrec(shared_head=False, residual=False), impressions(16)
    restored = reverse(model, batch.missing_BN, model.base.encode(batch))
    own = restored @ model.own_head.weight[0] + model.own_head.bias
    torch.testing.assert_close(model.logits(batch), own)
    assert not torch.allclose(own, model.base.head(restored))
    main = model.loss(batch, seeded()).parts["main"].item()
    assert main == pytest.approx(model.base.loss(batch, seeded()).total.item(), rel=1e-5)


@pytest.mark.parametrize(("counted", "by"), [(True, "uniform"), (False, "missing_rate")])
def test_how_fields_are_dropped(counted, by):
    torch.manual_seed(0)
    fields = [replace(spec, missing_rate=rate) for spec, rate in zip(FIELDS, (0.5, 0.0, 0.2, 0.0), strict=True)]
    config = AsymDiffRecConfig(base=BASE, hidden=12, count_missing=counted, drop_by=by, residual=False, drop_power=1.5)
    model = AsymDiffRec(config, fields).eval()
    batch = impressions(16)
    rates = torch.tensor([0.5, 0.0, 0.2, 0.0]) if by == "missing_rate" else None
    missing = drop(batch.missing_BN, seeded(3), counted, rates, 1.5)
    aux = F.binary_cross_entropy(
        model.base.head(reverse(model, missing, model.base.encode(batch.with_missing(missing)))).sigmoid(),
        batch.label_B,
    )
    assert model.loss(batch, seeded(3)).parts["aux"].item() == pytest.approx(aux.item(), rel=1e-5)
    assert not any("weight_N" in name for name in model.state_dict())
