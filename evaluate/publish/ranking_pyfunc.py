"""The registered ranking model: raw feature rows in, probabilities out.

Nulls, absent columns, NaN, values of another type and values outside the vocabulary are what real traffic brings; none
of them is an error. MLflow runs this file when it loads the model, and holds requests against the signature first. Its
columns are of any type: a typed one refuses a column of nulls alone or integers where doubles belong, and makes text of
a null within a list. MLflow cuts a request to the columns of the signature, so one with none of them has no rows left.

Shapes: B rows, F categorical fields, G numeric fields, N all fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from numpy.typing import NDArray

import train
from evaluate.publish.cells import left_padded, read
from infra.errors import ArtifactError
from infra.tables import PADDING, UNKNOWN, Kind
from train.artifact import vocabulary_of
from train.protocol import FieldSpec, RankingBatch


def signature(fields: Sequence[FieldSpec]) -> ModelSignature:
    """One optional column per field; the answer is `probability`."""
    columns: list[ColSpec | TensorSpec] = [ColSpec(AnyType(), f.name, required=False) for f in fields]
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec(DataType.double, "probability")]))


class RankingPyfunc(PythonModel):
    """Probability of a positive label for each row of raw features."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the verified artifact; ArtifactError when it has no vocabulary."""
        path = Path(context.artifacts["model"])
        loaded = train.load(path)
        if loaded.vocabulary is None:
            raise ArtifactError(f"{path}: has no vocabulary to look values up in; train it again with one")
        self.model: Any = loaded.model
        self.fields = loaded.fields
        self.index: dict[str, dict[str, int]] = {}
        for row in loaded.vocabulary.to_pylist():
            self.index.setdefault(row["field"], {})[row["key"]] = row["index"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One probability per row. Of columns with the same name the first counts (MLflow itself refuses them)."""
        batch = self._batch(model_input.loc[:, ~model_input.columns.duplicated()])
        with torch.inference_mode():
            probability_B = torch.sigmoid(self.model.logits(batch).double()).numpy()
        return pd.DataFrame({"probability": probability_B}, index=model_input.index)

    def _batch(self, rows: pd.DataFrame) -> RankingBatch:
        count = len(rows)
        missing_BN = np.ones((count, len(self.fields)), np.bool_)
        categorical: list[NDArray[Any]] = []
        numeric: list[NDArray[Any]] = []
        multi: list[torch.Tensor] = []
        for position, spec in enumerate(self.fields):
            cells = list(rows[spec.name]) if spec.name in rows.columns else [None] * count
            found = [read(cell, spec.kind) for cell in cells]
            missing_BN[:, position] = [value is None for value in found]
            known = self.index.get(vocabulary_of(spec.name, self.index), {})
            if spec.kind is Kind.CATEGORICAL:
                indices = [PADDING if value is None else known.get(value, UNKNOWN) for value in found]
                categorical.append(np.array(indices, np.int64))
            elif spec.kind is Kind.NUMERIC:
                with np.errstate(over="ignore"):  # beyond float32 is infinite, hence missing, as in training
                    value_B = np.array([np.nan if value is None else value for value in found]).astype(np.float32)
                missing_BN[:, position] = ~np.isfinite(value_B)
                numeric.append(np.where(np.isfinite(value_B), value_B, np.float32(0)))
            else:
                multi.append(left_padded([[known.get(v, UNKNOWN) for v in value or ()] for value in found]))
        return RankingBatch(
            categorical_BF=torch.from_numpy(
                np.stack(categorical, 1) if categorical else np.zeros((count, 0), np.int64)
            ),
            numeric_BG=torch.from_numpy(np.stack(numeric, 1) if numeric else np.zeros((count, 0), np.float32)),
            multi=tuple(multi),
            missing_BN=torch.from_numpy(missing_BN),
            label_B=torch.zeros(count),
        )


set_model(RankingPyfunc())
