"""Configuration is data: frozen pydantic models, unknown keys refused, one YAML file per recipe.

Nothing here knows what is configured; the models stand beside the code that reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ConfigError


class Settings(BaseModel):
    """Base of every configuration model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=Settings)


def load(path: str | Path, model: type[S], overrides: Iterable[str] = ()) -> S:
    """Read `path` as YAML, apply `a.b=c` overrides, and validate against `model`.

    Raises ConfigError naming the file and each wrong field.
    """
    data = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    return parse(data, model, where=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The YAML mapping in `path`; ConfigError names the file (and line) when it is not one."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings at the top, found {type(data).__name__}")
    return data


def parse(data: Mapping[str, Any], model: type[S], where: str) -> S:
    """Validate `data`; a ConfigError lists every wrong field as `where: a.b: message`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
            hint = (
                "unknown setting; remove it or check its spelling"
                if problem["type"] == "extra_forbidden"
                else problem["msg"]
            )
            lines.append(f"{where}: {field}: {hint}")
        raise ConfigError("\n".join(lines)) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in place; the value is read as YAML, a number in the path indexes a list.

    >>> recipe = {"training": {"epochs": 3}, "baselines": [{"model": "sasrec"}]}
    >>> apply_override(recipe, "training.epochs=5"); apply_override(recipe, "baselines.0.model=popularity")
    >>> recipe
    {'training': {'epochs': 5}, 'baselines': [{'model': 'popularity'}]}
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, override)]
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override!r}: {part!r} holds a single value, not settings")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"--set {override!r}: {part!r} must be a position from 0 to {len(node) - 1}")
    return int(part)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks; equal values have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
