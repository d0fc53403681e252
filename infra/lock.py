"""One working command per workspace: a second one is told who works there, and stops before it does any work.

The lock is the operating system's (flock), so it ends with its process however that ends. Reading needs none.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from infra.errors import UsageError, WorkspaceBusy


class WorkspaceLock:
    """Taken once with `hold`, given back with `release` or the end of the process."""

    def __init__(self, workspace: Path) -> None:
        self.path = workspace / "lock"
        self._handle: int | None = None

    def hold(self, owner: str) -> bool:
        """Take the lock; False if this object had it already. WorkspaceBusy names the owner of a taken one."""
        if self._handle is not None:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"{self.path.parent}: cannot be a workspace ({error.strerror}); choose another") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.read(handle, 200).decode("utf-8", "replace").strip() or "another command"
            os.close(handle)
            raise WorkspaceBusy(f"{self.path.parent}: {other} is at work there; wait until it has ended") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{owner}, process {os.getpid()}".encode(), 0)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock back, if held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
