"""Bigram counts: counted, not trained. Scores by hand and against a naive recount."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ConfigError, TrainingError
from tests.train.models.contract import CATALOGUE, TRAINING, SequenceModelContract, histories, ragged, seeded
from train import artifact
from train.configs import BigramConfig
from train.models.bigram import BigramModel
from train.protocol import CountedModel
from train.ranking import MISS, target_ranks, top_k

#: Popularity: 2 three times, 3 four times, 4 once, 5 twice, 6 never; place in fifths: 2, 3 and 1 of {0, 1, 2, 3, 4}.
CHUNKS = ragged([2, 3, 2, 3, 5], [3, 5, 1, 2], [4, 3])


def scores(model: BigramModel, *rows: list[int]) -> torch.Tensor:
    return model.user_vectors(histories(*rows), None, seeded())[:, 0]


def counted(chunks=CHUNKS, next_chunks=None, catalogue: int = 7, followers: int = 256) -> BigramModel:
    model = BigramModel(BigramConfig(followers=followers), catalogue)
    model.fit(chunks, chunks if next_chunks is None else next_chunks)
    return model


class TestBigram(SequenceModelContract):
    def build(self):
        rng = np.random.default_rng(0)
        return counted(ragged(*(rng.integers(1, CATALOGUE, 20).tolist() for _ in range(5))), catalogue=CATALOGUE)

    def test_training_it_is_refused(self):
        with pytest.raises(TrainingError, match="counted, not trained"):
            self.build().loss(TRAINING, seeded())

    def test_items_of_another_catalogue_are_refused(self):
        with pytest.raises(TrainingError, match="14 rows"):
            self.build().fit(ragged([2, 14]), ragged([2, 0]))

    def test_it_is_counted_and_nothing_trains(self):
        model = self.build()
        assert isinstance(model, CountedModel)
        assert not list(model.parameters())

    def test_counting_again_forgets_the_first_count(self):
        model = self.build()
        model.fit(ragged([2, 3]), ragged([2, 3]))
        assert torch.equal(scores(model, [2]), scores(counted(ragged([2, 3]), catalogue=CATALOGUE), [2]))


class TestByHand:
    def test_scores(self):
        """After 2 came 3 twice; after 3 came 2 once and 5 twice; nothing known followed 5; 1 is no item."""
        place = [0, 0, 3 / 5, 4 / 5, 1 / 5, 2 / 5, 0]
        expected = [[0, 0, 0, 2, 0, 0, 0], [0, 0, 1, 0, 0, 2, 0], [0] * 7]
        found = scores(counted(), [4, 2], [2, 3], [5])
        torch.testing.assert_close(found, torch.tensor(expected) + torch.tensor(place))

    def test_without_a_last_item_that_is_known_it_is_popularity(self):
        model = counted()
        items, _ = top_k(model.user_vectors(histories([], [2, 1]), None, seeded()), None, 7)
        assert items.tolist() == [[3, 2, 5, 4, 6, 0, 0]] * 2

    def test_a_transition_to_what_is_not_to_be_predicted_does_not_count_one_from_it_does(self):
        model = counted(ragged([2, 3, 4]), ragged([0, 0, 4]))
        assert (scores(model, [2])[0] >= 1).nonzero().tolist() == []
        assert (scores(model, [3])[0] >= 1).nonzero().tolist() == [[4]]

    def test_the_most_frequent_followers_are_kept_ties_by_popularity(self):
        """After 2: 3 twice, 4, 5 and 6 once each; of these 5 is the most popular."""
        model = counted(ragged([2, 3], [2, 3], [2, 4], [2, 5], [2, 6], [5, 5]), followers=2)
        assert model.next_VM.shape == model.count_VM.shape == (7, 2)
        assert model.next_VM[2].tolist() == [3, 5]
        assert model.count_VM[2].tolist() == [2, 1]

    def test_chunks_of_one_event_and_empty_ones(self):
        model = counted(ragged([], [2], [], [3], []))
        assert model.count_VM.sum() == 0
        assert model.place_V.tolist() == [0, 0, 0.5, 0.5, 0, 0, 0]

    def test_a_list_longer_than_the_catalogue(self):
        items, _ = top_k(counted(catalogue=6).user_vectors(histories([2]), None, seeded()), None, 20)
        assert items[0].tolist() == [3, 2, 5, 4] + [0] * 16

    def test_popularity_decides_behind_large_counts_too(self):
        """3 and 4 follow 2 a thousand times each; 4 occurs once more."""
        model = counted(ragged([2, 3, 2, 4] * 1000, [4]))
        assert top_k(model.user_vectors(histories([2]), None, seeded()), None, 2)[0].tolist() == [[4, 3]]


CHUNK = st.lists(st.integers(1, 8), max_size=8)


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(CHUNK, max_size=6), last=st.integers(1, 8), target=st.integers(0, 10))
def test_against_a_naive_recount(chunks, last, target):
    pairs = Counter((w, v) for chunk in chunks for w, v in pairwise(chunk) if w > 1 and v > 1)
    popularity = Counter(v for chunk in chunks for v in chunk)
    order = sorted(range(2, 9), key=lambda v: (-pairs[last, v], -popularity[v], v))
    model = counted(ragged(*chunks), catalogue=9)
    u = model.user_vectors(histories([last]), None, seeded())
    assert top_k(u, None, 7)[0][0].tolist() == order
    rank = target_ranks(u, None, torch.tensor([target])).item()
    assert rank == (order.index(target) + 1 if target in order else MISS)


def test_it_survives_as_an_artifact_and_another_shape_does_not(tmp_path):
    config, model = BigramConfig(followers=3), counted(followers=3)
    artifact.save(tmp_path / "m", model, config, lineage={}, vocabulary_hash="", metrics={}, catalogue=7)
    loaded = artifact.load(tmp_path / "m")
    assert torch.equal(scores(loaded.model, [3]), scores(model, [3]))
    assert loaded.model.item_table() is None


def test_no_followers_are_refused():
    with pytest.raises((ConfigError, ValueError), match="followers"):
        BigramConfig(followers=0)
