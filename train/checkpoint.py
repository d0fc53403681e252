"""Checkpoints: a directory that is complete or does not exist. Tensors in safetensors, the rest in JSON.

Every rank writes its random state, and its rows of a sharded table; all wait; rank 0 writes the rest and, last,
MANIFEST.json with the size and SHA-256 of every file. A directory without a manifest is what a killed run left behind,
or what a run did not resume from (SET_ASIDE).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import stat
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.disk import sync
from infra.errors import ArtifactError

MANIFEST = "MANIFEST.json"
SET_ASIDE = "MANIFEST.refused.json"
"""The manifest of a checkpoint that a run did not resume from: it no longer counts, its files are still there."""
CHECKPOINT_FORMAT = "logs2rec-checkpoint"
FORMAT_VERSION = 3
_OLDEST_READ = 2  # lacks what TrainState has a default for
_JSON_LIMIT = 64 * 2**20
_DIRECTORY = re.compile(r"epoch-\d{6}-\d{8}-\d+")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHARD = "shard-{:05d}.safetensors"
_log = logging.getLogger(__name__)


class NewerFormatError(ArtifactError):
    """Written by a newer program: not damaged, only not readable here."""


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: `epoch` whole epochs, and `position` steps of the next."""

    epoch: int
    step: int
    stage: str
    finished: bool
    world: int
    config_hash: str
    input_versions: dict[str, int]
    best_metric: float | None = None
    best_epoch: int = 0
    bad_validations: int = 0
    """Validations in a row without improvement."""
    seconds: float = 0.0
    """Of all epochs, validation included."""
    train_seconds: float = 0.0
    """Of all epochs, validation excluded."""
    examples: int = 0
    """Rows trained on in whole epochs."""
    position: int = 0
    """Steps of the epoch that has begun."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of its losses so far, over steps."""
    peak_memory_bytes: int = 0
    """Largest sum over the workers of what each held at most (train.throughput.peak_memory), by the ends of epochs."""
    validations: list[dict[str, float]] = field(default_factory=list)
    """Of a model that learns an item table, those so far: epoch, metric, train.embedding_health; 256 at most."""


@dataclass(frozen=True)
class Body:
    """What rank 0 alone writes: the same on every rank, so nothing of a sharded table."""

    state: TrainState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """Its slots, as `named` calls them; its hyperparameters are settings."""
    best: dict[str, Tensor] | None = None
    """Weights of the best validation; None when they are `model` itself or there is none yet."""
    average: dict[str, Tensor] | None = None
    """Moving average of the weights, if the run keeps one."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the body and each rank's generators."""

    body: Body
    rng: tuple[dict[str, Tensor], ...]
    shards: tuple[Path, ...] = ()
    """Each rank's file of a sharded table (train.table_shard.TableShard), to be read row by row."""


