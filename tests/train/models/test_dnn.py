"""DNN."""

import pytest
import torch
from torch.nn import functional as F

from tests.train.models.contract import FIELDS, RankingModelContract, impressions, seeded
from train.configs import DNNConfig
from train.models.dnn import DNN
from train.protocol import Encodable


class DNNTests(RankingModelContract):
    missing = "learned"

    def build(self):
        return DNN(DNNConfig(embedding_width=4, hidden=(16, 8), missing=self.missing), FIELDS)

    def test_it_is_a_head_on_an_encoding(self):
        model, batch = self.fresh(), impressions()
        assert isinstance(model, Encodable)
        z = model.encode(batch)
        assert z.shape == (8, model.width) == (8, 8)
        assert torch.equal(model.head(z), model.logits(batch))

    def test_the_loss_is_the_binary_cross_entropy(self):
        model, batch = self.fresh(), impressions()
        p = model.logits(batch).sigmoid()
        by_hand = -(batch.label_B * p.log() + (1 - batch.label_B) * (1 - p).log()).mean()
        assert model.loss(batch, seeded()).total.item() == pytest.approx(by_hand.item(), rel=1e-5)

    def test_a_missing_field_changes_the_answer(self):
        model, batch = self.fresh(), impressions(missing=0.0)
        gone = batch.missing_BN.clone()
        gone[:, 0] = True
        assert not torch.equal(model.logits(batch), model.logits(batch.with_missing(gone)))


class TestLearnedMissing(DNNTests):
    pass


class TestZeroMissing(DNNTests):
    missing = "zero"


def test_the_network_is_relu_layers_on_the_concatenated_fields():
    torch.manual_seed(0)
    model = DNN(DNNConfig(embedding_width=4, hidden=(16, 8)), FIELDS).eval()
    batch = impressions()
    x = torch.cat(list(model.fields(batch).unbind(1)), dim=1)
    for layer in (model.mlp[0], model.mlp[3]):
        x = F.relu(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model.encode(batch), x)
