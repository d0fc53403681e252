"""A self-supervised second task: two views of a sample are to find each other among others'.

After Yao et al. (2020, arXiv 2007.12865): L = L_main + weight L_self, L_self = -log softmax_j(cos(a_i, b_j) / t)[i]
over a group of samples, a and b two views' h(x_T) through one linear layer, a view being the sample with fields
dropped. Served as the base is.

Shapes: B samples, M samples of a group, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.field_model import task_sum
from train.protocol import FieldSpec, LossParts, RankingBatch
from train.ranking_configs import ContrastiveConfig
from train.table_shard import LargeTable
from train.wrapped import Wrapped, dropped, samples


class Contrastive(Wrapped):
    """The base and its second task."""

    def __init__(self, config: ContrastiveConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.config = config
        self.project = nn.Linear(self.base.width, self.base.width)

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """The task on the sample as logged, and the views."""
        a_BD, b_BD = (F.normalize(self._view(batch, generator), dim=1) for _ in range(2))
        groups = zip(a_BD.split(self.config.group), b_BD.split(self.config.group), strict=True)
        views = torch.stack([self._found(a_MD, b_MD) for a_MD, b_MD in groups]).sum()
        terms = {
            "main": samples(task_sum(self.base.logits(batch), batch)),
            "self": samples(views, self.config.weight),
        }
        return LossParts(terms, batch.counts)

    def _found(self, a_MD: Tensor, b_MD: Tensor) -> Tensor:
        """Each sample's own view among those of the group, summed."""
        own_M = torch.arange(len(a_MD), device=a_MD.device)
        cosine_MM = (a_MD @ b_MD.T).float()  # over a temperature, half precision would show
        return F.cross_entropy(cosine_MM / self.config.temperature, own_M, reduction="sum")

    def _view(self, batch: RankingBatch, generator: torch.Generator) -> Tensor:
        view_BD: Tensor = self.project(self.base.encode(dropped(batch, self.config, generator)))
        return view_BD
