"""Memory maps: made once, shared, and gone when nobody uses them."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from infra.errors import EnvironmentProblem
from train.maps import mapped, prune


def rows():
    return {"values": np.arange(5, dtype=np.int32), "empty": np.zeros((0, 3))}


def test_made_once_and_shared(tmp_path):
    made = []

    def make():
        made.append(1)
        return rows()

    with mapped(tmp_path, "a", make) as first, mapped(tmp_path, "a", make) as second:
        assert first["values"].tolist() == second["values"].tolist() == [0, 1, 2, 3, 4]
        assert isinstance(first["values"].base, np.memmap)
        assert first["empty"].shape == (0, 3)
        assert not first["values"].flags.writeable
    assert made == [1]
    assert not (tmp_path / "a").exists()


def test_many_at_once_make_one(tmp_path):
    made, seen, both = [], [], threading.Barrier(8)

    def make():
        made.append(1)
        return rows()

    def use():
        with mapped(tmp_path, "a", make) as arrays:
            both.wait(timeout=30)
            seen.append(arrays["values"].sum())
            both.wait(timeout=30)

    threads = [threading.Thread(target=use) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (made, seen) == ([1], [10] * 8)


def test_what_a_killed_process_held_or_half_made_is_replaced_or_removed(tmp_path):
    code = (
        "import os, numpy as np\nfrom pathlib import Path\nfrom train.maps import mapped\n"
        f"with mapped(Path({str(tmp_path)!r}), 'held', lambda: {{'x': np.ones(3)}}): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "held").is_dir()
    half = tmp_path / "b.half"
    half.mkdir()
    (half / "values.npy").write_bytes(b"cut")
    with mapped(tmp_path, "b", rows) as arrays:
        assert arrays["values"].sum() == 10
        prune(tmp_path)
        assert arrays["values"].sum() == 10  # held by us
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_killed_within_the_removal_leaves_no_map(tmp_path):
    """Else the next run would be given what is left of it."""
    code = (
        "import os, shutil, numpy as np\nfrom pathlib import Path\nfrom train import maps\n"
        "real = shutil.rmtree\n"
        "def rmtree(path, **how):\n"
        "    if path.exists(): (path / 'y.npy').unlink(); os._exit(9)\n"
        "shutil.rmtree = rmtree\n"
        f"with maps.mapped(Path({str(tmp_path)!r}), 'a', lambda: {{'x': np.ones(3), 'y': np.ones(4)}}): pass"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["a.half"]
    with mapped(tmp_path, "a", rows) as arrays:
        assert sorted(arrays) == ["empty", "values"]


def test_no_room_left_keeps_none(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(EnvironmentProblem, match="No space left"), mapped(tmp_path, "a", rows):
            pytest.fail("was opened")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_an_error_while_making_leaves_nothing_and_is_told(tmp_path):
    def broken():
        raise KeyError("field")

    with pytest.raises(KeyError, match="field"), mapped(tmp_path, "a", broken):
        pytest.fail("was opened")
    with mapped(tmp_path, "a", rows) as arrays:
        assert arrays["values"].sum() == 10


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"training\.cache"), mapped(tmp_path / "file" / "cache", "a", rows):
        pytest.fail("was opened")
