"""A trained model as a directory: tensors, a description, the vocabulary, and a manifest sealed last.

model.safetensors   the state dictionary
model.json          kind, configuration, catalogue or fields, vocabulary hash, lineage, metrics
vocabulary.parquet  optional: field, index, key; items under the field '__item__'
MANIFEST.json       sizes and hashes of the others (train.checkpoint.write_manifest)

Reading one executes nothing from it: safetensors, JSON and Parquet only, the architecture comes from
train.models by the name in a validated configuration.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import Field, StrictInt, TypeAdapter, ValidationError
from torch import Tensor, nn

from infra.config import Settings, parse
from infra.disk import sync
from infra.errors import ArtifactError, ConfigError
from infra.tables import FIRST_INDEX, HISTORY, Kind
from train.architecture import FORMAT_VERSION
from train.checkpoint import (
    MANIFEST,
    file_digest,
    read_json,
    read_manifest,
    read_tensors,
    verify,
    write_json,
    write_manifest,
    write_tensors,
)
from train.configs import ModelConfig, RankingConfig, SequenceConfig
from train.models import build_ranking, build_sequence
from train.protocol import FieldSpec
from train.table_shard import LargeTable

ARTIFACT_FORMAT = "logs2rec-model"
ITEM_FIELD = "__item__"
VOCABULARY_SCHEMA = pa.schema([("field", pa.string()), ("index", pa.int32()), ("key", pa.string())])
_MODEL, _DESCRIPTION, _VOCABULARY = "model.safetensors", "model.json", "vocabulary.parquet"
_REQUIRED = {_MODEL, _DESCRIPTION}
_ROWS_PER_BYTE = 8
"""More than any file has of rows with a key of their own."""


class _Field(Settings):
    name: str
    kind: Kind
    size: StrictInt = Field(0, ge=0, lt=2**31)
    mean: float = 0.0
    std: float = 1.0
    missing_rate: float = 0.0


class _Description(Settings):
    """What model.json holds; see Loaded."""

    format_version: int
    kind: Literal["sequence", "ranking"]
    config: dict[str, Any]
    catalogue: StrictInt | None = Field(ge=FIRST_INDEX, lt=2**31)
    fields: tuple[_Field, ...] = Field(max_length=4096)
    vocabulary_hash: str
    lineage: dict[str, StrictInt]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A verified artifact. `catalogue` is None for ranking models, `fields` empty for sequence models."""

    model: nn.Module
    """In eval mode, on the CPU."""
    kind: Literal["sequence", "ranking"]
    config: ModelConfig
    catalogue: int | None
    fields: tuple[FieldSpec, ...]
    vocabulary: pa.Table | None
    """Columns field, index, key."""
    vocabulary_hash: str
    lineage: dict[str, int]
    """Table -> version that the model was trained on."""
    metrics: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """The manifest: file name -> size and sha256."""


def build(
    config: ModelConfig, catalogue: int | None, fields: Sequence[FieldSpec], table: LargeTable | None = None
) -> nn.Module:
    """The freshly initialised model, on the table (of items, or of the fields' values) if one is given."""
    if config.kind == "ranking":
        model: Any = build_ranking(config, fields, table)
    elif catalogue is None:
        raise ConfigError(f"model {config.model}: a sequence model needs the size of the catalogue")
    else:
        model = build_sequence(config, catalogue, table)
    return model


def save(
    path: Path,
    model: nn.Module,
    config: ModelConfig,
    *,
    lineage: Mapping[str, int],
    vocabulary_hash: str,
    metrics: Mapping[str, Any],
    catalogue: int | None = None,
    fields: Sequence[FieldSpec] = (),
    vocabulary: pa.Table | None = None,
) -> None:
    """Write the artifact beside `path` and rename it into place.

    A complete artifact of the same model there is left alone (metrics do not count), an incomplete one
    is replaced. Raises ArtifactError when `path` holds another model or something else.
    """
    with _into_place(path) as written:
        write_tensors(written / _MODEL, model.state_dict())
        if vocabulary is not None:
            pq.write_table(vocabulary.select(VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA), written / _VOCABULARY)
            sync(written / _VOCABULARY)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": config.kind,
            "config": config.model_dump(mode="json"),
            "catalogue": catalogue,
            "fields": [asdict(f) for f in fields],
            "vocabulary_hash": vocabulary_hash,
            "lineage": dict(lineage),
            "metrics": dict(metrics),
        }
        write_json(written / _DESCRIPTION, description)
        write_manifest(written, ARTIFACT_FORMAT, FORMAT_VERSION)


def copy(source: Path, path: Path) -> None:
    """Copy an artifact to `path`, where it is then complete or not at all. Raises ArtifactError as `save` does, and
    when the source is not whole."""
    with _into_place(path) as written:
        for name in (*_verify(source), MANIFEST):
            shutil.copyfile(source / name, written / name)
            sync(written / name)


def is_complete(path: Path) -> bool:
    """Whether a whole, unaltered artifact lies there."""
    try:
        _verify(path)
    except ArtifactError:
        return False
    return True


def load(path: str | Path) -> Loaded:
    """Open an artifact after checking every file; ArtifactError names what is wrong with which."""
    path = Path(path)
    files = _verify(path)
    about = _description(path)
    config = _config(path, about)
    fields = tuple(FieldSpec(**dict(field)) for field in about.fields)
    return Loaded(
        model=_model(path, config, about.catalogue, fields, read_tensors(path / _MODEL)).eval(),
        kind=about.kind,
        config=config,
        catalogue=about.catalogue,
        fields=fields,
        vocabulary=_read_vocabulary(path / _VOCABULARY) if _VOCABULARY in files else None,
        vocabulary_hash=about.vocabulary_hash,
        lineage=about.lineage,
        metrics=about.metrics,
        files=files,
    )


