"""What few reverse steps keep of all of them: ADRec on MovieLens 100K as shipped, and with noise that counts.

Per setting (`fixed` is the default, `learned` starts its noise scale at 0.1, `relative` has one of 0.1 of the
encoding's length): the ratio of test NDCG@20, all items and history removed, at 4 steps to that at 32, of means over
five noise seeds on one trained model, and the same of one pass without noise. `--workspaces DIR` keeps the models.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from evaluate.retrieval import CANDIDATE_SETS
from pipelines.progress import Progress
from pipelines.published_split import PublishedSplit, read
from pipelines.replicate import on_split, settings_of
from tests.benchmarks.harness import report
from tests.conftest import REAL_DATA

SETTINGS = {
    "fixed": [],
    "learned": ["config.noise_scaling=learned", "config.noise_scale=0.1"],
    "relative": ["config.noise_scaling=normalised", "config.noise_scale=0.1"],
}
NOISE_SEEDS = range(5)
FEW = (4, 0)


def ndcg(split: PublishedSplit, workspace: Path, overrides: list[str], steps: int) -> list[float]:
    """Mean over the noise seeds, by candidate set; trains what the workspace has not."""
    found: list[list[float]] = []
    for seed in NOISE_SEEDS:
        asked = [*overrides, f"evaluation.seed={seed}", f"evaluation.steps={steps}"]
        done = on_split("adrec", split, settings_of("adrec", asked), workspace, Progress(2))
        found.append([done.metrics[f"{name}/ndcg_at_20"] for name in CANDIDATE_SETS])
    return [statistics.mean(values) for values in zip(*found, strict=True)]


def main() -> None:
    """One line of figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspaces", type=Path)
    parser.add_argument("--json", action="store_true")
    kept: Path | None = parser.parse_args().workspaces
    figures, split = {}, read(REAL_DATA / "adrec-ml-100k")
    with tempfile.TemporaryDirectory() as scratch:
        for name, overrides in SETTINGS.items():
            workspace = (kept or Path(scratch)) / name
            whole = ndcg(split, workspace, overrides, 32)
            for steps in FEW:
                few = ndcg(split, workspace, overrides, steps)
                for candidates, part, all_steps in zip(CANDIDATE_SETS, few, whole, strict=True):
                    figures[f"{name}_{steps}_over_32_{candidates}"] = part / all_steps
    report("adrec_steps", figures)


if __name__ == "__main__":
    main()
