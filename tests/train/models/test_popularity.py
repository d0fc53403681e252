"""Popularity: counted, not trained."""

import pytest
import torch

from infra.errors import TrainingError
from tests.train.models.contract import CATALOGUE, TRAINING, SequenceModelContract, histories, seeded
from train.configs import PopularityConfig
from train.models.popularity import PopularityModel
from train.ranking import top_k


class TestPopularity(SequenceModelContract):
    def build(self):
        model = PopularityModel(PopularityConfig(), CATALOGUE)
        model.fit(torch.arange(CATALOGUE))
        return model

    def test_the_most_frequent_items_come_first_ties_by_index(self):
        model = PopularityModel(PopularityConfig(), 6)
        model.fit(torch.tensor([90, 80, 1, 5, 5, 2]))
        u = model.user_vectors(histories([2], []), None, seeded())
        items, scores = top_k(u, model.item_table(), 4)
        assert items.tolist() == [[3, 4, 5, 2]] * 2
        assert scores.tolist() == [[5, 5, 2, 1]] * 2

    def test_training_it_is_refused(self):
        with pytest.raises(TrainingError, match="counted, not trained"):
            self.build().loss(TRAINING, seeded())

    def test_counts_of_another_catalogue_are_refused(self):
        with pytest.raises(TrainingError, match="14 rows"):
            self.build().fit(torch.ones(3))

    def test_the_counts_travel_in_the_checkpoint_and_nothing_trains(self):
        model = self.build()
        assert list(model.state_dict()) == ["counts_V1"]
        assert not list(model.parameters())
