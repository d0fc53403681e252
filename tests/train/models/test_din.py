"""DIN. W embedding width."""

from dataclasses import replace

import pytest
import torch

from infra.errors import ConfigError
from infra.tables import UNKNOWN
from tests.train.models.contract import FIELDS, FieldModelContract, impressions
from train.models.din import DIN
from train.ranking_configs import DINConfig

#: Genres as if they were past items: of one table with the item, so of its size.
SHARED = tuple(replace(spec, size=5) if spec.name == "genres" else spec for spec in FIELDS)
CONFIG = DINConfig(embedding_width=4, hidden=(16, 8), behaviour="genres", attention=(6,))


class TestDIN(FieldModelContract):
    model, width, fields, config = DIN, 8, SHARED, CONFIG


class TestZeroMissing(TestDIN):
    config = CONFIG.model_copy(update={"missing": "zero"})


def built():
    torch.manual_seed(0)
    model = DIN(CONFIG, SHARED).eval()
    torch.nn.init.normal_(model.fields.table.weight)  # far enough apart to be told from each other
    return model


def test_the_history_event_by_event():
    model, batch = built(), impressions(16)
    fields = model.fields(batch)
    rows = model.fields.blocks["item"]
    assert rows == model.fields.blocks["genres"]
    table = model.fields.table.weight[rows.start : rows.stop]
    for b in range(16):
        item = fields[b, 3]
        read = torch.zeros(4)
        for value in batch.multi[0][b].tolist():
            if value:  # 0 is padding, and past the table is unknown
                e = table[value if value < 5 else UNKNOWN]
                pair = torch.cat([e, e - item, e * item, item])
                hidden = (model.attention[0](pair)).relu()
                read = read + model.attention[-1](hidden) * e
        if batch.missing_BN[b, 2]:
            read = model.fields.missing_NW[2]
        flat = torch.cat([fields[b, 0], fields[b, 1], read, fields[b, 3]])
        torch.testing.assert_close(model.encode(batch)[b], model.mlp(flat))


def test_another_item_reads_the_history_otherwise():
    model, batch = built(), impressions(16, missing=0.0)
    other = batch.categorical_BF.clone()
    other[:, 1] = 2 + (other[:, 1] - 1) % 3
    items = [model.fields(b)[:, 3] for b in (batch, replace(batch, categorical_BF=other))]
    read = [model._read(item, batch) for item in items]
    assert not torch.allclose(read[0], read[1])


def test_the_order_of_the_history_and_its_padding_mean_nothing():
    model, batch = built(), impressions(16)
    longer = torch.cat([torch.zeros(16, 2, dtype=torch.int64), batch.multi[0].flip(1)], dim=1)
    torch.testing.assert_close(model.logits(batch), model.logits(replace(batch, multi=(longer,))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"behaviour": "history"}, r"behaviour: needs a multi field, and 'history' is none of user, age, genres, item"),
        ({"behaviour": "age"}, r"behaviour: needs a multi field, and 'age' is numeric"),
        ({"target": "genres"}, r"target: needs a categorical field, and 'genres' is multi"),
    ],
)
def test_fields_of_another_kind(settings, message):
    with pytest.raises(ConfigError, match=message):
        DIN(CONFIG.model_copy(update=settings), SHARED)


def test_a_history_of_other_values_than_the_items():
    with pytest.raises(ConfigError, match=r"field genres: has 7 values and item 5"):
        DIN(CONFIG, FIELDS)
