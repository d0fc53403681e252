"""What holds the house up: import floors, no unsafe loading, nothing stray, configuration without heavy imports.

Each rule is a function from a file's syntax tree to what breaks it, tried on bad source first.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("infra", "featurize", "train", "evaluate", "pipelines")
MAX_LINES = 500

BELOW = {
    "infra": set(),
    "featurize": {"infra"},
    "train": {"infra"},
    "evaluate": {"infra", "featurize", "train"},
    "pipelines": {"infra", "featurize", "train", "evaluate"},
}
"""From each package: those of ours that it may import."""

NEVER = {"featurize": {"torch", "ray", "mlflow"}, "train": {"pyspark"}}

ENTRY_SCRIPTS = {"featurize/submit.py": {"pipelines"}}
"""What spark-submit runs is a door to the top floor, not a part of its own: nobody imports it (a test holds that)."""

HEAVY = {"torch", "ray", "mlflow", "pyspark"}
"""Imported at the top of a file only inside the stage that lives on it; in infra and pipelines inside functions."""

TOP_LEVEL = {
    *("pipelines", "featurize", "train", "evaluate", "infra", "tests", "pyproject.toml", "README.md"),
    *("Makefile", "constraints.txt", ".ci", "LICENSE", "CHANGELOG.md", ".gitignore"),
}

BY_NAME = {"importlib.import_module", "import_module", "__import__"}

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "np.load", "numpy.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load"),
    *("pd.read_pickle", "pandas.read_pickle"),
}
UNSAFE_KEYWORDS = {"shell": True, "allow_pickle": True, "weights_only": False}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST) -> Iterator[str]:
    """The top-level name of every module that a tree imports, wherever in the file."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level and child.module:
            yield child.module.partition(".")[0]
        elif isinstance(child, ast.Call) and dotted(child.func) in BY_NAME:
            yield from (str(a.value).partition(".")[0] for a in child.args[:1] if isinstance(a, ast.Constant))


def names_of_modules(node: ast.AST) -> set[str]:
    """Every dotted name that a tree imports: modules, and what is taken out of them."""
    plain = {a.name for n in ast.walk(node) if isinstance(n, ast.Import) for a in n.names}
    taken = [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom) and n.module]
    return plain | {n.module for n in taken if n.module} | {f"{n.module}.{a.name}" for n in taken for a in n.names}


def imported_when_loaded(node: ast.AST) -> Iterator[str]:
    """As `imported`, without what stands in functions and in `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and dotted(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from imported(other)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield from imported(child)
        else:
            yield from imported_when_loaded(child)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def floor_violations(package: str, tree: ast.Module) -> set[str]:
    ours = {*PACKAGES, "tests"} - BELOW[package] - {package}
    return set(imported(tree)) & (ours | NEVER.get(package, set()))


def unsafe(tree: ast.Module) -> list[str]:
    """Loading that can run a stranger's code, and commands put together as text."""
    found = sorted(set(imported(tree)) & UNSAFE_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in UNSAFE_CALLS]
        if isinstance(node, ast.Call):
            if dotted(node.func) in UNSAFE_CALLS:
                found.append(dotted(node.func))
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in UNSAFE_KEYWORDS and value is UNSAFE_KEYWORDS[keyword.arg]:
                    found.append(f"{keyword.arg}={value}")
    return found


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("featurize", "from train import protocol", {"train"}),
        ("train", "import featurize.jobs as j", {"featurize"}),
        ("train", "def f():\n    from pyspark.sql import functions", {"pyspark"}),
        ("featurize", "def f():\n    import torch.nn, ray", {"torch", "ray"}),
        ("featurize", "import importlib\nimportlib.import_module('mlflow.pyfunc')", {"mlflow"}),
        ("infra", "if TYPE_CHECKING:\n    from evaluate import x", {"evaluate"}),
        ("evaluate", "from pipelines import cli", {"pipelines"}),
        ("pipelines", "from tests.helpers import x", {"tests"}),
        ("evaluate", "import featurize, train, infra, mlflow", set()),
        ("train", "import torch, ray\nfrom infra.tables import Kind\nfrom . import losses", set()),
    ],
)
def test_the_floor_rule_sees_every_form_of_import(package: str, source: str, expected: set[str]) -> None:
    assert floor_violations(package, ast.parse(source)) == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_a_floor_imports_only_from_floors_below(package: str) -> None:
    found = {str(p.relative_to(ROOT)): floor_violations(package, tree_of(p)) for p in sources(package)}
    assert not {path: names for path, names in found.items() if names - ENTRY_SCRIPTS.get(path, set())}


