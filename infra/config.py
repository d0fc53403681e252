"""Configuration is data: frozen pydantic models, unknown keys refused, one YAML file per recipe.

Nothing here knows what is configured; the models stand beside the code that reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ConfigError


class Settings(BaseModel):
    """Base of every configuration model: immutable; an unknown key, NaN or infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


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
        data = _yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-30
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
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r}: expected a.b=value")
    try:
        value = _yaml(text, "--set")
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from None
    assign(data, key, value, where=f"--set {override!r}")


def assign(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value at the dotted name `key` in place; `where` opens the message of a ConfigError.

    >>> recipe = {"training": {"epochs": 3}}
    >>> assign(recipe, "training.seed", 7, where="plan.yaml"); recipe
    {'training': {'epochs': 3, 'seed': 7}}
    """
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        place = _place(node, part, where)
        child = node[place] if isinstance(node, list) else node.get(place)
        if child is not None and not isinstance(child, dict | list):
            raise ConfigError(f"{where}: {part!r} holds a single value, not settings")
        node[place] = {} if child is None else copy(child)  # a copy: a YAML alias stands in several places
        node = node[place]
    node[_place(node, last, where)] = value


def _place(node: dict[str, Any] | list[Any], part: str, where: str) -> Any:
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f"{where}: {part!r} is no position in a list of {len(node)}, counted from 0")
    return int(part)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error: plain YAML silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _yaml(text: str, name: str) -> Any:
    loader = _Loader(text)
    loader.name = name  # what its messages call the text
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks; equal values have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
