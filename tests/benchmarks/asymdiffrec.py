"""What AsymDiffRec costs beside the base that it wraps: a training step, and scoring.

`step_ratio`: forward, backward and the optimizer's step on 512 samples, over the same of the base alone (two encoder
passes instead of one). `score_ratio`: logits of 8,192 samples, over the base's. Of a small DNN, and of one in which g
costs less than a tenth of h (`score_ratio_large`). Medians of runs in turns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from infra.tables import Kind
from tests.benchmarks.harness import in_turns, report
from train.models import build_ranking
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import AsymDiffRecConfig, DNNConfig

FIELDS = 12
VALUES = 1_000
TRAINED, SCORED = 512, 8_192
STEPS, REPETITIONS = 20, 9
SMALL = DNNConfig()
LARGE = DNNConfig(hidden=(1024, 512, 64))


def fields() -> tuple[FieldSpec, ...]:
    """Ten categorical fields, a number, and one of several values."""
    categorical = [FieldSpec(f"c{i}", Kind.CATEGORICAL, VALUES) for i in range(FIELDS - 2)]
    return (*categorical, FieldSpec("n", Kind.NUMERIC), FieldSpec("m", Kind.MULTI, VALUES))


def batch(rows: int) -> RankingBatch:
    """Random samples, a tenth of their cells missing."""
    return RankingBatch(
        categorical_BF=torch.randint(2, VALUES, (rows, FIELDS - 2)), numeric_BG=torch.randn(rows, 1),
        multi=(torch.randint(0, VALUES, (rows, 5)),), missing_BN=torch.rand(rows, FIELDS) < 0.1,
        label_B=(torch.rand(rows) < 0.3).float(),
    )  # fmt: skip


def steps(config: DNNConfig | AsymDiffRecConfig, rows: RankingBatch) -> Callable[[], None]:
    """Training steps of a model of its own."""
    model = build_ranking(config, fields())
    assert isinstance(model, torch.nn.Module)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model.loss(rows, generator).total.backward()
            optimizer.step()

    return run


def scores(config: DNNConfig | AsymDiffRecConfig, rows: RankingBatch) -> Callable[[], None]:
    """Logits, without a gradient."""
    model = build_ranking(config, fields())
    assert isinstance(model, torch.nn.Module)
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model.logits(rows)

    return run


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    trained, scored = batch(TRAINED), batch(SCORED)
    found = in_turns(
        {
            "step": steps(AsymDiffRecConfig(base=SMALL), trained), "base step": steps(SMALL, trained),
            "score": scores(AsymDiffRecConfig(base=SMALL), scored), "base score": scores(SMALL, scored),
            "large": scores(AsymDiffRecConfig(base=LARGE), scored), "base large": scores(LARGE, scored),
        },
        REPETITIONS,
    )  # fmt: skip
    figures = {
        "step_ratio": found["step"] / found["base step"],
        "score_ratio": found["score"] / found["base score"],
        "score_ratio_large": found["large"] / found["base large"],
        "samples_per_second": STEPS * TRAINED / found["step"],
        "scored_per_second": SCORED / found["score"],
    }
    report("asymdiffrec", figures)


if __name__ == "__main__":
    main()
