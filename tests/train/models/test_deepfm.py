"""DeepFM."""

from itertools import combinations

import torch

from tests.train.models.contract import FIELDS, FieldModelContract, impressions
from train.models.deepfm import DeepFM
from train.ranking_configs import DeepFMConfig


class TestDeepFM(FieldModelContract):
    model, width = DeepFM, 1 + 4 + 8
    config = DeepFMConfig(embedding_width=4, hidden=(16, 8))


class TestZeroMissing(TestDeepFM):
    config = DeepFMConfig(embedding_width=4, hidden=(16, 8), missing="zero")


def test_the_factorisation_machine_pair_by_pair():
    torch.manual_seed(0)
    model, batch = DeepFM(TestDeepFM.config, FIELDS).eval(), impressions()
    torch.nn.init.normal_(model.fields.table.weight)  # so that pairs show beside the rest
    v = model.fields(batch)
    pairs = sum((v[:, n] * v[:, m]).sum(dim=1) for n, m in combinations(range(4), 2))
    single = model.single(batch)[..., 0].sum(dim=1)
    deep = model.mlp(v.flatten(1)) @ model.out.weight[0] + model.out.bias
    torch.testing.assert_close(model.logits(batch), single + pairs + deep)
    assert pairs.abs().max() > 1e-3


def test_with_zeros_a_missing_field_is_in_no_pair_and_has_no_weight_of_its_own():
    model = DeepFM(TestZeroMissing.config, FIELDS).eval()
    z = model.encode(impressions().with_missing(torch.ones(8, 4, dtype=torch.bool)))
    assert not z[:, : model.summed].any()
