"""logs2rec.zip: the packages as `spark-submit --py-files` ships them to the driver and to every executor.

Equal sources give equal bytes: entries in order of name, one fixed time, stored uncompressed (the bytes of a
compressed entry depend on the zlib at hand). Build it with `make package`, or `python -m infra.archive FILE`.
"""

from __future__ import annotations

import io
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from infra.ledger import code_version

PACKAGES = ("evaluate", "featurize", "infra", "pipelines", "train")
"""The driver's command line reads whole recipes, models and gates included; executors import featurize and infra."""

ROOT = Path(__file__).resolve().parent.parent

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold


def build(path: Path, revision: str | None = None) -> Path:
    """Write the archive of this checkout to `path` and return it.

    `revision` is what the ledger will call the code (default: this checkout's git revision).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({**_sources(), **_metadata(revision or code_version())}.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, on every system
            archive.writestr(entry, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def _sources() -> dict[str, bytes]:
    """Name in the archive -> content, of every Python file and recipe of the packages."""
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in _files()}


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in {".py", ".yaml"} and path.is_file():
                yield path


def _metadata(revision: str) -> dict[str, bytes]:
    """What the archive says of itself: its version to importlib.metadata, its revision to infra.ledger."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = f"{name}-{version}.dist-info"
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        "infra/REVISION": revision.encode(),
    }


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
