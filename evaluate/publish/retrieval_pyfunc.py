"""The registered retrieval model: histories of item ids in, recommended item ids out.

MLflow runs this file when it loads the model ("models from code"); the tensors come from the artifact
through `train.load`, which verifies every hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import train
from infra.tables import FIRST_INDEX, UNKNOWN
from train.artifact import ITEM_FIELD
from train.protocol import SequenceBatch
from train.ranking import top_k


def signature() -> ModelSignature:
    """history: list of item ids, oldest first. Answer: items and scores, best first."""
    return ModelSignature(
        inputs=Schema([ColSpec(Array(DataType.string), "history")]),
        outputs=Schema([ColSpec(Array(DataType.string), "items"), ColSpec(Array(DataType.double), "scores")]),
        params=ParamSchema([ParamSpec("k", DataType.integer, 10), ParamSpec("keep_history", DataType.boolean, False)]),
    )


class RetrievalModel(PythonModel):
    """Top-K items by inner product; items of the history are left out unless `keep_history`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the verified artifact."""
        loaded = train.load(Path(context.artifacts["model"]))
        if loaded.vocabulary is None:
            raise mlflow.MlflowException("the artifact carries no vocabulary")
        items = [r for r in loaded.vocabulary.to_pylist() if r["field"] == ITEM_FIELD]
        self.model: Any = loaded.model
        self.length = getattr(loaded.config, "max_length", None)
        self.index = {r["key"]: r["index"] for r in items}
        self.keys = {r["index"]: r["key"] for r in items}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One answer per row; an unknown item counts as unknown, an empty history gets an answer too."""
        params = params or {}
        k, keep = int(params.get("k", 10)), bool(params.get("keep_history", False))
        histories = [
            [self.index.get(str(i), UNKNOWN) for i in (row if row is not None else [])]
            for row in model_input["history"]
        ]
        seen_BH = _left_padded(histories)
        items_BL = seen_BH[:, -self.length :] if self.length else seen_BH
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            u_BRD = self.model.user_vectors(
                SequenceBatch(items_BL, items_BL.new_zeros(len(items_BL), 0)), None, generator
            )
            items_BK, scores_BK = top_k(u_BRD, self.model.item_table(), k, None if keep else seen_BH)
        answers = [
            ([self.keys[i] for i in items if i >= FIRST_INDEX], [s for i, s in zip(items, scores, strict=True) if i])
            for items, scores in zip(items_BK.tolist(), scores_BK.tolist(), strict=True)
        ]
        return pd.DataFrame(answers, columns=["items", "scores"])


def _left_padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(1, *(len(r) for r in rows), 1)
    return torch.tensor([[0] * (width - len(r)) + r for r in rows], dtype=torch.int64).reshape(len(rows), width)


set_model(RetrievalModel())
