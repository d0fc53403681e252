"""The registered retrieval model: histories of item ids in, recommended item ids out.

MLflow runs this file when it loads the model ("models from code"); the tensors come from the artifact
through `train.load`, which verifies every hash.

Shapes: B requests, H longest history, L what the model sees of it, R vectors per user, D width, K answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import train
from evaluate.publish.cells import left_padded, read
from infra.errors import ArtifactError, UsageError
from infra.tables import FIRST_INDEX, UNKNOWN, Kind
from train.artifact import ITEM_FIELD
from train.protocol import SequenceBatch
from train.ranking import top_k, user_vectors


def signature() -> ModelSignature:
    """history: list of item ids, oldest first, or null for none. Answer: items and scores, best first."""
    return ModelSignature(
        inputs=Schema([ColSpec(Array(DataType.string), "history", required=False)]),
        outputs=Schema([ColSpec(Array(DataType.string), "items"), ColSpec(Array(DataType.double), "scores")]),
        params=ParamSchema(
            [
                ParamSpec("k", DataType.integer, 10),
                ParamSpec("keep_history", DataType.boolean, False),
                ParamSpec("draws", DataType.integer, 1),
            ]
        ),
    )


class RetrievalModel(PythonModel):
    """Top-K items by the model's scores; items of the history are left out unless `keep_history`. With several `draws`
    of a diffusion model's noise an item's score is its highest among them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the verified artifact; ArtifactError when its vocabulary does not name the model's items."""
        path = Path(context.artifacts["model"])
        loaded = train.load(path)
        rows = loaded.vocabulary.to_pylist() if loaded.vocabulary is not None else []
        self.keys = {r["index"]: r["key"] for r in rows if r["field"] == ITEM_FIELD}
        if loaded.catalogue is None or set(self.keys) != set(range(FIRST_INDEX, loaded.catalogue)):
            raise ArtifactError(f"{path}: its vocabulary has {len(self.keys)} items, its table {loaded.catalogue} rows")
        self.index = {key: index for index, key in self.keys.items()}
        self.model: Any = loaded.model
        self.length = getattr(loaded.config, "max_length", None)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One answer per row, shorter than `k` when fewer items are left.

        An item that is not in the vocabulary counts as unknown; an empty history gets an answer too. Noise
        comes from seed 0 and is drawn for all rows of a call at once, so the same call gets the same
        answer, but with a diffusion model a row's answer depends on its place in the call. Raises
        UsageError without the column `history` or with k or draws below 1.
        """
        params = params or {}
        k, keep = int(params.get("k", 10)), bool(params.get("keep_history", False))
        if "history" not in model_input.columns:
            raise UsageError(f"history: no such column; the request has {', '.join(map(str, model_input.columns))}")
        draws = int(params.get("draws", 1))
        if k < 1:
            raise UsageError(f"k: asked for the top {k}; ask for at least 1")
        if draws < 1:
            raise UsageError(f"draws: asked for {draws}; ask for at least 1")
        histories = [read(cell, Kind.MULTI) or [] for cell in model_input["history"]]
        seen_BH = left_padded([[self.index.get(item, UNKNOWN) for item in items] for items in histories])
        items_BL = seen_BH[:, -self.length :] if self.length else seen_BH
        batch = SequenceBatch.left_padded(items_BL)
        with torch.inference_mode():
            u_BRD = user_vectors(self.model, batch, None, torch.Generator().manual_seed(0), draws)
            k = min(k, max(1, len(self.keys)))
            items_BK, scores_BK = top_k(u_BRD, self.model.item_table(), k, None if keep else seen_BH)
        answers = [
            self._answer(items, scores) for items, scores in zip(items_BK.tolist(), scores_BK.tolist(), strict=True)
        ]
        return pd.DataFrame(answers, columns=["items", "scores"], index=model_input.index)

    def _answer(self, items: list[int], scores: list[float]) -> tuple[list[str], list[float]]:
        """Ids and scores without the places that no item is left for."""
        found = [(self.keys[i], score) for i, score in zip(items, scores, strict=True) if i >= FIRST_INDEX]
        return [key for key, _ in found], [score for _, score in found]


set_model(RetrievalModel())
