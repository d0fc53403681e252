"""What of the ledger becomes plots of the daily report."""

from types import SimpleNamespace
from typing import Any

from pipelines.daily_report import health_trends

FIGURES = ("embedding_variance", "embedding_mean_cosine", "embedding_isotropy", "embedding_kl_gaussian")


def trends(report: dict[str, Any]) -> list[Any]:
    """Of a role with a baseline that learns no table, and a candidate with this report."""
    steps = [
        SimpleNamespace(unit="train:retrieval:popularity", report={"best_epoch": 0}),
        SimpleNamespace(unit="train:retrieval:sasrec", report=report),
    ]
    role = SimpleNamespace(
        name="retrieval", models=[SimpleNamespace(label="popularity"), SimpleNamespace(label="sasrec")]
    )
    model = {"name": "small.retrieval", "role": "retrieval"}
    return health_trends(SimpleNamespace(steps=steps), model, role)


def test_a_model_with_a_history_has_a_plot():
    past = [
        {"epoch": epoch, "valid_ndcg_20": epoch / 10, **{name: i + epoch / 4 for i, name in enumerate(FIGURES)}}
        for epoch in (2, 4, 5)
    ]
    (trend,) = trends({"best_epoch": 4, "validations": past})
    assert trend.title == "Embedding health: small.retrieval, sasrec"
    assert (trend.epochs, trend.marked) == ([2, 4, 5], 4)
    assert trend.lines == [
        ("variance", [0.5, 1.0, 1.25]),
        ("mean cosine", [1.5, 2.0, 2.25]),
        ("isotropy", [2.5, 3.0, 3.25]),
        ("KL to a round Gaussian, nats", [3.5, 4.0, 4.25]),
        ("NDCG@20, validation", [0.2, 0.4, 0.5]),
    ]
    assert "collapse" in trend.explanation


def test_a_model_of_an_older_program_has_none():
    assert trends({"best_epoch": 4}) == []
