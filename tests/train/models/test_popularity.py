"""Popularity: counted, not trained."""

import pytest

from infra.errors import TrainingError
from tests.train.models.contract import CATALOGUE, TRAINING, SequenceModelContract, histories, ragged, seeded
from train.configs import PopularityConfig
from train.models.popularity import PopularityModel
from train.protocol import CountedModel
from train.ranking import top_k


class TestPopularity(SequenceModelContract):
    def build(self):
        model = PopularityModel(PopularityConfig(), CATALOGUE)
        chunks = ragged(*([item] * item for item in range(CATALOGUE)))
        model.fit(chunks, chunks)
        return model

    def test_the_most_frequent_items_come_first_ties_by_index(self):
        model = PopularityModel(PopularityConfig(), 6)
        chunks = ragged([3, 4, 3, 4, 1, 1, 1], [5, 5], [2, 0, 3, 4])
        model.fit(chunks, chunks)
        u = model.user_vectors(histories([2], []), None, seeded())
        items, scores = top_k(u, model.item_table(), 4)
        assert items.tolist() == [[3, 4, 5, 2]] * 2
        assert scores.tolist() == [[3, 3, 2, 1]] * 2

    def test_what_is_not_to_be_predicted_does_not_count(self):
        model = PopularityModel(PopularityConfig(), 5)
        model.fit(ragged([2, 3, 4]), ragged([0, 3, 0]))
        assert model.item_table()[:, 0].tolist() == [0, 0, 0, 1, 0]

    def test_training_it_is_refused(self):
        with pytest.raises(TrainingError, match="counted, not trained"):
            self.build().loss(TRAINING, seeded())

    def test_items_of_another_catalogue_are_refused(self):
        with pytest.raises(TrainingError, match="14 rows"):
            self.build().fit(ragged([14]), ragged([14]))

    def test_the_counts_travel_in_the_checkpoint_and_nothing_trains(self):
        model = self.build()
        assert isinstance(model, CountedModel)
        assert list(model.state_dict()) == ["counts_V1"]
        assert not list(model.parameters())
