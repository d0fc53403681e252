"""Runs a logs2rec command and kills it with SIGKILL at a named point: `python -m tests.faults.killed POINT ...`.

The points cannot be reached from outside with any precision, so they are wrapped here, in the test's own
process; the code under test knows nothing of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import infra.commit
import infra.ledger


def die(*_: Any, **__: Any) -> None:
    """What a power cut or the kernel's memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def between_files_and_commit(table: str) -> None:
    """All files of `table` are written, its transaction is not."""
    real = infra.commit._transact

    def transact(lake: Any, delta: Any, declared: Any, *rest: Any) -> None:
        if declared.name == table:
            die()
        real(lake, delta, declared, *rest)

    infra.commit._transact = transact  # type: ignore[assignment]


def between_commit_and_answer(table: str) -> None:
    """The log entry of `table` is written, the call has not returned."""
    real = infra.commit._transact

    def transact(lake: Any, delta: Any, declared: Any, *rest: Any) -> None:
        real(lake, delta, declared, *rest)
        if declared.name == table:
            die()

    infra.commit._transact = transact  # type: ignore[assignment]


def between_commits_and_ledger(_: str) -> None:
    """Every table of the stage is committed, its row in `runs` is not."""
    infra.ledger.Ledger.publish = infra.ledger.Ledger.replace = die  # type: ignore[method-assign, assignment]


POINTS = {f.__name__: f for f in (between_files_and_commit, between_commit_and_answer, between_commits_and_ledger)}

if __name__ == "__main__":
    point, table, *command = sys.argv[1:]
    POINTS[point](table)
    from pipelines.cli import main

    main(command)
