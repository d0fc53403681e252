"""Event ids at chosen places, from files of several row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.history_tasks import _ids


@pytest.mark.parametrize("seed", range(20))
def test_ids_at_places(tmp_path: Path, seed: int) -> None:
    """Those of the rows that each file's mask chose, counted end to end; in the order asked for, not the file's."""
    rng = np.random.default_rng(seed)
    sources, whole = [], []
    for n in range(3):
        ids = [f"{n}-{k}-ü" for k in range(rng.integers(0, 40))]
        path = str(tmp_path / f"{n}.parquet")
        pq.write_table(pa.table({"event_id": pa.array(ids, pa.string())}), path, row_group_size=7)
        mask = rng.random(len(ids)) < 0.5 if rng.random() < 0.5 else None
        kept = ids if mask is None else [i for i, k in zip(ids, mask, strict=True) if k]
        sources.append((path, None if mask is None else pa.array(mask, pa.bool_()), len(kept)))
        whole += kept
    places = rng.permutation(len(whole))[: rng.integers(1, len(whole) + 1)]
    assert _ids(sources, places).to_pylist() == [whole[p] for p in places]
