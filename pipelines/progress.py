"""What a command shows while it works: a bar on a terminal, plain lines elsewhere; always on stderr.

stdout belongs to the result.
"""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar over the units of a run; `total` is how many there will be at most."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.current = ""
        self.console = Console(stderr=True, highlight=False)
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        if sys.stderr.isatty():
            columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
            self.bar = Bar(*columns, TextColumn("{task.description}"), console=self.console, transient=True)
            self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start(self, unit: str) -> None:
        """A unit's work begins."""
        self.current = unit
        self.note(unit)

    def note(self, text: str) -> None:
        """Show what is going on right now (terminal only)."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=text)

    def finish(self, unit: str, status: str, seconds: float) -> None:
        """A unit is published, or was before."""
        self.finished += 1
        words = f"published in {seconds:.1f} s" if status == "published" else "already published, nothing to do"
        self.console.print(f"[{self.finished}] {unit}: {words}", markup=False)
        if self.bar is not None and self.task is not None:
            self.total = max(self.total, self.finished)
            self.bar.update(self.task, completed=self.finished, total=self.total)
