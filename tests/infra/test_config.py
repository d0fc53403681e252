"""Configuration: what is refused and how it is said, overrides, and digests that stay the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.config import Settings, apply_override, canonical_json, digest, load, parse, read_yaml
from infra.errors import ConfigError


class Training(Settings):
    epochs: int = 3
    rate: float = 0.1


class Recipe(Settings):
    name: str
    training: Training = Training()
    baselines: tuple[Training, ...] = ()


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe_file(folder, text), Recipe, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_file_with_overrides_becomes_the_model(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "name: ünï\ntraining: {epochs: 5}\nbaselines: [{rate: 1}, {}]\n")
    got = load(path, Recipe, ["training.rate=1e-3", "baselines.1.epochs=7", "name=other"])
    assert got == Recipe(
        name="other", training=Training(epochs=5, rate=0.001), baselines=(Training(rate=1.0), Training(epochs=7))
    )


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(name="a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("name: a\nepoch: 3", "epoch", "unknown setting"),
        ("name: a\ntraining: {epocs: 3}", "training.epocs", "unknown setting"),
        ("name: a\ntraining: {epochs: many}", "training.epochs", "valid integer"),
        ("name: a\ntraining: {epochs: 2.5}", "training.epochs", "valid integer"),
        ("name: a\ntraining: {rate: .nan}", "training.rate", "finite"),
        ("name: a\ntraining: {rate: .inf}", "training.rate", "finite"),
        ("name: 3", "name", "valid string"),
        ("name: a\nbaselines: [{}, {rate: x}]", "baselines.1.rate", "valid number"),
        ("training: {}", "name", "required"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, text: str, field: str, words: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: {field}: ")
    assert words in message


def test_every_wrong_field_is_listed(tmp_path: Path) -> None:
    lines = refused(tmp_path, "name: 3\ntraining: {epochs: x, wrong: 1}").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["name", "training.epochs", "training.wrong"]


def test_errors_across_fields_name_the_whole_file() -> None:
    with pytest.raises(ConfigError, match=r"here: \(whole file\): .*dictionary"):
        parse([1], Recipe, "here")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\ntraining: [1", "line 2"),
        ("name: a\nname: b", "'name' is there twice"),
        ("name: a\ntraining:\n  epochs: 1\n  epochs: 2", "line 4"),
        ("name: a\ndate: 2026-02-30", "day is out of range"),
        ("a: b: c", "line 1"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("- 1", "found list"),
        ("", "found NoneType"),
        ("just text", "found str"),
    ],
)
def test_what_is_not_one_yaml_mapping_is_refused_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_merged_defaults_are_no_duplicates(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "a: &a {x: 1}\nb: {c: &b {<<: *a, x: 2}}\nd: {<<: *b, x: 3}\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"c": {"x": 2}}, "d": {"x": 3}}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text \(byte 3\)"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [1, {"x": 1}], "n": None}),
        ("a.c.d=yes", {"a": {"b": 1, "c": {"d": True}}, "l": [1, {"x": 1}], "n": None}),
        ("n.m=[1, two]", {"a": {"b": 1}, "l": [1, {"x": 1}], "n": {"m": [1, "two"]}}),
        ("l.1.x=null", {"a": {"b": 1}, "l": [1, {"x": None}], "n": None}),
        ("l.0={k: v}", {"a": {"b": 1}, "l": [{"k": "v"}, {"x": 1}], "n": None}),
        ("a=", {"a": None, "l": [1, {"x": 1}], "n": None}),
        ("new=a=b", {"a": {"b": 1}, "l": [1, {"x": 1}], "n": None, "new": "a=b"}),
    ],
)
def test_an_override_sets_one_place(override: str, expected: dict[str, Any]) -> None:
    data: dict[str, Any] = {"a": {"b": 1}, "l": [1, {"x": 1}], "n": None}
    apply_override(data, override)
    assert data == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a.b", "expected a.b=value"),
        ("=1", "expected a.b=value"),
        ("a..b=1", "expected a.b=value"),
        (".a=1", "expected a.b=value"),
        ("a.=1", "expected a.b=value"),
        ("a.b=[1", "not valid YAML"),
        ("a.b=x: y: z", "not valid YAML"),
        ("a.b=2026-02-30", "not valid YAML"),
        ("a.b.c=1", "'b' holds a single value"),
        ("l.0.x=1", "'0' holds a single value"),
        ("l.0.x.y=1", "'0' holds a single value"),
        ("l.2=1", "'2' is no position in a list of 2"),
        ("l.2.x=1", "'2' is no position in a list of 2"),
        ("l.-1=1", "'-1' is no position"),
        ("l.x=1", "'x' is no position"),
        ("l.²=1", "'²' is no position"),
        ("e.0=1", "'0' is no position in a list of 0"),
        ("e.0.x=1", "'0' is no position in a list of 0"),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override({"a": {"b": 1}, "l": [1, {"x": 1}], "e": []}, override)
    assert repr(override) in str(caught.value)
    assert words in str(caught.value)


def test_an_override_leaves_the_other_places_of_an_alias(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "name: a\ntraining: &t {epochs: 5}\nbaselines: [*t]\n")
    got = load(path, Recipe, ["training.epochs=9"])
    assert (got.training.epochs, got.baselines[0].epochs) == (9, 5)


def test_a_value_from_an_override_is_validated_too(tmp_path: Path) -> None:
    assert "training.epochs: " in refused(tmp_path, "name: a", "training.epochs=x")
    assert "trainig: unknown setting" in refused(tmp_path, "name: a", "trainig.epochs=1")


def test_canonical_json_by_hand() -> None:
    recipe = Recipe(name="ü", baselines=(Training(epochs=1),))
    text = '{"baselines":[{"epochs":1,"rate":0.1}],"name":"ü","training":{"epochs":3,"rate":0.1}}'
    assert canonical_json(recipe) == text
    assert digest(recipe) == hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def test_digests_are_what_they_always_were() -> None:
    # printf '%s' '{"a":[1,null],"b":"x"}' | sha256sum
    assert digest({"b": "x", "a": [1, None]}) == "3dece6dc8d22d616"


def test_equal_settings_have_equal_digests(tmp_path: Path) -> None:
    one = load(recipe_file(tmp_path, "name: a\ntraining: {rate: 1, epochs: 3}"), Recipe)
    two = load(recipe_file(tmp_path, "training: {rate: 1.0}\nname: a"), Recipe)
    assert digest(one) == digest(two)
    assert digest(one) != digest(Recipe(name="a"))
