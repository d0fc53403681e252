"""Warm start: a freshly built model takes over a champion's weights, its tables grown for new vocabulary entries.

Only trained parameters are taken over: what describes today's data (the statistics of numeric fields) stays.

Shapes: S rows of a vocabulary's table in the champion, W its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train import artifact
from train.artifact import ITEM_FIELD
from train.configs import ModelConfig
from train.fields import FieldEncoder
from train.item_table import ItemModel
from train.protocol import FieldSpec, SequenceModel

_REMEDY = "set training.start: fresh, or train the configuration that the champion has"
_FREE = frozenset({
    "dropout", "embedding_dropout", "negatives", "pretrain_share", "align_share", "mse_weight", "recon_weight",
    "aux_weight", "stop_gradient", "max_length", "guidance", "guidance_drop", "prefixes", "ce_weight", "combine",
    "align", "align_loss", "independent", "sampler", "denoiser_start", "pretrain", "gem_weight", "ssm_weight",
    "sharpness", "rate", "beta", "weight", "drop_by", "count_missing", "drop_power",
})  # fmt: skip
"""Settings that change how weights are learnt, or how much history is shown, but not what a weight means. What else
they change (a table of positions, a stage's own encoder) shows in the tensors."""


def start_from(model: nn.Module, config: ModelConfig, fields: Sequence[FieldSpec], initial: Path) -> None:
    """Copy the weights of the artifact `initial` into a freshly initialised model of `config` and `fields`.

    Parameters that only the champion has are left out. Rows of new vocabulary entries begin at the mean of the
    champion's rows, each with its own fresh draw on top. Whether the vocabularies agree is `require_vocabulary`'s
    to say. No random stream moves. Raises TrainingError, before any weight has changed, when the champion is of
    another architecture or a parameter of the model has no counterpart; ArtifactError when the artifact is damaged.
    """
    with torch.random.fork_rng(devices=[]):  # loading builds a model, which draws its weights
        champion = artifact.load(initial)
    _require_same_architecture(champion.config, config, initial)
    _require_same_fields(champion.fields, fields, initial)
    known, mine = dict(champion.model.named_parameters()), dict(model.named_parameters())
    theirs, ours = _tables(champion.model), _tables(model)
    for name, parameter in mine.items():
        _require_counterpart(name, parameter, known.get(name), theirs.get(name, {}), ours.get(name, {}), initial)
    with torch.no_grad():
        for name, parameter in mine.items():
            old = known[name].to(parameter.device)
            if name not in ours:
                parameter.copy_(old)
                continue
            for rows, had in {rows: theirs[name][field] for field, rows in ours[name].items()}.items():
                _grow(parameter[rows.start : rows.stop], old[had.start : had.stop])  # of tied fields once


def require_vocabulary(initial: Path, today: pa.Table | None) -> None:
    """Raise TrainingError, with field, index and both keys, unless each of the artifact's vocabularies is the
    beginning of today's (columns field, index, key)."""
    known = artifact.vocabulary(initial)
    if known.num_rows == 0 or today is None:
        whose = "the champion" if known.num_rows == 0 else "this run"
        raise TrainingError(f"{initial}: {whose} has no vocabulary to compare; set training.start: fresh")
    for field in pc.unique(known["field"]).to_pylist():
        theirs, ours = _of(known, field), _of(today, field)
        if (at := _difference(theirs, ours)) is not None:
            index, key = (theirs[column][at].as_py() for column in ("index", "key"))
            found = repr(ours["key"][at].as_py()) if at < ours.num_rows else "missing"
            raise TrainingError(
                f"{initial}: field {field!r}, index {index}: the champion's key is {key!r}, today's is {found}; "
                "its rows mean other values than today's: set training.start: fresh"
            )


def _difference(theirs: pa.Table, ours: pa.Table) -> int | None:
    """The first row in which `theirs` is not the beginning of `ours`."""
    common = min(theirs.num_rows, ours.num_rows)
    a, b = theirs.slice(0, common), ours.slice(0, common)
    at: int = pc.index(pc.and_(pc.equal(a["index"], b["index"]), pc.equal(a["key"], b["key"])), False).as_py()
    if at >= 0:
        return at
    return common if common < theirs.num_rows else None


def _of(vocabulary: pa.Table, field: str) -> pa.Table:
    """A field's rows in index order."""
    return vocabulary.filter(pc.equal(vocabulary["field"], field)).sort_by("index")


def _require_same_architecture(champion: ModelConfig, config: ModelConfig, initial: Path) -> None:
    """The same in every setting that says what a weight means; shapes alone do not show heads or a noise schedule."""
    if champion.model != config.model:
        raise TrainingError(
            f"{initial}: the champion is a {champion.model} model, this one is {config.model}; {_REMEDY}"
        )
    theirs, ours = (_architecture(c.model_dump()) for c in (champion, config))
    for name, value in ours.items():
        if theirs[name] != value:
            raise TrainingError(
                f"{initial}: config.{name} is {theirs[name]!r} in the champion and {value!r} here; {_REMEDY}"
            )


def _architecture(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that are not free, those of a wrapped model as 'base.name'.

    >>> _architecture({"hidden": 4, "aux_weight": 1.0, "base": {"hidden": (8,), "dropout": 0.1}})
    {'hidden': 4, 'base.hidden': (8,)}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _architecture(value, f"{prefix}{name}.")
        elif name not in _FREE:
            found[prefix + name] = value
    return found


def _require_same_fields(champion: Sequence[FieldSpec], today: Sequence[FieldSpec], initial: Path) -> None:
    """The same feature fields in the same order."""
    for position, (theirs, ours) in enumerate(zip_longest(champion, today)):
        names = [f"{spec.name!r} ({spec.kind})" if spec else "none" for spec in (theirs, ours)]
        if names[0] != names[1]:
            raise TrainingError(
                f"{initial}: feature field {position + 1} is {names[0]} in the champion and {names[1]} today; "
                "set training.start: fresh"
            )


Blocks = Mapping[str, range]
"""Field, items under '__item__' -> the rows of a table that its vocabulary has."""


def _tables(model: nn.Module) -> dict[str, Blocks]:
    """The parameters whose rows are entries of vocabularies."""
    blocks: dict[Tensor, Blocks] = {}
    if isinstance(model, ItemModel):
        blocks[model.items.weight] = {ITEM_FIELD: range(len(model.items.weight))}
    elif isinstance(model, SequenceModel) and (table := model.item_table()) is not None:
        blocks[table] = {ITEM_FIELD: range(len(table))}
    for module in model.modules():
        if isinstance(module, FieldEncoder):
            blocks[module.table.weight] = module.blocks
    return {name: blocks[p] for name, p in model.named_parameters() if p in blocks}


def _require_counterpart(
    name: str, mine: Tensor, old: Tensor | None, theirs: Blocks, ours: Blocks, initial: Path
) -> None:
    """The champion's tensor fits as it is, or it is a table and no field has fewer rows here."""
    what = f"tensor {name}" + (f" (field {', '.join(map(repr, ours))})" if ours else "")
    if old is None:
        raise TrainingError(f"{initial}: the champion has no {what}; {_REMEDY}")
    if old.shape[bool(ours) :] != mine.shape[bool(ours) :]:
        raise TrainingError(
            f"{initial}: {what} is {tuple(old.shape)} in the champion and {tuple(mine.shape)} here; {_REMEDY}"
        )
    for field, rows in ours.items():
        if len(theirs[field]) > len(rows):
            raise TrainingError(
                f"{initial}: tensor {name} (field {field!r}) has {len(theirs[field])} rows in the champion and "
                f"{len(rows)} here; {_REMEDY}"
            )


def _grow(table: Tensor, old_SW: Tensor) -> None:
    """The champion's rows, then new ones.

    A fresh row is near 0, but no neutral one: a LayerNorm behind it blows its direction up to full size. The mean is
    an average entry, as input and as candidate; a draw as large as trained rows would be a strong, random opinion.
    """
    rows = len(old_SW)
    table[:rows] = old_SW
    if rows > FIRST_INDEX:
        table[rows:] += old_SW[FIRST_INDEX:].mean(dim=0)
