"""The registered ranking model: raw feature rows in, probabilities out.

Nulls, absent columns, NaN and values outside the vocabulary are what real traffic brings; none of them
is an error. MLflow runs this file when it loads the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

import train
from infra.tables import UNKNOWN, Kind
from train.artifact import ITEM_FIELD
from train.protocol import FieldSpec, RankingBatch

_TYPES: dict[Kind, Array | DataType] = {
    Kind.CATEGORICAL: DataType.string,
    Kind.NUMERIC: DataType.double,
    Kind.MULTI: Array(DataType.string),
}


def signature(fields: Sequence[FieldSpec]) -> ModelSignature:
    """One optional column per field; the answer is `probability`."""
    columns: list[ColSpec | TensorSpec] = [ColSpec(_TYPES[f.kind], f.name, required=False) for f in fields]
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec(DataType.double, "probability")]))


class RankingPyfunc(PythonModel):
    """Probability of a positive label for each row of raw features."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the verified artifact."""
        loaded = train.load(Path(context.artifacts["model"]))
        if loaded.vocabulary is None:
            raise mlflow.MlflowException("the artifact carries no vocabulary")
        self.model: Any = loaded.model
        self.fields = loaded.fields
        self.index: dict[str, dict[str, int]] = {}
        for row in loaded.vocabulary.to_pylist():
            field = "item" if row["field"] == ITEM_FIELD else row["field"]
            self.index.setdefault(field, {})[row["key"]] = row["index"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One probability per row."""
        raw = {f.name: _column(model_input, f.name) for f in self.fields}
        missing_BN = torch.tensor([[_absent(v, f.kind) for v in raw[f.name]] for f in self.fields]).T.contiguous()
        categorical, numeric, multi = [], [], []
        for spec in self.fields:
            known, values = self.index.get(spec.name, {}), raw[spec.name]
            if spec.kind is Kind.CATEGORICAL:
                categorical.append([0 if _absent(v, spec.kind) else known.get(str(v), UNKNOWN) for v in values])
            elif spec.kind is Kind.NUMERIC:
                numeric.append([0.0 if _absent(v, spec.kind) else float(v) for v in values])
            else:
                multi.append([[] if _absent(v, spec.kind) else [known.get(str(x), UNKNOWN) for x in v] for v in values])
        rows = len(model_input)
        batch = RankingBatch(
            categorical_BF=torch.tensor(categorical, dtype=torch.int64).reshape(len(categorical), rows).T.contiguous(),
            numeric_BG=torch.tensor(numeric, dtype=torch.float32).reshape(len(numeric), rows).T.contiguous(),
            multi=tuple(_padded(m) for m in multi),
            missing_BN=missing_BN.reshape(rows, len(self.fields)),
            label_B=torch.zeros(rows),
        )
        with torch.inference_mode():
            probability = torch.sigmoid(self.model.logits(batch)).tolist()
        return pd.DataFrame({"probability": probability})


def _column(rows: pd.DataFrame, name: str) -> list[Any]:
    return list(rows[name]) if name in rows.columns else [None] * len(rows)


def _absent(value: Any, kind: Kind) -> bool:
    if kind is Kind.MULTI:
        return value is None or isinstance(value, float)
    if value is None or value == "" or value is pd.NA:
        return True
    if kind is Kind.CATEGORICAL:
        return isinstance(value, float) and math.isnan(value)
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError):
        return True


def _padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(1, *(len(r) for r in rows), 1)
    return torch.tensor([r + [0] * (width - len(r)) for r in rows], dtype=torch.int64).reshape(len(rows), width)


set_model(RankingPyfunc())
