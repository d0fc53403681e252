"""Memory maps of a split: made once per node from the pinned version, shared by the ranks there.

One folder per split under a cache on the node's own disk. Whoever comes first makes it, under a lock; it is renamed
into place when complete and out of it before it is removed, so half a map does not exist. Users hold a shared lock; a
folder that nobody holds, whole or half, is removed when a run ends, however its own users ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from infra.errors import EnvironmentProblem

Arrays = Mapping[str, NDArray[Any]]
_LOCK, _MAKING, _HALF = ".lock", ".making", ".half"


def default_cache() -> Path:
    """A folder of this user's in the system's temporary directory."""
    return Path(tempfile.gettempdir()) / f"logs2rec-maps-{os.getuid()}"


@contextmanager
def mapped(cache: Path, name: str, make: Callable[[], Arrays]) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of `name`, memory-mapped read-only; made by `make` if they are not there.

    Raises EnvironmentProblem when the cache cannot be written.
    """
    with ExitStack() as stack:
        stack.callback(prune, cache)
        with _writable(cache):
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(cache / f"{name}{_LOCK}", fcntl.LOCK_SH))
        if not (cache / name).is_dir():
            # Two locks: whoever waits to make it must not wait for those who use it already.
            with _locked(cache / f"{name}{_MAKING}", fcntl.LOCK_EX):
                if not (cache / name).is_dir():
                    arrays = make()
                    with _writable(cache):
                        _write(cache / name, arrays)
        # Plain arrays over the maps: numpy's own class for them costs as much per batch as the gather itself.
        yield {path.stem: np.asarray(open_memmap(path, mode="r")) for path in (cache / name).glob("*.npy")}


def boot() -> str:
    """A name of the time since the machine was started, where the system has one. Maps are written without waiting for
    the disk: after a power cut one may hold zeros."""
    known = Path("/proc/sys/kernel/random/boot_id")
    return known.read_text().strip() if known.exists() else "boot"


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"{cache}: the memory maps of the training data cannot be written ({error.strerror}); "
            "set training.cache to a folder with room on every node, or training.loader to streaming"
        ) from error


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def prune(cache: Path) -> None:
    """Remove every map that no process holds, and what is left of one that was being made or removed."""
    for lock in cache.glob(f"*{_LOCK}"):
        with contextlib.suppress(OSError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            folder = cache / lock.name.removesuffix(_LOCK)
            half = _cleared(folder)
            if folder.is_dir():
                folder.rename(half)  # a process killed within the removal leaves a half, not a map
                shutil.rmtree(half, ignore_errors=True)


def _cleared(folder: Path) -> Path:
    """Where the map's half stands, and now nothing."""
    half = folder.with_name(f"{folder.name}{_HALF}")
    shutil.rmtree(half, ignore_errors=True)
    return half


def _write(folder: Path, arrays: Arrays) -> None:
    half = _cleared(folder)
    half.mkdir()
    for name, array in arrays.items():
        np.save(half / f"{name}.npy", array, allow_pickle=False)
    half.rename(folder)
