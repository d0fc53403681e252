"""DNN."""

import torch
from torch.nn import functional as F

from tests.train.models.contract import FIELDS, FieldModelContract, impressions
from train.models.dnn import DNN
from train.ranking_configs import DNNConfig


class TestLearnedMissing(FieldModelContract):
    model, width = DNN, 8
    config = DNNConfig(embedding_width=4, hidden=(16, 8))


class TestZeroMissing(TestLearnedMissing):
    config = DNNConfig(embedding_width=4, hidden=(16, 8), missing="zero")


def test_the_network_is_relu_layers_on_the_concatenated_fields():
    torch.manual_seed(0)
    model = DNN(DNNConfig(embedding_width=4, hidden=(16, 8)), FIELDS).eval()
    batch = impressions()
    x = torch.cat(list(model.fields(batch).unbind(1)), dim=1)
    for layer in (model.mlp[0], model.mlp[3]):
        x = F.relu(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model.encode(batch), x)
