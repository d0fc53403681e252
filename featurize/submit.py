"""The script for spark-submit: one Spark stage, exactly as `logs2rec stage` carries it out.

    make package
    spark-submit --master MASTER --py-files build/logs2rec.zip featurize/submit.py STAGE --config RECIPE ...

Options after STAGE, output, exit codes, tables and ledger are those of `logs2rec stage`. What spark-submit
is told (--master, --conf, ...) wins over the recipe's `spark` section; see infra.spark.session.

Nothing imports this file. It stands beside the jobs it submits and steers them through the command line,
three floors up: the one exception to the import floors, which their test knows by name.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

_SCRIPT = Path(__file__).resolve()


def main(arguments: list[str]) -> None:
    """Carry out the stage and exit as `logs2rec stage` does; with 2 when it is no stage of Spark's."""
    _find_packages()
    from pipelines import cli
    from pipelines.run import DATA_STAGES, STAGES

    if other := [word for word in arguments if word in STAGES and word not in DATA_STAGES]:
        _refuse(f"stage {other[0]!r} needs no Spark: use `logs2rec stage`, or submit one of {', '.join(DATA_STAGES)}")
    cli.main(["stage", *arguments])


def _find_packages() -> None:
    """The packages of --py-files, else the installed ones, else those of the checkout that the script lies in."""
    # Python puts the script's folder first: the modules of featurize would be top-level ones, and hide others.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _SCRIPT.parent]
    if importlib.util.find_spec("pipelines") is None:
        sys.path.append(str(_SCRIPT.parent.parent))
    if importlib.util.find_spec("pipelines") is None:
        _refuse("the packages of logs2rec are not here: say --py-files logs2rec.zip (`make package` builds it)")


def _refuse(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": problem, "kind": "UsageError", "exit_code": 2}))
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
