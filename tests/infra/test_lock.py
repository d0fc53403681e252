"""The workspace lock, across real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.lock import WorkspaceLock

_HOLD = """
import sys, time
from pathlib import Path
from infra.lock import WorkspaceLock
WorkspaceLock(Path(sys.argv[1])).hold("run abc")
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_is_told_who_is_at_work_until_that_process_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"run abc, process {holder.pid} is at work"):
            WorkspaceLock(tmp_path).hold("run def")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert WorkspaceLock(tmp_path).hold("run def")


def test_held_once_and_given_back(tmp_path: Path) -> None:
    first, second = WorkspaceLock(tmp_path), WorkspaceLock(tmp_path)
    assert first.hold("a")
    assert not first.hold("a")
    with pytest.raises(UsageError):
        second.hold("b")
    first.release()
    assert second.hold("b")
