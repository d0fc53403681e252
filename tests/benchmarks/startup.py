"""How long `logs2rec --help` takes, beside an empty Python process (promise: under 0.5 s)."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.harness import report, seconds


def main() -> None:
    """Figures: help_seconds, ratio_to_python."""
    commands = {"help": ["-m", "pipelines.cli", "--help"], "python": ["-c", "pass"]}
    taken = {
        name: seconds(lambda c=c: subprocess.run([sys.executable, *c], check=True, capture_output=True))  # type: ignore[misc]
        for name, c in commands.items()
    }
    report("startup", {"help_seconds": taken["help"], "ratio_to_python": taken["help"] / taken["python"]})


if __name__ == "__main__":
    main()
