"""What several test files of training share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of a file lie."""
    return tmp_path_factory.mktemp("runs")
