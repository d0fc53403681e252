"""A daemon of Spark's Python workers, one of which is killed in the middle of writing a file.

Spark starts it in place of its own (`spark.python.daemon.module`). The worker that writes file number FAULT_FILE of
the table FAULT_TABLE leaves FAULT_SHARE of the bytes and is gone, as after SIGKILL by the kernel. The files that were
begun are counted by files of their own, FAULT_MARKER and the number, so that the retried task lives.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
from typing import Any

import pyarrow.parquet as pq
from pyspark import daemon

_write_table = pq.write_table


def write_or_die(rows: Any, sink: Any, **options: Any) -> None:
    """Once: a part of the file, then SIGKILL."""
    if f"/{os.environ['FAULT_TABLE']}/" in str(getattr(sink, "name", "")) and _number() == int(
        os.environ["FAULT_FILE"]
    ):
        whole = io.BytesIO()
        _write_table(rows, whole, **options)
        sink.write(whole.getvalue()[: int(whole.tell() * float(os.environ["FAULT_SHARE"]))])
        sink.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    _write_table(rows, sink, **options)


def _number() -> int:
    """How many files were begun before, by whichever process."""
    for number in itertools.count():
        try:
            os.close(os.open(f"{os.environ['FAULT_MARKER']}{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return number
    raise AssertionError("unreachable")


if __name__ == "__main__":
    pq.write_table = write_or_die
    daemon.manager()