@pytest.mark.parametrize(
    "source",
    ["from featurize import submit", "def f():\n    import featurize.submit", "from featurize.submit import main"],
)
def test_the_entry_rule_sees_every_form_of_import(source: str) -> None:
    assert "featurize.submit" in names_of_modules(ast.parse(source))


def test_nobody_imports_an_entry_script() -> None:
    modules = {path.removesuffix(".py").replace("/", ".") for path in ENTRY_SCRIPTS}
    assert not [p for p in sources(*PACKAGES) if names_of_modules(tree_of(p)) & modules]


def test_relative_imports_stay_inside_their_package() -> None:
    broken = []
    for path in sources(*PACKAGES):
        depth = len(path.relative_to(ROOT).parts) - 1
        levels = [n.level for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom)]
        broken += [str(path.relative_to(ROOT)) for level in levels if level > depth]
    assert not broken


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", {"torch"}),
        ("try:\n    import ray\nexcept ImportError:\n    ray = None", {"ray"}),
        ("class A:\n    import mlflow", {"mlflow"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyspark", set()),
        ("def f():\n    import torch", set()),
    ],
)
def test_the_heavy_rule_tells_loading_from_calling(source: str, expected: set[str]) -> None:
    assert set(imported_when_loaded(ast.parse(source))) & HEAVY == expected


@pytest.mark.parametrize("package", ["infra", "pipelines"])
def test_heavy_imports_wait_until_they_are_needed(package: str) -> None:
    paths = sources(package)
    broken = {str(p.relative_to(ROOT)): v for p in paths if (v := set(imported_when_loaded(tree_of(p))) & HEAVY)}
    assert not broken


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("def f():\n    from joblib import load", ["joblib"]),
        ("state = torch.load(path, weights_only=True)", ["torch.load"]),
        ("from torch import load", ["torch.load"]),
        ("yaml.load(text, Loader=L)", ["yaml.load"]),
        ("eval('1')", ["eval"]),
        ("subprocess.run(command, shell=True)", ["shell=True"]),
        ("read(path, allow_pickle=True)", ["allow_pickle=True"]),
        ("model.eval()\nyaml.safe_load(text)\nsubprocess.run(c, shell=False)\njson.load(f)", []),
    ],
)
def test_the_loading_rule_sees_what_it_should(source: str, expected: list[str]) -> None:
    assert unsafe(ast.parse(source)) == expected


def test_nothing_loads_code_with_data() -> None:
    broken = {str(p.relative_to(ROOT)): v for p in sources(*PACKAGES) if (v := unsafe(tree_of(p)))}
    assert not broken


def test_no_file_is_too_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sources(*PACKAGES, "tests")}
    assert len(lengths) > len(PACKAGES)
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_only_agreed_names_at_the_top_level() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {name.partition("/")[0] for name in listing.split("\0") if name}
    assert set(PACKAGES) <= names
    assert names <= TOP_LEVEL


@pytest.mark.parametrize(
    "module",
    ["train.configs", "infra.config", "infra.tables", "infra.java", "infra.spark", "infra.cluster", "infra.doctor"],
)
def test_configuration_imports_without_the_heavy_packages(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