def vocabulary_of(field: str, names: Container[str]) -> str:
    """The name in a vocabulary's `field` column under which a feature field's values stand, `names` being all there.

    Those of `item` and of `samples.history` are items; a contract's own field of the name history has a vocabulary.

    >>> vocabulary_of("history", {"__item__", "brand"}), vocabulary_of("brand", {"__item__", "brand"})
    ('__item__', 'brand')
    """
    return ITEM_FIELD if field == "item" or (field == HISTORY and field not in names) else field


def item_vocabulary(path: str | Path) -> tuple[str, int]:
    """(hash, number of keys) of the item vocabulary that an artifact's model was trained with."""
    path = Path(path)
    items = pc.sum(pc.equal(vocabulary(path)["field"], ITEM_FIELD)).as_py() or 0
    return _description(path).vocabulary_hash, items


def vocabulary(path: Path) -> pa.Table:
    """The vocabulary in an artifact, after checking every file; without rows where there is none."""
    files = _verify(path)
    return _read_vocabulary(path / _VOCABULARY) if _VOCABULARY in files else VOCABULARY_SCHEMA.empty_table()


def weights_digest(path: Path) -> str:
    """SHA-256 of an artifact's weights, as its manifest says; ArtifactError where it does not."""
    entry = read_manifest(path, ARTIFACT_FORMAT, FORMAT_VERSION).get(_MODEL)
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise ArtifactError(f"{path / MANIFEST}: has no sha256 of {_MODEL}")
    return str(entry["sha256"])


def _verify(path: Path) -> dict[str, dict[str, Any]]:
    files = verify(path, ARTIFACT_FORMAT, FORMAT_VERSION)
    for name in sorted(set(files) - _REQUIRED - {_VOCABULARY}):
        raise ArtifactError(f"{path / name}: no part of a model artifact")
    for name in sorted(_REQUIRED - set(files)):
        raise ArtifactError(f"{path / name}: missing from the manifest")
    return files


def _description(path: Path) -> _Description:
    about = read_json(path / _DESCRIPTION)
    if about.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(f"{path / _DESCRIPTION}: is not of format version {FORMAT_VERSION}")
    try:
        return parse(about, _Description, where=str(path / _DESCRIPTION))
    except ConfigError as error:
        raise ArtifactError(str(error)) from None


def _config(path: Path, about: _Description) -> ModelConfig:
    adapters: dict[str, TypeAdapter[Any]] = {
        "sequence": TypeAdapter(SequenceConfig),
        "ranking": TypeAdapter(RankingConfig),
    }
    try:
        return adapters[about.kind].validate_python(about.config)
    except ValidationError as error:
        raise ArtifactError(f"{path / _DESCRIPTION}: config: {error}") from None


def _model(
    path: Path, config: ModelConfig, catalogue: int | None, fields: Sequence[FieldSpec], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """With these weights. Shapes are compared first, on a model without memory: a description may ask for any size."""
    try:
        with torch.device("meta"):
            _require_same(path / _MODEL, tensors, build(config, catalogue, fields).state_dict())
        model = build(config, catalogue, fields)
    except (ConfigError, RuntimeError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise ArtifactError(f"{path / _DESCRIPTION}: no model can be built from it ({error})") from None
    model.load_state_dict(dict(tensors))
    return model


def _require_same(where: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """A tensor of another name, shape or type is refused, never cast."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ArtifactError(f"{where}: tensor {name} is {'missing' if name in expected else 'not of this model'}")
    for name, tensor in tensors.items():
        found, wanted = (tensor.dtype, tensor.shape), (expected[name].dtype, expected[name].shape)
        if found != wanted:
            raise ArtifactError(f"{where}: tensor {name} is {found}, its configuration asks for {wanted}")


def _read_vocabulary(path: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(path)  # not read_table, which reads columns into folder names
        if file.metadata.num_rows > _ROWS_PER_BYTE * path.stat().st_size:
            raise ArtifactError(f"{path}: claims {file.metadata.num_rows} rows, more than its bytes can hold")
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: not a valid Parquet file ({error})") from None
    if not table.schema.equals(VOCABULARY_SCHEMA, check_metadata=False):
        raise ArtifactError(f"{path}: its columns are {table.schema.names}, not field, index, key of their types")
    return table


@contextmanager
def _into_place(path: Path) -> Iterator[Path]:
    """A folder to write into, beside `path`, which is renamed to it unless `path` holds the same already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    written.mkdir()
    try:
        yield written
        if not _keep_existing(path, written):
            written.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _keep_existing(path: Path, written: Path) -> bool:
    """Whether `path` already holds what `written` holds; what is incomplete there makes way."""
    if not path.exists():
        return False
    try:
        _verify(path)
    except ArtifactError:
        known = {_MODEL, _DESCRIPTION, _VOCABULARY, MANIFEST, f".{MANIFEST}.tmp"}
        if not path.is_dir() or path.is_symlink() or {p.name for p in path.iterdir()} - known:
            raise ArtifactError(f"{path}: is there and is no artifact of ours; choose another place") from None
        shutil.rmtree(path)
        return False
    if _identity(path) != _identity(written):
        raise ArtifactError(f"{path}: holds another model; artifacts are never overwritten, choose another place")
    return True


def _identity(path: Path) -> dict[str, Any]:
    """What makes two artifacts the same model: everything but the metrics."""
    hashes = {p.name: file_digest(p) for p in path.iterdir() if p.name not in (_DESCRIPTION, MANIFEST)}
    return {**read_json(path / _DESCRIPTION), **hashes, "metrics": None}
