"""Signatures, examples and answers that travel with a model."""

from __future__ import annotations

import pytest
from mlflow.models import validate_schema

from evaluate.publish import ranking_pyfunc, retrieval_pyfunc
from evaluate.publish.package import package, same_answer
from infra.errors import ArtifactError
from infra.tables import Kind
from tests.evaluate.publish.conftest import FIELDS, KEYS, save, vocabulary
from train.protocol import FieldSpec


def answer(*rows: list, columns: tuple[str, ...] = ("probability",)) -> dict:
    return {"index": list(range(len(rows))), "columns": list(columns), "data": list(rows)}


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ([0.5], [0.5 + 9e-6], True),
        ([0.5], [0.5 + 1.1e-5], False),
        ([1000.0], [1000.009], True),
        ([1000.0], [1000.02], False),
        ([-1000.0], [-1000.009], True),
        ([1.0], [1], True),  # JSON knows one kind of number
        ([["a", "b"], [2.0, 1.0]], (["a", "b"], [2.0, 1.0]), True),
        ([["a", "b"], [2.0, 1.0]], [["b", "a"], [2.0, 1.0]], False),
        ([["a"], [2.0]], [["a", "b"], [2.0, 1.0]], False),
        ([[], []], [[], []], True),
        ([float("nan")], [None], False),  # what a NaN becomes in JSON: no answer at all
        ([float("nan")], [float("nan")], False),
        ([0.5], ["0.5"], False),
    ],
)
def test_same_answer(left, right, same):
    assert same_answer(answer(left), answer(right)) is same


def test_answers_of_other_columns_or_lengths_differ():
    assert not same_answer(answer([0.5]), answer([0.5], columns=("score",)))
    assert not same_answer(answer([0.5]), answer([0.5], [0.5]))
    assert same_answer(answer(), answer())


@pytest.mark.parametrize("name", ["popularity", "sasrec"])
def test_a_retrieval_package(artifacts, name):
    packed = package(artifacts[name])
    assert packed.code.name == "retrieval_pyfunc.py"
    assert packed.code.is_file()
    assert packed.signature == retrieval_pyfunc.signature()
    assert packed.example["history"].tolist() == [["a", "b", "7"], ["b", "never seen before"], []]
    assert packed.answer["columns"] == ["items", "scores"]
    assert [set(items) for items, _ in packed.answer["data"]] == [{"d"}, {"a", "7", "d"}, {"a", "b", "7", "d"}]
    validate_schema(packed.example, packed.signature.inputs)


@pytest.mark.parametrize("name", ["dnn", "asymdiffrec"])
def test_a_ranking_package(artifacts, name):
    packed = package(artifacts[name])
    assert packed.code.name == "ranking_pyfunc.py"
    assert packed.signature == ranking_pyfunc.signature(FIELDS)
    unseen = "never seen before"
    columns = packed.example.astype(object).where(packed.example.notna(), None).to_dict("list")
    assert columns == {
        "user": ["ann", unseen, None],
        "item": ["a", unseen, None],
        "price": [2.0, 6.0, None],
        "tags": [["red"], [unseen], None],
        "shop": [None, unseen, None],
    }
    assert packed.answer["columns"] == ["probability"]
    values = [row[0] for row in packed.answer["data"]]
    assert len(set(values)) == 3
    assert all(0 < value < 1 for value in values)
    validate_schema(packed.example, packed.signature.inputs)


def test_fields_without_a_value_in_the_vocabulary(tmp_path):
    fields = (FieldSpec("shop", Kind.CATEGORICAL, 2), FieldSpec("labels", Kind.MULTI, 2))
    packed = package(save(tmp_path / "m", "dnn", fields=fields, vocabulary=vocabulary(KEYS[:1])))
    assert packed.example["shop"].tolist() == [None, "never seen before", None]
    assert packed.example["labels"].tolist() == [[], ["never seen before"], None]
    validate_schema(packed.example, packed.signature.inputs)
    assert len(packed.answer["data"]) == 3


def test_one_item_is_enough_for_an_example(tmp_path):
    path = save(tmp_path / "m", "popularity", catalogue=3, vocabulary=vocabulary(KEYS[:1]))
    packed = package(path)
    assert packed.example["history"].tolist() == [["a"], ["never seen before"], []]
    assert [items for items, _ in packed.answer["data"]] == [[], ["a"], ["a"]]


@pytest.mark.parametrize("name", ["popularity", "dnn"])
def test_without_a_vocabulary_nothing_can_be_served(tmp_path, name):
    with pytest.raises(ArtifactError, match="vocabulary"):
        package(save(tmp_path / "m", name, vocabulary=None))


@pytest.mark.parametrize("keys", [KEYS[:3], [*KEYS[:4], ("__item__", 6, "e")], [*KEYS[:3], ("__item__", 6, "e")]])
def test_items_and_table_must_belong_together(tmp_path, keys):
    with pytest.raises(ArtifactError, match=r"its vocabulary has \d items, its table 6 rows"):
        package(save(tmp_path / "m", "popularity", vocabulary=vocabulary(keys)))


def test_the_examples_tell_two_models_apart(artifacts):
    """The comparison with the clean process would be worthless if any model gave the same answer."""
    assert not same_answer(package(artifacts["dnn"]).answer, package(artifacts["asymdiffrec"]).answer)
    assert not same_answer(package(artifacts["popularity"]).answer, package(artifacts["sasrec"]).answer)
