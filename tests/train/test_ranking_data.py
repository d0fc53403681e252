"""Columns and masks of ranking batches, worked out by hand."""

import numpy as np
import pytest

from infra.errors import TrainingError
from infra.tables import Kind
from tests.train.tables import AS_OF, write_samples
from train.ranking_data import RankingData


class TestRankingData:
    ROWS = (
        {"f_colour": 3, "f_price": 1.5, "f_tags": [2, 8], "f_shop": 2, "label": 1, "missing": 0},
        {"f_colour": None, "f_price": None, "f_tags": None, "f_shop": 3, "label": 0, "missing": 0b0111},
        {"f_colour": 1, "f_price": float("nan"), "f_tags": [], "f_shop": 2, "label": 1, "missing": 0},
        {"f_colour": 2, "f_price": float("inf"), "f_tags": [5], "f_shop": None, "label": 0, "missing": 0b1000},
        {"f_colour": 2, "f_price": 1e300, "f_tags": [5], "f_shop": 1, "label": 0, "missing": 0b0001},
    )

    def test_columns_and_masks(self, tmp_path):
        data = RankingData.from_lake(write_samples(tmp_path, list(self.ROWS)), 0, 0, AS_OF, "train")
        assert [f.name for f in data.fields] == ["colour", "price", "tags", "shop"]
        assert (data.fields[0].size, data.fields[1].std, data.fields[2].kind) == (6, 2.0, Kind.MULTI)
        batch = data.batch(np.arange(5))
        assert batch.categorical_BF.tolist() == [[3, 2], [0, 3], [1, 2], [2, 0], [2, 1]]
        assert batch.numeric_BG.tolist() == [[1.5], [0], [0], [0], [0]]
        assert [m.tolist() for m in batch.multi] == [[[2, 8], [0, 0], [0, 0], [0, 5], [0, 5]]]
        assert batch.missing_BN.int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]]
        assert batch.label_B.tolist() == [1, 0, 1, 0, 0]

    @pytest.mark.parametrize(("sizes", "field"), [((3, 0, 9, 4), "colour"), ((6, 0, 8, 4), "tags")])
    def test_an_index_beyond_its_field_is_refused(self, tmp_path, sizes, field):
        with pytest.raises(TrainingError, match=f"field {field} has index"):
            RankingData.from_lake(write_samples(tmp_path, list(self.ROWS), sizes), 0, 0, AS_OF, "train")

    @pytest.mark.parametrize("label", [2, -1])
    def test_a_label_that_is_neither_0_nor_1_is_refused(self, tmp_path, label):
        with pytest.raises(TrainingError, match=f"label {label}.0 is neither 0 nor 1"):
            RankingData.from_lake(write_samples(tmp_path, [{**self.ROWS[0], "label": label}]), 0, 0, AS_OF, "train")

    def test_an_empty_split_is_named(self, tmp_path):
        with pytest.raises(TrainingError, match=r"samples version 0 .*'test'"):
            RankingData.from_lake(write_samples(tmp_path, list(self.ROWS)), 0, 0, AS_OF, "test")

    def test_memory_maps_hold_what_training_needs(self, tmp_path):
        data = RankingData.from_lake(write_samples(tmp_path, list(self.ROWS)), 0, 0, AS_OF, "train")
        again = RankingData.from_arrays(data.arrays(), data.fields)
        rows = np.array([4, 0, 2])
        for one, two in zip(vars(data.batch(rows)).values(), vars(again.batch(rows)).values(), strict=True):
            assert [t.tolist() for t in (one if isinstance(one, tuple) else [one])] == [
                t.tolist() for t in (two if isinstance(two, tuple) else [two])
            ]
