"""What MLflow is given with an artifact: the code that serves it, a signature, an example and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from infra.mlflow_store import quiet
from infra.tables import FIRST_INDEX, Kind
from train.artifact import ITEM_FIELD, Loaded, load, vocabulary_of

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Package:
    """`answer` is what the artifact on this machine says to `questions`; the registered copy must say the same."""

    code: Path
    signature: ModelSignature
    example: pd.DataFrame
    questions: pd.DataFrame
    """The example, and what the caller asks besides."""
    answer: dict[str, Any]


def package(artifact: Path, questions: pd.DataFrame | None = None) -> Package:
    """The package of a retrieval or ranking artifact, by its kind; ArtifactError when it cannot be served."""
    quiet()
    loaded = load(artifact)
    context = SimpleNamespace(artifacts={"model": str(artifact)})
    if loaded.kind == "sequence":
        from evaluate.publish import retrieval_pyfunc

        model: Any = retrieval_pyfunc.RetrievalModel()
        code, signature, example = "retrieval_pyfunc.py", retrieval_pyfunc.signature(), _histories(loaded)
    else:
        from evaluate.publish import ranking_pyfunc

        model = ranking_pyfunc.RankingPyfunc()
        code, signature, example = "ranking_pyfunc.py", ranking_pyfunc.signature(loaded.fields), _impressions(loaded)
    model.load_context(context)
    asked = example if questions is None else pd.concat([example.astype(object), questions], ignore_index=True)
    answer = model.predict(context, asked, None)
    return Package(_HERE / code, signature, example, asked, answer.to_dict(orient="split"))


def same_answer(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal columns and items, numbers equal to 1e-5."""
    return list(left["columns"]) == list(right["columns"]) and _close(left["data"], right["data"])


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(_close(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float | int):
        return abs(left - right) <= 1e-5 * max(1.0, abs(left))
    return bool(left == right)


def _keys(loaded: Loaded, field: str) -> list[str]:
    rows = loaded.vocabulary.to_pylist() if loaded.vocabulary is not None else []
    return [r["key"] for r in rows if r["field"] == field and r["index"] >= FIRST_INDEX]


def _histories(loaded: Loaded) -> pd.DataFrame:
    """A history of known items, one with an unknown item, and an empty one."""
    keys = _keys(loaded, ITEM_FIELD)
    return pd.DataFrame({"history": [keys[:3], [*keys[1:2], "never seen before"], []]})


def _impressions(loaded: Loaded) -> pd.DataFrame:
    """A row of known values, one of unknown ones, and one with every field missing."""
    columns: dict[str, list[Any]] = {}
    names = set(loaded.vocabulary["field"].to_pylist()) if loaded.vocabulary is not None else set()
    for field in loaded.fields:
        if field.kind is Kind.NUMERIC:
            columns[field.name] = [field.mean, field.mean + field.std, None]
            continue
        known, unknown = _keys(loaded, vocabulary_of(field.name, names))[:1], ["never seen before"]
        if field.kind is Kind.MULTI:
            columns[field.name] = [known, unknown, None]
        else:
            columns[field.name] = [known[0] if known else None, unknown[0], None]
    return pd.DataFrame(columns)
