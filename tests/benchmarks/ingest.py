"""Raw JSON lines to committed events, beside a bare pass of Python's json over the same bytes on one core."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from featurize.contract import Contract
from featurize.ingest import ingest
from featurize.simulate import simulate
from featurize.sources import list_files
from infra.config import load
from infra.lake import Lake
from infra.spark import SparkSettings, session
from tests.benchmarks.harness import report

CONTRACT = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts" / "simulator.yaml"


def main() -> None:
    """Figures: rows_per_second (Spark warm), ratio_to_json (wall times, ours over json.loads of every line)."""
    with tempfile.TemporaryDirectory() as folder, session(SparkSettings(), "benchmark") as spark:
        root = Path(folder) / "raw"
        truth = simulate(root, users=8000, items=2000, days=5, seed=1)
        contract = load(CONTRACT, Contract)
        files = list_files(root, contract.source)
        for attempt in ("warm", "measured"):
            started = time.perf_counter()
            ingest(spark, Lake(Path(folder) / attempt), contract, root, files, None, {})
            ours = time.perf_counter() - started
        bare = _bare_pass([root / f.path for f in files])
    report("ingest", {"rows_per_second": truth["rows"] / ours, "ratio_to_json": ours / bare})


def _bare_pass(paths: list[Path]) -> float:
    import gzip

    started = time.perf_counter()
    for path in paths:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                try:
                    json.loads(line)
                except ValueError:
                    continue
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
