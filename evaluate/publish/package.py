"""What MLflow is given with an artifact: the code that serves it, a signature, an example and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from infra.tables import FIRST_INDEX, Kind
from train.artifact import ITEM_FIELD, Loaded, load

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Package:
    """`answer` is what the artifact on this machine says to `example`; the registered copy must say the same."""

    code: Path
    signature: ModelSignature
    example: pd.DataFrame
    answer: dict[str, Any]


def package(artifact: Path) -> Package:
    """The package of a retrieval or ranking artifact, by its kind."""
    loaded = load(artifact)
    context = SimpleNamespace(artifacts={"model": str(artifact)})
    if loaded.kind == "sequence":
        from evaluate.publish import retrieval_pyfunc as code

        model: Any = code.RetrievalModel()
        signature, example = code.signature(), _histories(loaded)
    else:
        from evaluate.publish import ranking_pyfunc

        model = ranking_pyfunc.RankingPyfunc()
        signature, example = ranking_pyfunc.signature(loaded.fields), _impressions(loaded)
    model.load_context(context)
    answer = model.predict(context, example, None)
    name = "retrieval_pyfunc.py" if loaded.kind == "sequence" else "ranking_pyfunc.py"
    return Package(_HERE / name, signature, example, answer.to_dict(orient="split"))


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
    assert loaded.vocabulary is not None
    rows = loaded.vocabulary.to_pylist()
    return [r["key"] for r in rows if r["field"] == field and r["index"] >= FIRST_INDEX]


def _histories(loaded: Loaded) -> pd.DataFrame:
    """A history of known items, one with an unknown item, and an empty one."""
    keys = _keys(loaded, ITEM_FIELD)
    return pd.DataFrame({"history": [keys[:3], [*keys[1:2], "never seen before"], []]})


def _impressions(loaded: Loaded) -> pd.DataFrame:
    """A row of known values, one of unknown ones, and one with every field missing."""
    columns: dict[str, list[Any]] = {}
    for field in loaded.fields:
        if field.kind is Kind.NUMERIC:
            columns[field.name] = [field.mean, field.mean + field.std, None]
            continue
        keys = _keys(loaded, ITEM_FIELD if field.name == "item" else field.name)
        known, unknown = (keys[0] if keys else None), "never seen before"
        columns[field.name] = [[known], [unknown], None] if field.kind is Kind.MULTI else [known, unknown, None]
    return pd.DataFrame(columns)
