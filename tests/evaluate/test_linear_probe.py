"""The linear probe. N items, D width."""

import math

import numpy as np
import pytest

from evaluate import linear_probe as probing
from evaluate.linear_probe import linear_probe
from evaluate.metrics.diversity import ItemCategories
from infra.errors import UsageError


def labelled(classes: int, items: int) -> tuple[ItemCategories, np.ndarray]:
    label_N = np.arange(items) % classes
    return ItemCategories.from_lists([[], [], *([10 * c] for c in label_N.tolist())]), label_N


def vectors(label_N: np.ndarray, spread: float) -> np.ndarray:
    """A point for each class, and noise around it; rows of padding and unknown in front."""
    random = np.random.default_rng(0)
    return np.concatenate([np.zeros((2, 8)), 5 * np.eye(8)[label_N] + spread * random.normal(size=(len(label_N), 8))])


def test_classes_that_lie_apart_are_found_and_noise_is_guessed() -> None:
    categories, label_N = labelled(4, 400)
    assert linear_probe(vectors(label_N, 0.1), categories) == 1.0
    assert 0.5 < linear_probe(vectors(label_N, 4.0), categories) < 0.95
    noise = np.random.default_rng(1).normal(size=(402, 8))
    assert linear_probe(noise, categories) == pytest.approx(0.25, abs=0.1)


def test_neither_scale_nor_a_common_vector_matters() -> None:
    categories, label_N = labelled(4, 100)
    e = vectors(label_N, 2.0)
    assert linear_probe(1e-4 * e + 3, categories) == pytest.approx(linear_probe(e, categories), abs=0.011)


def test_any_of_an_items_categories_is_right() -> None:
    """Each item has its own class and one that all have: whatever is said of it is right."""
    _, label_N = labelled(3, 60)
    categories = ItemCategories.from_lists([[], [], *([c, 9] for c in label_N.tolist())])
    assert linear_probe(vectors(label_N, 0.1), categories) == 1.0


def test_items_are_predicted_by_a_classifier_that_was_not_shown_them() -> None:
    """More dimensions than items: what is fitted is fitted exactly, and says nothing of others."""
    categories, _ = labelled(2, 50)
    noise = np.random.default_rng(2).normal(size=(52, 300))
    assert linear_probe(noise, categories) < 0.8


def test_a_large_catalogue_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    categories, label_N = labelled(4, 400)
    monkeypatch.setattr(probing, "LARGEST", 50)
    assert probing._labelled(categories, 0)[1].shape == (50, 4)
    assert linear_probe(vectors(label_N, 0.1), categories) == 1.0


def test_where_there_is_nothing_to_tell() -> None:
    categories, label_N = labelled(1, 40)
    assert math.isnan(linear_probe(vectors(label_N, 0.1), categories))
    assert math.isnan(linear_probe(np.ones((9, 2)), ItemCategories.from_lists([[], [], [1], [2]])))
    assert math.isnan(linear_probe(np.ones((9, 2)), ItemCategories.from_lists([[]])))
    same, _ = labelled(2, 20)
    assert 0 <= linear_probe(np.ones((22, 3)), same) <= 1


def test_wrong_tables_are_refused() -> None:
    categories, label_N = labelled(2, 20)
    with pytest.raises(UsageError, match="has 21 rows, but item 21"):
        linear_probe(vectors(label_N, 1.0)[:21], categories)
    broken = vectors(label_N, 1.0)
    broken[5, 3] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        linear_probe(broken, categories)
