"""One registration at a time of a registered name, whoever and wherever the processes are.

MLflow numbers versions by reading the largest and adding one, and knows of no unique tag: two processes that register
the same build make two versions, and many at once fail after three attempts. The one thing that a store refuses to make
twice is a registered name. So whoever made the name `NAME.registering` may add a version to NAME, and deletes it again.

A holder that was killed is seen by the others: its token has not changed for `LEASE` seconds of their own clock. One of
them moves the dead claim to a name made of its token, which only one can, and a claim made meanwhile has another token.
A holder that was stopped for longer than that (and not killed) may add a version beside the next one; it cannot be told
from a dead one.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from infra.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUFFIX = ".registering"
TOKEN_TAG = "logs2rec.claim"
LEASE = 120.0
"""Seconds without a sign after which a holder is taken for dead: longer than all patience with a slow server."""
PATIENCE = 600.0
"""Seconds that a process waits for its turn."""


@contextmanager
def claim(client: MlflowClient, name: str, lease: float = LEASE, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the claim on `name`. Raises EnvironmentProblem when others hold it for longer than `patience`."""
    lock, token = name + SUFFIX, uuid.uuid4().hex
    _take(client, lock, token, lease, patience)
    try:
        yield
    finally:
        if _holder(client, lock) == token:
            _done(["RESOURCE_DOES_NOT_EXIST"], client.delete_registered_model, lock)


def _take(client: MlflowClient, lock: str, token: str, lease: float, patience: float) -> None:
    began = seen_at = time.monotonic()
    seen: str | None = None
    while not _made(client, lock, token):
        holder, now = _holder(client, lock), time.monotonic()
        if holder == token:  # made after all: the answer was lost, and MLflow asked again
            return
        if holder != seen:
            seen, seen_at = holder, now
        elif holder is not None and now - seen_at > lease:
            _put_aside(client, lock, holder)
            continue
        if now - began > patience:
            raise EnvironmentProblem(
                f"{lock}: other registrations have held this name for {patience:.0f} s; when none is going on, delete "
                "the registered model of that name and try again"
            )
        time.sleep(random.uniform(0.05, 0.3))


def _made(client: MlflowClient, lock: str, token: str) -> bool:
    # A name that is taken is looked up by the store, which finds nothing where its holder has just deleted it.
    refusals = ["RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"]
    return _done(refusals, client.create_registered_model, lock, {TOKEN_TAG: token})


def _put_aside(client: MlflowClient, lock: str, holder: str) -> None:
    """The first of those that try succeeds; for the others the claim has gone, or the other name is taken."""
    aside = f"{lock}.{holder}"
    if _done(["RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"], client.rename_registered_model, lock, aside):
        _done(["RESOURCE_DOES_NOT_EXIST"], client.delete_registered_model, aside)


def _holder(client: MlflowClient, lock: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock).tags.get(TOKEN_TAG, "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _done(refusals: Sequence[str], call: Callable[..., Any], *arguments: Any) -> bool:
    """Whether the call went through; False when the store refused it for one of these reasons."""
    from mlflow.exceptions import MlflowException

    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code not in refusals:
            raise
        return False
    return True
