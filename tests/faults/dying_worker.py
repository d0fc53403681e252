"""A daemon of Spark's Python workers, one of which is killed in the middle of writing a file.

Spark starts it in place of its own (`spark.python.daemon.module`). The worker that writes the first file of the
table named by FAULT_TABLE leaves half of the bytes and is gone, as after SIGKILL by the kernel; FAULT_MARKER is the
file that says it has happened, so that the retried task lives.
"""

from __future__ import annotations

import io
import os
import signal
from typing import Any

import pyarrow.parquet as pq
from pyspark import daemon

_write_table = pq.write_table


def write_or_die(rows: Any, sink: Any, **options: Any) -> None:
    """Once: half of the file, then SIGKILL."""
    if f"/{os.environ['FAULT_TABLE']}/" in str(getattr(sink, "name", "")) and _first():
        whole = io.BytesIO()
        _write_table(rows, whole, **options)
        sink.write(whole.getvalue()[: whole.tell() // 2])
        sink.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    _write_table(rows, sink, **options)


def _first() -> bool:
    """True for one process only."""
    try:
        os.close(os.open(os.environ["FAULT_MARKER"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    pq.write_table = write_or_die
    daemon.manager()
