"""What runs inside Spark tasks needs only pyspark, pyarrow and deltalake (and numpy).

A function of a module is looked up on the executor by the module's name; only one made inside another travels
whole, and with it the names of what it calls. So the modules that shipped functions name, and all that these
import, must be importable there. tests/featurize/test_submit.py sees them run.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.featurize.submitting import EXECUTOR_PACKAGES, closure
from tests.test_layers import PACKAGES, ROOT, dotted, imported, sources, tree_of

SHIPS = {
    *("mapInArrow", "mapInPandas", "applyInArrow", "applyInPandas", "mapPartitions", "mapPartitionsWithIndex"),
    *("foreachPartition", "udf", "pandas_udf", "arrow_udf", "udtf", "arrow_udtf"),
    "each",  # featurize.delta's
}
"""Methods and functions that hand a function to executors."""

THERE = closure(*EXECUTOR_PACKAGES)
ABSENT = {m for m, names in packages_distributions().items() if not THERE & {*map(canonicalize_name, names)}}
ABSENT -= set(PACKAGES)
"""Whatever else is installed here."""

LOAD = """
import json, sys
sys.path.insert(0, {root!r})

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"an executor has no {{name}}", name=name)

sys.meta_path.insert(0, Absent())
import {module}
print(json.dumps(sorted(sys.modules)))
"""


def shipped(tree: ast.Module) -> Iterator[ast.AST]:
    """What a module hands to executors: the arguments of such calls, and the functions they name."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _last(call.func) in SHIPS:
            for argument in [*call.args, *(k.value for k in call.keywords)]:
                yield argument
                named = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
                yield from (f for f in functions if f.name in named)


def reached(module: str, tree: ast.Module) -> set[str]:
    """Those of our modules that an executor imports to run what `module` hands to it."""
    origin = {n.name: module for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(_without_types(tree)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                origin[alias.asname or alias.name] = name if _file(name).is_file() else node.module
    names = {n.id for function in shipped(tree) for n in ast.walk(function) if isinstance(n, ast.Name)}
    return {origin[name] for name in names & set(origin)}


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else dotted(node)


def _without_types(tree: ast.Module) -> ast.Module:
    kept = [n for n in tree.body if not (isinstance(n, ast.If) and dotted(n.test).endswith("TYPE_CHECKING"))]
    return ast.Module(kept, [])


def _file(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def executor_modules() -> list[str]:
    """Every module that a shipped function of ours names."""
    paths = sources("infra", "featurize")
    return sorted(set().union(*(reached(_module(path), tree_of(path)) for path in paths)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("frame.mapInArrow(task, s)\ndef task(b): ...", {"here"}),
        ("def write(frame):\n    def task(b): return b\n    frame.mapInArrow(task, s)", set()),
        ("def f(frame):\n    def task(b): return g(b)\n    frame.mapInArrow(task, s)\ndef g(b): ...", {"here"}),
        ("from infra.disk import sync\nframe.groupBy('u').applyInArrow(lambda t: sync(t), s)", {"infra.disk"}),
        ("from infra import disk as d\nrdd.mapPartitions(f=lambda t: d.sync(t))", {"infra.disk"}),
        ("from infra.disk import sync\ndelta.each(spark, 3, lambda n: sync(n))", {"infra.disk"}),
        ("from infra.disk import sync\nsync(1)\nframe.mapInArrow(other, s)", set()),
        ("def f(frame):\n    frame.select(1).mapInArrow(make(1), s)\ndef make(k):\n    return lambda b: b", {"here"}),
    ],
)
def test_the_rule_finds_what_executors_import(source: str, expected: set[str]) -> None:
    assert reached("here", ast.parse(source)) == expected


def test_the_rule_finds_the_writer_and_the_parser() -> None:
    assert {"featurize.delta", "featurize.rows", "featurize.streams"} <= set(executor_modules())


@pytest.mark.parametrize("module", executor_modules())
def test_executors_need_only_pyspark_pyarrow_and_deltalake(module: str) -> None:
    code = LOAD.format(root=str(ROOT), absent=ABSENT, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    loaded = [_file(name) for name in json.loads(done.stdout) if name.partition(".")[0] in PACKAGES]
    later = {str(p.relative_to(ROOT)): set(imported(tree_of(p))) & ABSENT for p in loaded if p.is_file()}
    assert not {name: names for name, names in later.items() if names}
