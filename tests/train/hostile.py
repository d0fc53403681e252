"""Artifacts made to harm whoever opens them: each maker turns a good one into a hostile one.

What is dangerous to unpickle, unpack or run writes a file (the marker) when it is.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from tests.train.test_artifact import CONFIG, VOCABULARY, edit, reseal
from train.configs import SASRecConfig

Maker = Callable[[Path, Path], None]
"""(artifact, marker): makes the artifact hostile."""
MODEL, DESCRIPTION, KEYS, MANIFEST = SLOTS = (
    "model.safetensors", "model.json", "vocabulary.parquet", "MANIFEST.json",
)  # fmt: skip


class Payload:
    """Writes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mknod, (self.marker,)


# What may stand in the place of any file.


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def torch_file(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2), "more": Payload(marker)}, buffer)
    return buffer.getvalue()


def numpy_objects(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(marker)], object), allow_pickle=True)
    return buffer.getvalue()


def gzipped_pickle(marker: Path) -> bytes:
    return gzip.compress(pickled(marker))


def tar_that_climbs(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (f"../{marker.name}", str(marker)):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return buffer.getvalue()


def zip_that_climbs(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"../{marker.name}", "x")
        archive.writestr("data.pkl", pickled(marker))
    return buffer.getvalue()


FORMATS = (pickled, torch_file, numpy_objects, gzipped_pickle, tar_that_climbs, zip_that_climbs)


def _in_slot(slot: str, content: Callable[[Path], bytes]) -> Maker:
    def make(path: Path, marker: Path) -> None:
        (path / slot).write_bytes(content(marker))
        if slot != MANIFEST:
            reseal(path)

    return make


# What a manifest may say.


def _manifest(change: Callable[[dict], object]) -> Maker:
    def make(path: Path, marker: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text())
        change(manifest)
        (path / MANIFEST).write_text(json.dumps(manifest))

    return make


def _named(name: str) -> Maker:
    """A further file of this name, with size and hash of a real one."""
    return _manifest(lambda manifest: manifest["files"].update({name: manifest["files"][MODEL]}))


def _outside(path: Path, marker: Path) -> None:
    """A file that is there, outside, with its right size and hash."""
    (path / KEYS).rename(path.parent / KEYS)
    _manifest(lambda manifest: manifest["files"].update({f"../{KEYS}": manifest["files"].pop(KEYS)}))(path, marker)


def _entry(**changes) -> Maker:
    return _manifest(lambda manifest: manifest["files"][MODEL].update(changes))


# What may lie where a file should.


def _link(slot: str) -> Maker:
    """To the very file that was there."""

    def make(path: Path, marker: Path) -> None:
        (path / slot).rename(path.parent / slot)
        (path / slot).symlink_to(path.parent / slot)

    return make


def _dangling(path: Path, marker: Path) -> None:
    (path / KEYS).unlink()
    (path / KEYS).symlink_to(path / "nowhere")


def _loop(path: Path, marker: Path) -> None:
    (path / MANIFEST).unlink()
    (path / MANIFEST).symlink_to(path / MANIFEST)


def _pipe(path: Path, marker: Path) -> None:
    (path / MODEL).unlink()
    os.mkfifo(path / MODEL)


def _folder(path: Path, marker: Path) -> None:
    (path / DESCRIPTION).unlink()
    (path / DESCRIPTION).mkdir()


def _one_file_more(path: Path, marker: Path) -> None:
    (path / "__init__.py").write_text(f"open({str(marker)!r}, 'w')")
    reseal(path)


# Tensors that are not what their header says.


def _header(header: object, data: bytes = b"", length: int | None = None) -> Maker:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def make(path: Path, marker: Path) -> None:
        size = len(text) if length is None else length
        (path / MODEL).write_bytes(struct.pack("<Q", size) + text + data)
        reseal(path)

    return make


def _tensor(shape: object, offsets: object, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _tensors(change: Callable[[dict], object]) -> Maker:
    def make(path: Path, marker: Path) -> None:
        tensors = load_file(path / MODEL)
        change(tensors)
        save_file(tensors, path / MODEL)
        reseal(path)

    return make


# What a description may ask for.


def _config(**changes) -> Maker:
    return _described(config=CONFIG.model_dump(mode="json") | changes)


def _described(**changes) -> Maker:
    return lambda path, marker: edit(path, **changes)


def _text(text: bytes) -> Maker:
    def make(path: Path, marker: Path) -> None:
        (path / DESCRIPTION).write_bytes(text)
        reseal(path)

    return make


def _ranking(spec: object, **changes) -> Maker:
    config = {"model": "dnn", "hidden": [3], **changes}
    return _described(kind="ranking", config=config, catalogue=None, fields=spec)


def _field(**changes) -> dict:
    about = {"name": "a", "kind": "categorical", "size": 5, "mean": 0.0, "std": 1.0, "missing_rate": 0.0}
    return about | changes


def _of_many_layers(path: Path, marker: Path) -> None:
    edit(path, config=SASRecConfig(width=4, heads=1, blocks=1).model_dump(mode="json") | {"blocks": 10**9})


# Vocabularies.


def _vocabulary(table: pa.Table, **options) -> Maker:
    def make(path: Path, marker: Path) -> None:
        pq.write_table(table, path / KEYS, **options)
        reseal(path)

    return make


def _bomb(path: Path, marker: Path) -> None:
    """A hundred million rows in a few kilobytes."""
    one = pa.table({"field": ["__item__"], "index": pa.array([2], pa.int32()), "key": ["a"]})
    rows = pa.concat_tables([one] * 1000).combine_chunks()
    with pq.ParquetWriter(path / KEYS, rows.schema, compression="zstd") as writer:
        many = pa.concat_tables([rows] * 1000).combine_chunks()
        for _ in range(3):
            writer.write_table(many, row_group_size=10**6)
    reseal(path)


def _cut(path: Path, marker: Path) -> None:
    content = (path / KEYS).read_bytes()
    (path / KEYS).write_bytes(content[:40] + content[60:])
    reseal(path)


BIG = 65_536
DEEP = b"[" * 100_000 + b"]" * 100_000

CORPUS: dict[str, Maker] = {
    **{f"{content.__name__} as {slot}": _in_slot(slot, content) for slot in SLOTS for content in FORMATS},
    "a name that climbs": _named("../../etc/passwd"),
    "a name that climbs to a real file": _outside,
    "an absolute name": _named("/etc/passwd"),
    "a name in a folder": _named("deeper/model.pt"),
    "a name with a backslash": _named("..\\model.pt"),
    "a name with a NUL": _named("model.pt\0.json"),
    "no name": _named(""),
    "the folder itself": _named("."),
    "the folder above": _named(".."),
    "a name too long for a disk": _named("x" * 5000),
    "a name that is the manifest's own": _named(MANIFEST),
    "a name that no file has": _named("weights.bin"),
    "a wrong hash": _entry(sha256="0" * 64),
    "a hash in capitals": _manifest(lambda m: m["files"][MODEL].update(sha256=m["files"][MODEL]["sha256"].upper())),
    "no hash": _entry(sha256=None),
    "a hash that is a list": _entry(sha256=["0" * 64]),
    "a wrong size": _entry(size=1),
    "a size that is a text": _entry(size="all of it"),
    "an entry that is nothing": _manifest(lambda m: m["files"].update({MODEL: None})),
    "files as a list": _manifest(lambda m: m.update(files=list(m["files"]))),
    "no weights in the manifest": _manifest(lambda m: m["files"].pop(MODEL)),
    "another format": _manifest(lambda m: m.update(format="torch")),
    "a format that is a list": _manifest(lambda m: m.update(format=[], format_version={})),
    "a later version": _manifest(lambda m: m.update(format_version=10**6)),
    **{f"a link as {slot}": _link(slot) for slot in SLOTS},
    "a link to nothing": _dangling,
    "a link to itself": _loop,
    "a pipe": _pipe,
    "a folder as a file": _folder,
    "a Python file more": _one_file_more,
    "a header longer than the file": _header({}, length=2**40),
    "a header of 2^63 bytes": _header({}, length=2**63),
    "a header that is no JSON": _header(b"import os"),
    "a header too deep": _header(DEEP),
    "a header that is a list": _header([1, 2]),
    "a tensor beyond the file": _header({"a": _tensor([4], [0, 16])}),
    "a tensor of 2^62 rows": _header({"a": _tensor([2**62, 8], [0, 16])}, bytes(16)),
    "a tensor of no rows and 2^60 columns": _header({"a": _tensor([0, 2**60], [0, 0])}),
    "tensors on each other": _header({"a": _tensor([4], [0, 16]), "b": _tensor([4], [8, 24])}, bytes(24)),
    "a tensor backwards": _header({"a": _tensor([4], [16, 0])}, bytes(16)),
    "negative places": _header({"a": _tensor([4], [-16, 0])}, bytes(16)),
    "negative rows": _header({"a": _tensor([-4], [0, 16])}, bytes(16)),
    "a type that is code": _header({"a": _tensor([4], [0, 16], "os.system")}, bytes(16)),
    "bytes that belong to nobody": _header({"a": _tensor([1], [0, 4])}, bytes(64)),
    "a tensor more": _tensors(lambda tensors: tensors.update(extra=torch.ones(1))),
    "a tensor less": _tensors(lambda tensors: tensors.popitem()),
    "tensors of another type": _tensors(lambda t: t.update({name: value.double() for name, value in t.items()})),
    "a width beyond memory": _config(width=BIG, max_length=BIG),
    "a width beyond bounds": _config(width=10**12),
    "blocks without end": _of_many_layers,
    "as many blocks as are allowed": _config(blocks=1024),
    "steps without end": _described(config={"model": "adrec", "steps": 10**15}),
    "followers beyond memory": _described(config={"model": "bigram", "followers": BIG}, catalogue=2**31 - 1),
    "a catalogue beyond memory": _described(catalogue=2**31 - 1),
    "a catalogue beyond bounds": _described(catalogue=10**30),
    "a catalogue that is a float": _described(catalogue=6.0),
    "a catalogue that is a text": _described(catalogue="6"),
    "a catalogue that is true": _described(catalogue=True),
    "a field beyond memory": _ranking([_field(size=2**31 - 1)], embedding_width=BIG),
    "a field of 4 GiB": _ranking([_field(size=2**26)]),
    "a field beyond bounds": _ranking([_field(size=2**62)]),
    "a field whose size is a text": _ranking([_field(size="5")]),
    "a field that is no mapping": _ranking(["a"]),
    "a field with a setting more": _ranking([_field(run="os.system")]),
    "fields without end": _ranking([_field(name=str(number)) for number in range(5000)]),
    "layers beyond memory": _ranking([_field()], hidden=[BIG] * 64),
    "layers without end": _ranking([_field()], hidden=[1] * 100_000),
    "crosses beyond memory": _ranking([_field()], model="dcnv2", embedding_width=BIG, crosses=1024),
    "a model that is a module": _described(config={"model": "os.system"}),
    "a kind that is no text": _described(kind={"sequence": 1}),
    "a lineage that is no version": _described(lineage={"sequences": "latest"}),
    "a vocabulary hash that is a list": _described(vocabulary_hash=["x"]),
    "a description too deep": _text(b'{"format_version": 2, "config": ' + DEEP + b"}"),
    "a number too long": _text(b'{"format_version": ' + b"9" * 5000 + b"}"),
    "a description with NaN": _text(b'{"format_version": NaN}'),
    "a description of 65 MiB": _text(b'{"a": "' + b"x" * (65 * 2**20) + b'"}'),
    "a description that is no text": _text(b"\xff\xfe{}"),
    "a description that is a list": _text(b"[]"),
    "a vocabulary without keys": _vocabulary(VOCABULARY.drop(["key"])),
    "a vocabulary of other types": _vocabulary(VOCABULARY.set_column(1, "index", pa.array([2.0, 3, 4, 5]))),
    "a vocabulary that is a bomb": _bomb,
    "a vocabulary that was cut": _cut,
}
