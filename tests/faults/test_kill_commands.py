"""SIGKILL of the commands that make again what is published, at any moment; then the same command again."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.faults.disturbance import REPETITIONS, drawn, fresh, killed, killed_at, rows_of
from tests.pipelines.commands import RECIPES, logs2rec

pytestmark = pytest.mark.fault

COMMANDS = {
    "backfill": ["backfill", "--from", "2026-01-04", "--to", "2026-01-05", "--stage", "sequences"],
    "rebuild": ["stage", "events", "--rebuild"],
    "rekey": ["rekey"],
}
KEYS = "the first key of this log\n", "the second key of this log\n"


@dataclass(frozen=True)
class Undisturbed:
    """A workspace as a command finds it, what it leaves there if nobody disturbs it, and how long that takes."""

    before: Path
    after: dict[str, list[str]]
    seconds: float


def place(folder: Path, raw: Path, keys: str) -> Path:
    """A recipe whose contract calls the users personal."""
    recipe = fresh(folder, raw, contract="contract.yaml", pseudonyms={"key_file": str(folder / "key")})
    contract = yaml.safe_load((RECIPES / "contracts" / "simulator.yaml").read_text())
    (folder / "contract.yaml").write_text(yaml.safe_dump({**contract, "personal": True}))
    (folder / "key").write_text(keys)
    (folder / "key").chmod(0o600)
    return recipe


@pytest.fixture(scope="module")
def first_days(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as the day finds it that the backfill begins with; sequences need three days to split."""
    recipe = place(tmp_path_factory.mktemp("first") / "run", raw, KEYS[0])
    day = "2026-01-03"
    done = logs2rec("backfill", "--config", recipe, "--from", day, "--to", day, "--stage", "sequences")
    assert done.code == 0, done.stderr
    return recipe.parent / "workspace"


def published(workspace: Path, command: str) -> dict[str, list[str]]:
    """Rows of all tables and the units in the ledger; a rebuild may have published some of these before it died."""
    rows = rows_of(workspace)
    return {**rows, "runs": sorted(set(rows["runs"]))} if command == "rebuild" else rows


def prepared(folder: Path, raw: Path, before: Path, command: str) -> Path:
    recipe = place(folder, raw, "".join(KEYS) if command == "rekey" else KEYS[0])
    shutil.copytree(before, folder / "workspace")
    return recipe


@pytest.fixture(scope="module", params=COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(command: str, raw: Path, first_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    recipe = prepared(tmp_path_factory.mktemp(command) / "run", raw, first_days, command)
    started_at = time.monotonic()
    done = logs2rec(*COMMANDS[command], "--config", recipe)
    assert done.code == 0, done.stderr
    return Undisturbed(first_days, published(recipe.parent / "workspace", command), time.monotonic() - started_at)


def test_killed_before_the_ledger(command: str, undisturbed: Undisturbed, raw: Path, tmp_path: Path) -> None:
    """Tables are committed, and the ledger does not say so."""
    recipe = prepared(tmp_path / "run", raw, undisturbed.before, command)
    before = published(recipe.parent / "workspace", command)
    killed_at("between_commits_and_ledger", "", *COMMANDS[command], "--config", recipe)
    assert published(recipe.parent / "workspace", command) == before
    again = logs2rec(*COMMANDS[command], "--config", recipe)
    assert again.code == 0, again.stderr
    assert published(recipe.parent / "workspace", command) == undisturbed.after


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_at_any_moment(
    command: str, undisturbed: Undisturbed, raw: Path, tmp_path: Path, repetition: int
) -> None:
    seconds = drawn(repetition, command).uniform(0.3, 0.95) * undisturbed.seconds

    def prepare(folder: Path) -> Path:
        return prepared(folder, raw, undisturbed.before, command)

    recipe = killed(COMMANDS[command], prepare, tmp_path, seconds)
    again = logs2rec(*COMMANDS[command], "--config", recipe)
    assert again.code == 0, again.stderr
    assert published(recipe.parent / "workspace", command) == undisturbed.after
