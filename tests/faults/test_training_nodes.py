"""Two nodes, one lost mid-epoch and later replaced: the run goes on with what there is, every sequence used once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.nodes import EPOCHS
from tests.faults.test_training_faults import steps_made, used
from tests.pipelines.commands import ROOT
from tests.train.tables import write_sequences
from tests.train.test_loop import CHUNKS, TARGETS

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("kind", ["kill", "drain"])
def test_a_node_is_lost(tmp_path: Path, kind: str) -> None:
    write_sequences(tmp_path, CHUNKS, TARGETS)
    command = [sys.executable, "-m", "tests.faults.nodes", str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    changes = [after for before, after in pairwise([0, *told["workers"]]) if before != after]
    assert changes == [2, 1, 2], told["workers"]
    assert told["metrics"]["epochs"] == EPOCHS
    first, *later = starts(tmp_path / "runs" / "nodes")
    assert first == (0, 0)
    assert min(later) > (0, 0), "nothing was kept of what was done before the node went"
    whole = Counter(str((items[:-1], items[1:])) for items in (chunk[-5:] for chunk in CHUNKS))
    assert [Counter(rows) for rows in used(tmp_path / "runs" / "nodes").values()] == [whole] * EPOCHS


def starts(run: Path) -> list[tuple[int, int]]:
    """Where each attempt of the run began: (epoch, step)."""
    first: dict[int, tuple[int, int]] = {}
    for r in steps_made(run):
        place = (r["epoch"], r["position"])
        first[r["attempt"]] = min(first.get(r["attempt"], place), place)
    return [first[attempt] for attempt in sorted(first)]