def save(
    path: Path,
    rank: int,
    rng: Mapping[str, Tensor],
    body: Body | None,
    barrier: Callable[[], None],
    shard: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint from all ranks (each calls this); only rank 0 passes a body, all or none a shard."""
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / f"rng-{rank:05d}.safetensors", rng)
    if shard is not None:
        write_tensors(path / _SHARD.format(rank), shard)
    barrier()
    if body is not None:
        write_tensors(path / "model.safetensors", body.model)
        write_tensors(path / "optimizer.safetensors", body.optimizer)
        for name, tensors in (("best", body.best), ("average", body.average)):
            if tensors is not None:
                write_tensors(path / f"{name}.safetensors", tensors)
        write_json(path / "state.json", asdict(body.state))
        write_manifest(path, CHECKPOINT_FORMAT, FORMAT_VERSION)
    barrier()


def load(path: Path, check: bool = True) -> Checkpoint:
    """Read a checkpoint after checking it against its manifest; ArtifactError names the file that is wrong.

    `check=False`: another rank has compared every file, and of a sharded table all files together may be large.
    """
    names = (verify if check else read_manifest)(path, CHECKPOINT_FORMAT, FORMAT_VERSION, _OLDEST_READ)
    raw = read_json(path / "state.json")
    raw.pop("optimizer", None)  # older programs wrote hyperparameters
    known = {f.name for f in fields(TrainState)}
    needed = {f.name for f in fields(TrainState) if f.default is MISSING and f.default_factory is MISSING}
    if not needed <= set(raw) <= known:
        raise ArtifactError(f"{path / 'state.json'}: not the fields of format version {FORMAT_VERSION}")
    state = TrainState(**raw)
    body = Body(
        state=state,
        model=read_tensors(path / "model.safetensors"),
        optimizer=read_tensors(path / "optimizer.safetensors"),
        best=read_tensors(path / "best.safetensors") if "best.safetensors" in names else None,
        average=read_tensors(path / "average.safetensors") if "average.safetensors" in names else None,
    )
    shards = [_SHARD.format(r) for r in range(state.world)] if _SHARD.format(0) in names else []
    for name in sorted(set(shards) - set(names)):
        raise ArtifactError(f"{path / name}: not in the manifest")
    rng = tuple(read_tensors(path / f"rng-{r:05d}.safetensors") for r in range(state.world))
    return Checkpoint(body, rng, tuple(path / name for name in shards))


def directory_name(epoch: int, position: int, attempt: int) -> str:
    """Name of a checkpoint; `attempt` tells apart two runs to the same place, so none is overwritten.

    >>> directory_name(3, 40, 1700000000000)
    'epoch-000003-00000040-1700000000000'
    """
    return f"epoch-{epoch:06d}-{position:08d}-{attempt:013d}"


def place_of(path: Path) -> list[int]:
    """(epoch, position, attempt) in a checkpoint's name."""
    return [int(part) for part in path.name.split("-")[1:]]


def candidates(run: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, complete or not."""
    if not run.is_dir():
        return []
    return sorted((p for p in run.iterdir() if _DIRECTORY.fullmatch(p.name) and p.is_dir()), reverse=True)


def latest_valid(paths: Iterable[Path]) -> tuple[Path, Checkpoint] | None:
    """The first of `paths` that is complete and unaltered; the refused ones before it are logged.

    Raises ArtifactError at one of a newer format: it is whole, and going on from an older one would give it up.
    """
    for path in paths:
        try:
            return path, load(path)
        except NewerFormatError as error:
            raise ArtifactError(f"{error}; continue with the program that wrote it, or move {path} away") from None
        except ArtifactError as error:
            _log.warning("checkpoint not usable, trying the one before: %s", error)
        except OSError as error:
            _log.warning("checkpoint not readable, trying the one before: %s: %s", path, error)
    return None


def set_aside_beyond(run: Path, place: Sequence[int]) -> None:
    """Unseal the checkpoints of a run beyond `place`, all of which were refused: `retain` must not count them.

    Only the manifest is renamed, as reading may fail for a while only. The files stay until the run has passed them.
    """
    for path in candidates(run):
        try:
            if place_of(path) <= list(place) or not (path / MANIFEST).exists():
                continue
            (path / MANIFEST).rename(path / SET_ASIDE)
        except OSError as error:
            raise ArtifactError(f"{path}: not usable, and cannot be set aside ({error}); move it away") from None
        _log.warning("checkpoint set aside, the run goes on from before it: %s (its manifest: %s)", path, SET_ASIDE)


def retain(run: Path, keep: int) -> None:
    """Remove what is older than the `keep` newest complete checkpoints of a run, complete or not.

    Complete is what has a manifest: what a run refused when it resumed has none (`set_aside_beyond`).
    """
    complete = 0
    for path in candidates(run):
        if complete == keep:
            (path / MANIFEST).unlink(missing_ok=True)  # never half a checkpoint that looks whole
            shutil.rmtree(path, ignore_errors=True)
        complete += (path / MANIFEST).exists()


# Optimizer state, by the parameters' names.


def named(known: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The slots of an optimizer's parameters as 'slot.parameter'."""
    return {f"{slot}.{name}": value for name, slots in known.items() for slot, value in slots.items()}


def by_parameter(tensors: Mapping[str, Tensor], names: Container[str]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `named`; ArtifactError for a tensor of a parameter that is not among `names`."""
    known: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, _, name = key.partition(".")
        if name not in names:
            raise ArtifactError(f"optimizer.safetensors: {key!r} belongs to no trained parameter of this model")
        known.setdefault(name, {})[slot] = value
    return known


# Files.


def write_manifest(directory: Path, kind: str, version: int) -> None:
    """Seal a directory: sizes and hashes of its files, written aside and renamed, so all or nothing."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in sorted(directory.iterdir())
    }
    temporary = directory / f".{MANIFEST}.tmp"
    write_json(temporary, {"format": kind, "format_version": version, "files": files})
    temporary.rename(directory / MANIFEST)
    sync(directory)
    sync(directory.parent)  # older ones may be removed now


def verify(directory: Path, kind: str, version: int, oldest: int | None = None) -> dict[str, dict[str, Any]]:
    """Check a sealed directory against its manifest and return {file name: {size, sha256}}.

    Raises ArtifactError naming the file as `read_manifest` does, and when a file is missing, altered, unexpected or
    a link.
    """
    files = read_manifest(directory, kind, version, oldest)
    unknown = {p.name for p in directory.iterdir()} - set(files) - {MANIFEST}
    if unknown:
        raise ArtifactError(f"{directory / sorted(unknown)[0]}: not in the manifest")
    for name, entry in files.items():
        _verify_file(directory / name, entry)
    return files


def read_manifest(directory: Path, kind: str, version: int, oldest: int | None = None) -> dict[str, dict[str, Any]]:
    """What the manifest says; the files are not looked at. ArtifactError when it is absent, of another format (older
    versions are read back to `oldest`), or when a name would lead out of the directory."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory")
    if not (directory / MANIFEST).exists():
        raise ArtifactError(f"{directory}: incomplete, it has no {MANIFEST}")
    manifest = read_json(directory / MANIFEST)
    found = (manifest.get("format"), manifest.get("format_version"))
    if found not in [(kind, readable) for readable in range(oldest or version, version + 1)]:
        newer = found[0] == kind and isinstance(found[1], int) and found[1] > version
        refusal = NewerFormatError if newer else ArtifactError
        older = found[0] == kind and isinstance(found[1], int) and not newer
        remedy = "; an earlier version wrote it: train again" if older else ""
        raise refusal(f"{directory / MANIFEST}: format {found}, this program reads {(kind, version)}{remedy}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{directory / MANIFEST}: has no list of files")
    for name in files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ArtifactError(f"{directory / MANIFEST}: {name!r} is not a plain file name")
    return files


def _verify_file(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"size", "sha256"} <= set(entry):
        raise ArtifactError(f"{path}: its manifest entry has no size and sha256")
    _require_regular(path)
    if path.stat().st_size != entry["size"]:
        raise ArtifactError(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['size']}")
    if file_digest(path) != entry["sha256"]:
        raise ArtifactError(f"{path}: its SHA-256 is not the manifest's; the file was altered or damaged")


def _require_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing") from None
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path}: not a regular file (links and folders are refused)")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, on disk when this returns. Tensors that share memory are written apart; only they are copied,
    and those that are not on the CPU."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in taken else tensor
        taken.add(tensor.untyped_storage().data_ptr())
    save_file(apart, path)
    sync(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    _require_regular(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with sorted keys, on disk when this returns; NaN and infinity are refused."""
    path.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sync(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ArtifactError when it is anything else or larger than 64 MiB."""
    _require_regular(path)
    if path.stat().st_size > _JSON_LIMIT:
        raise ArtifactError(f"{path}: larger than {_JSON_LIMIT} bytes")
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: not a JSON object")
    return value


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
