"""What the registered models answer: in this process, through MLflow, and in a clean process.

Expected answers come from popularity counts, or from the model itself on batches written by hand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

import train
from evaluate.publish.package import package, same_answer
from evaluate.publish.ranking_pyfunc import RankingPyfunc
from evaluate.publish.registry import query_in_clean_process
from evaluate.publish.retrieval_pyfunc import RetrievalModel
from infra.errors import UsageError
from infra.tables import Kind
from tests.evaluate.publish.conftest import FIELDS, KEYS, save, vocabulary
from train.protocol import FieldSpec, RankingBatch, SequenceBatch


def opened(model: Any, artifact: Any) -> Any:
    model.load_context(SimpleNamespace(artifacts={"model": str(artifact)}))
    return model


@pytest.fixture(scope="session")
def popularity(artifacts):
    return opened(RetrievalModel(), artifacts["popularity"])


@pytest.fixture(scope="session")
def sasrec(artifacts):
    return opened(RetrievalModel(), artifacts["sasrec"])


@pytest.fixture(scope="session", params=["dnn", "asymdiffrec"])
def ranking(request, artifacts):
    """(the served model, the model itself)."""
    return opened(RankingPyfunc(), artifacts[request.param]), train.load(artifacts[request.param]).model


def ask(model: RetrievalModel, *histories: Any, **params: Any) -> list[list[Any]]:
    """[[items, scores], ...]"""
    frame = pd.DataFrame({"history": pd.Series(list(histories), dtype=object)})
    return model.predict(None, frame, params).to_numpy().tolist()


class TestRetrieval:
    """Counts: a 5, b 4, 7 4, d 1; b stands before 7."""

    def test_best_first_without_the_history(self, popularity):
        assert ask(popularity, ["b"], ["a", "d"], []) == [
            [["a", "7", "d"], [5.0, 4.0, 1.0]],
            [["b", "7"], [4.0, 4.0]],
            [["a", "b", "7", "d"], [5.0, 4.0, 4.0, 1.0]],
        ]

    def test_k(self, popularity):
        assert ask(popularity, ["b"], k=2) == [[["a", "7"], [5.0, 4.0]]]
        assert ask(popularity, ["a", "b", "d"], k=2) == [[["7"], [4.0]]]
        assert ask(popularity, ["b"], k=10**9) == ask(popularity, ["b"])
        for k in (0, -1):
            with pytest.raises(UsageError, match=f"k: asked for the top {k}"):
                ask(popularity, ["b"], k=k)

    def test_keep_history(self, popularity):
        assert ask(popularity, ["b"], keep_history=True, k=2) == [[["a", "b"], [5.0, 4.0]]]

    def test_draws(self, popularity, artifacts):
        """Of a model without noise they are all alike; of one with noise a score is the highest of all draws."""
        assert ask(popularity, ["b"], draws=3) == ask(popularity, ["b"])
        dimerec = opened(RetrievalModel(), artifacts["dimerec"])
        one, many = (dict(zip(*ask(dimerec, ["b"], draws=n)[0], strict=True)) for n in (1, 8))
        assert one.keys() == many.keys() == {"a", "7", "d"}
        assert all(many[item] >= one[item] for item in one)
        assert many != one
        with pytest.raises(UsageError, match="draws: asked for 0"):
            ask(popularity, ["b"], draws=0)

    def test_everything_seen(self, popularity):
        assert ask(popularity, ["a", "b", "7", "d"]) == [[[], []]]

    @pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA, [], (), np.array([]), ["never seen"], [None], [""]])
    def test_histories_that_hold_no_known_item(self, popularity, nothing):
        assert ask(popularity, nothing)[0][0] == ["a", "b", "7", "d"]

    @pytest.mark.parametrize("ids", [["7"], [7], [7.0], np.array([7]), np.array(["7"]), np.array([7.0]), ("7",)])
    def test_ids_are_read_as_the_log_is(self, popularity, ids):
        assert ask(popularity, ids)[0][0] == ["a", "b", "d"]

    def test_the_index_of_the_request_is_kept(self, popularity):
        frame = pd.DataFrame({"history": [["a"], ["b"]]}, index=[40, 20])
        assert popularity.predict(None, frame).index.tolist() == [40, 20]

    def test_a_model_whose_vectors_are_the_scores(self, artifacts):
        """After a came 7 twice and b once; of a, b and 7, b and a are in the log three times, 7 twice, d never."""
        bigram = opened(RetrievalModel(), artifacts["bigram"])
        [[items, scores], unknown, none] = ask(bigram, ["b", "a"], ["x"], None, k=9, keep_history=True)
        assert items == ["7", "b", "a", "d"]
        assert scores == pytest.approx([2 + 1 / 3, 1 + 2 / 3, 2 / 3, 0])
        assert unknown == none == [["a", "b", "7", "d"], pytest.approx([2 / 3, 2 / 3, 1 / 3, 0])]

    def test_no_rows_and_no_column(self, popularity, sasrec):
        for model in (popularity, sasrec):
            nothing = model.predict(None, pd.DataFrame({"history": []}))
            assert (nothing.columns.tolist(), len(nothing)) == (["items", "scores"], 0)
        with pytest.raises(UsageError, match="history: no such column; the request has histories"):
            popularity.predict(None, pd.DataFrame({"histories": [["a"]]}))

    def test_the_model_hears_the_latest_events_and_unknown_ones(self, sasrec, artifacts):
        model: Any = train.load(artifacts["sasrec"]).model
        batch = SequenceBatch.left_padded(torch.tensor([[0, 0, 3], [1, 2, 5], [3, 5, 4]]))
        with torch.no_grad():
            scores = model.user_vectors(batch, None, torch.Generator())[:, 0] @ model.item_table().T
        found = ask(sasrec, ["b"], ["never seen", "a", "d"], ["a", "b", "d", "7"], keep_history=True)
        for (items, given_scores), row in zip(found, scores.tolist(), strict=True):
            best = sorted(range(2, 6), key=lambda i: -row[i])
            assert items == [{2: "a", 3: "b", 4: "7", 5: "d"}[i] for i in best]
            assert given_scores == pytest.approx([row[i] for i in best], abs=1e-5)

    def test_what_the_model_no_longer_sees_is_still_removed(self, sasrec):
        # max_length is 3: a is out of the model's sight, not out of the history.
        assert ask(sasrec, ["a", "b", "d", "d", "b"])[0][0] == ["7"]

    def test_a_row_is_answered_alike_in_any_company(self, sasrec):
        alone = ask(sasrec, ["b"])[0]
        assert ask(sasrec, ["a", "b", "7", "d"], ["b"], None)[1] == [alone[0], pytest.approx(alone[1], abs=1e-5)]

    def test_asking_again(self, sasrec):
        assert ask(sasrec, ["b"], ["d", "a"]) == ask(sasrec, ["b"], ["d", "a"])


N, F = None, float("nan")
IN_BATCH = {"user": 0, "item": 1, "shop": 2}
"""Column of each categorical field in a batch."""


def batch_of(rows: list[dict[str, Any]]) -> RankingBatch:
    """Indices and values by field; a field that a row lacks is missing."""
    width = max(1, *(len(r.get("tags", ())) for r in rows))
    return RankingBatch(
        categorical_BF=torch.tensor([[r.get(f, 0) for f in IN_BATCH] for r in rows]),
        numeric_BG=torch.tensor([[r.get("price", 0.0)] for r in rows], dtype=torch.float32),
        multi=(torch.tensor([[*r.get("tags", ()), *[0] * (width - len(r.get("tags", ())))] for r in rows]),),
        missing_BN=torch.tensor([[f.name not in r for f in FIELDS] for r in rows]),
        label_B=torch.zeros(len(rows)),
    )


def probabilities(model: Any, rows: list[dict[str, Any]]) -> list[float]:
    with torch.no_grad():
        return torch.sigmoid(model.logits(batch_of(rows)).double()).tolist()


FULL = {"user": "ann", "item": "7", "price": 3.5, "tags": ["new", "5"], "shop": "x"}
FULL_INDICES = {"user": 2, "item": 4, "price": 3.5, "tags": [3, 4], "shop": 1}
ANYTHING = st.none() | st.text() | st.floats() | st.integers() | st.booleans() | st.lists(st.text() | st.none())


class TestRanking:
    def both(self, ranking, sent: list[dict[str, Any]], meant: list[dict[str, Any]]) -> None:
        """The rows sent are answered as the rows meant."""
        served, model = ranking
        frame = pd.DataFrame(sent, dtype=object)
        found = served.predict(None, frame)
        assert found.columns.tolist() == ["probability"]
        assert found["probability"].dtype == np.float64
        assert found["probability"].tolist() == pytest.approx(probabilities(model, meant), abs=1e-6)

    def test_known_and_unknown_values(self, ranking):
        strange = {"user": "bob", "item": "zzz", "price": -1e30, "tags": ["zzz", "red", "zzz"], "shop": "y"}
        meant = {"user": 1, "item": 1, "price": -1e30, "tags": [1, 2, 1], "shop": 1}
        self.both(ranking, [FULL, strange], [FULL_INDICES, meant])

    @pytest.mark.parametrize("field", [f.name for f in FIELDS])
    @pytest.mark.parametrize("null", [None, float("nan"), pd.NA, pd.NaT, np.float32("nan"), ""])
    def test_nulls_are_missing(self, ranking, field, null):
        meant = {k: v for k, v in FULL_INDICES.items() if k != field}
        self.both(ranking, [FULL, {**FULL, field: null}], [FULL_INDICES, meant])

    @pytest.mark.parametrize("field", [f.name for f in FIELDS])
    def test_a_missing_field_matters(self, ranking, field):
        _, model = ranking
        meant = {k: v for k, v in FULL_INDICES.items() if k != field}
        assert len(set(probabilities(model, [FULL_INDICES, meant]))) == 2

    @pytest.mark.parametrize("value", [float("inf"), "-inf", 1e300, "1e39", "nan", "cheap", [3.5], {"eur": 3}])
    def test_what_is_no_number_of_32_bits_is_missing(self, ranking, value):
        meant = {k: v for k, v in FULL_INDICES.items() if k != "price"}
        self.both(ranking, [{**FULL, "price": value}], [meant])

    @pytest.mark.parametrize("value", ["3.5", " 3.5 ", np.float32(3.5), np.float64(3.5)])
    def test_numbers_in_other_clothes(self, ranking, value):
        self.both(ranking, [{**FULL, "price": value}], [FULL_INDICES])
        self.both(ranking, [{**FULL, "price": np.int64(4)}], [{**FULL_INDICES, "price": 4.0}])

    @pytest.mark.parametrize("value", [7, 7.0, np.int32(7), np.float64(7.0), np.str_("7")])
    def test_ids_are_read_as_the_log_is(self, ranking, value):
        self.both(ranking, [{**FULL, "item": value}], [FULL_INDICES])

    @pytest.mark.parametrize(
        ("value", "indices"),
        [
            (np.array(["new", "5"]), [3, 4]),
            (np.array(["new", 5, None], dtype=object), [3, 4]),
            (("new", 5.0), [3, 4]),
            ("new", [3]),
            ([], []),
            ([None, F, ""], []),
            ([["new"]], N),
        ],
    )
    def test_multi_valued(self, ranking, value, indices):
        meant = {k: v for k, v in FULL_INDICES.items() if k != "tags" or indices is not None}
        if indices is not None:
            meant["tags"] = indices
        self.both(ranking, [{**FULL, "tags": value}], [meant])

    def test_absent_columns(self, ranking):
        self.both(ranking, [{"price": 3.5}, {"price": None}], [{"price": 3.5}, {}])
        served, model = ranking
        found = served.predict(None, pd.DataFrame(index=[8, 9]))
        assert found["probability"].tolist() == pytest.approx(probabilities(model, [{}, {}]), abs=1e-6)
        assert found.index.tolist() == [8, 9]

    def test_columns_of_others_and_another_order(self, ranking):
        self.both(ranking, [{"basket": 12, **dict(reversed(FULL.items()))}], [FULL_INDICES])

    def test_the_first_of_columns_with_one_name(self, ranking):
        served, model = ranking
        frame = pd.DataFrame([[3.5, 9.0]], columns=["price", "price"])
        found = served.predict(None, frame)["probability"].tolist()
        assert found == pytest.approx(probabilities(model, [{"price": 3.5}]), abs=1e-6)

    def test_no_rows(self, ranking):
        served, _ = ranking
        for frame in (pd.DataFrame(), pd.DataFrame(columns=list(FULL)), pd.DataFrame({"price": []})):
            found = served.predict(None, frame)
            assert (found.columns.tolist(), len(found), found["probability"].dtype) == (["probability"], 0, np.float64)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(FULL, ANYTHING)), max_size=4))
    def test_nothing_in_a_row_is_an_error(self, artifacts, rows):
        served = opened(RankingPyfunc(), artifacts["asymdiffrec"])
        found = served.predict(None, pd.DataFrame(rows, dtype=object))["probability"]
        assert len(found) == len(rows)
        assert found.between(0, 1).all()


def test_only_some_kinds_of_fields(tmp_path):
    for kept in ((2,), (3,), (0, 4)):
        fields = tuple(FIELDS[i] for i in kept)
        served = opened(RankingPyfunc(), save(tmp_path / str(kept), "dnn", fields=fields))
        found = served.predict(None, pd.DataFrame([FULL, {}], dtype=object))["probability"]
        assert found.between(0, 1).all()
        assert found[0] != found[1]


def test_a_history_is_of_items(tmp_path):
    """Its values stand in the vocabulary under the items, not under its own name."""
    fields = (FIELDS[1], FieldSpec("history", Kind.MULTI, 6))
    path = save(tmp_path / "m", "din", fields=fields)
    served, model = opened(RankingPyfunc(), path), train.load(path).model
    sent = [{"item": "7", "history": past} for past in (["a", "b"], ["b", "d"], ["zzz"], [], None)]
    batch = RankingBatch(
        categorical_BF=torch.full((5, 1), 4), numeric_BG=torch.zeros(5, 0),
        multi=(torch.tensor([[2, 3], [3, 5], [1, 0], [0, 0], [0, 0]]),),
        missing_BN=torch.tensor([[False, False]] * 4 + [[False, True]]), label_B=torch.zeros(5),
    )  # fmt: skip
    with torch.no_grad():
        meant = torch.sigmoid(model.logits(batch).double()).tolist()
    found = served.predict(None, pd.DataFrame(sent, dtype=object))["probability"].tolist()
    assert found == pytest.approx(meant, abs=1e-6)
    assert len({round(p, 6) for p in found}) == 5
    assert package(path).example["history"][0] == ["a"]

    own = save(tmp_path / "own", "dnn", fields=fields, vocabulary=vocabulary([*KEYS, ("history", 2, "long ago")]))
    served = opened(RankingPyfunc(), own)
    probability = served.predict(None, pd.DataFrame({"history": [["long ago"], ["a"], ["zzz"]]}))["probability"]
    assert probability[0] != probability[1] == probability[2], "a contract's own field of that name"


@pytest.fixture(scope="session")
def registered(register, store):
    """Name of the model -> models:/ address."""
    names = {"popularity": "floor.retrieval", "sasrec": "clean.retrieval", "asymdiffrec": "clean.ranking"}
    return {model: f"models:/{name}/{register(name, 'b1', model)[0]}" for model, name in names.items()}


@pytest.mark.parametrize("model", ["sasrec", "asymdiffrec"])
def test_a_clean_process_gives_the_same_answer(artifacts, store, registered, model, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    packed = package(artifacts[model])
    found = query_in_clean_process(store.uri, registered[model], packed.example)
    assert same_answer(packed.answer, found)
    if model == "asymdiffrec":
        known = {"user": 2, "item": 2, "price": 2.0, "tags": [2]}  # shop has no value to know
        unknown = {"user": 1, "item": 1, "price": 6.0, "tags": [1], "shop": 1}
        expected = probabilities(train.load(artifacts[model]).model, [known, unknown, {}])
        assert [row[0] for row in found["data"]] == pytest.approx(expected, abs=1e-6)


class TestThroughMLflow:
    """MLflow holds requests against the signature before the model sees them."""

    @pytest.fixture(scope="class")
    def popularity(self, registered):
        return mlflow.pyfunc.load_model(registered["popularity"])

    @pytest.fixture(scope="class")
    def ranking(self, registered, artifacts):
        return mlflow.pyfunc.load_model(registered["asymdiffrec"]), train.load(artifacts["asymdiffrec"]).model

    def test_popularity(self, popularity):
        histories = pd.DataFrame({"history": [["a"], None, [], ["never seen", "b"], np.array(["d", "7"])]})
        found = popularity.predict(histories)
        everything = ["a", "b", "7", "d"]
        assert found["items"].tolist() == [["b", "7", "d"], everything, everything, ["a", "7", "d"], ["a", "b"]]
        assert found["scores"].tolist()[0] == [4.0, 4.0, 1.0]

    def test_params(self, popularity):
        asked = pd.DataFrame({"history": [["b"]]})
        assert popularity.predict(asked, params={"k": 1})["items"].tolist() == [["a"]]
        assert popularity.predict(asked, params={"k": 2, "keep_history": True})["items"].tolist() == [["a", "b"]]
        with pytest.raises(MlflowException, match="k"):
            popularity.predict(asked, params={"k": "many"})

    @pytest.mark.parametrize("history", ["a", 7, [7, 8], [["a"]]])
    def test_no_list_of_ids(self, popularity, history):
        with pytest.raises(MlflowException):
            popularity.predict(pd.DataFrame({"history": [history]}))

    def test_another_column(self, popularity):
        with pytest.raises(UsageError, match="history: no such column"):
            popularity.predict(pd.DataFrame({"histories": [["a"]]}))

    def test_ranking_rows(self, ranking):
        served, model = ranking
        frame = pd.DataFrame([FULL, {"user": "bob", "tags": None, "price": F}, {"price": 3.5}])
        frame = frame.astype(object).where(frame.notna(), None)
        meant = [FULL_INDICES, {"user": 1}, {"price": 3.5}]
        assert served.predict(frame)["probability"].tolist() == pytest.approx(probabilities(model, meant), abs=1e-6)
        strings = served.predict(pd.DataFrame({"price": ["3.5", "7.25"]}))["probability"].tolist()
        assert strings == pytest.approx(probabilities(model, [{"price": 3.5}, {"price": 7.25}]), abs=1e-6)
        null = served.predict(pd.DataFrame({"price": [None]}))["probability"].tolist()
        assert null == pytest.approx(probabilities(model, [{}]), abs=1e-6)

    @pytest.mark.parametrize(
        ("columns", "meant"),
        [
            ({f: [None] for f in FULL}, [{}]),
            ({f: [F] for f in FULL}, [{}]),
            ({"user": [F, F], "price": [3.5, F]}, [{"price": 3.5}, {}]),
            ({"tags": [["new"], F]}, [{"tags": [3]}, {}]),
            ({"tags": [["new", None], [None], []]}, [{"tags": [3]}, {"tags": []}, {"tags": []}]),
            ({"price": [7, 2]}, [{"price": 7.0}, {"price": 2.0}]),
            ({"price": ["cheap"]}, [{}]),
            ({"item": [7, None]}, [{"item": 4}, {}]),
            ({"item": [7]}, [{"item": 4}]),
            ({"item": [True]}, [{"item": 1}]),
            ({"item": pd.Categorical(["7", "zzz", None])}, [{"item": 4}, {"item": 1}, {}]),
            ({"tags": ["new"]}, [{"tags": [3]}]),
        ],
    )
    def test_columns_of_any_type_and_nulls_anywhere(self, ranking, columns, meant):
        served, model = ranking
        found = served.predict(pd.DataFrame(columns))["probability"].tolist()
        assert found == pytest.approx(probabilities(model, meant), abs=1e-6)

    def test_a_frame_without_a_column_of_the_model_has_no_rows(self, ranking):
        assert ranking[0].predict(pd.DataFrame({"basket": [1, 2]})).empty
