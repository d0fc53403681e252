"""The claim on a registered name: one holder at a time, dead ones are put aside, live ones are not."""

from __future__ import annotations

import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from evaluate.publish.claim import SUFFIX, TOKEN_TAG, claim
from infra.errors import EnvironmentProblem


@pytest.fixture
def client(store) -> MlflowClient:
    return store.client


def claims(client: MlflowClient, name: str) -> list[str]:
    return [m.name for m in client.search_registered_models() if m.name.startswith(name + SUFFIX)]


def test_one_at_a_time(client):
    inside, most, turns = [0], [0], [0]

    def go() -> None:
        for _ in range(3):
            with claim(client, "turns"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.02)
                inside[0] -= 1
                turns[0] += 1

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (turns[0], most[0]) == (12, 1)
    assert claims(client, "turns") == []


def test_a_name_that_goes_while_the_store_looks_it_up(client, monkeypatch):
    """MLflow finds the name taken, looks for whose it is, and its holder has deleted it: the next attempt gets it."""
    made, attempts = client.create_registered_model, []

    def gone(*args: object) -> object:
        attempts.append(args)
        if len(attempts) == 1:
            raise MlflowException("not found", RESOURCE_DOES_NOT_EXIST)
        return made(*args)

    monkeypatch.setattr(client, "create_registered_model", gone)
    with claim(client, "gone", patience=10):
        assert claims(client, "gone") == ["gone" + SUFFIX]
    assert len(attempts) == 2


def test_it_is_given_back_after_an_error(client):
    with pytest.raises(KeyError), claim(client, "raises"):
        raise KeyError
    assert claims(client, "raises") == []


def test_names_do_not_wait_for_each_other(client):
    with claim(client, "one"), claim(client, "two", patience=0.0):
        assert claims(client, "one") + claims(client, "two") == ["one" + SUFFIX, "two" + SUFFIX]


def test_a_dead_holder_is_put_aside(client):
    client.create_registered_model("dead" + SUFFIX, {TOKEN_TAG: "of a process that was killed"})
    began = time.monotonic()
    with claim(client, "dead", lease=0.5, patience=30):
        assert time.monotonic() - began >= 0.5
        assert claims(client, "dead") == ["dead" + SUFFIX]
    assert claims(client, "dead") == []


def test_a_live_holder_is_waited_for_and_then_named(client):
    with claim(client, "live"):
        with pytest.raises(EnvironmentProblem, match=r"live\.registering: .* delete the registered model"):
            with claim(client, "live", patience=0.3):
                pass
        assert claims(client, "live") == ["live" + SUFFIX]


def test_who_was_put_aside_takes_nothing_from_the_next_holder(client):
    with claim(client, "slow"):
        client.rename_registered_model("slow" + SUFFIX, "slow" + SUFFIX + ".aside")
        client.create_registered_model("slow" + SUFFIX, {TOKEN_TAG: "the next"})
    assert client.get_registered_model("slow" + SUFFIX).tags[TOKEN_TAG] == "the next"


def test_an_answer_that_was_lost(client, monkeypatch):
    """The name is made, the answer lost, MLflow asks again and is told that it exists: it is the asker's."""
    made = client.create_registered_model

    def twice(*args: object) -> object:
        made(*args)
        return made(*args)

    monkeypatch.setattr(client, "create_registered_model", twice)
    with claim(client, "lost", patience=0.0):
        pass
    assert claims(client, "lost") == []
