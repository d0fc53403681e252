"""The command line. Results on stdout (with --json the last line is one JSON object), progress on stderr.

Exit codes: 0 done, 1 internal failure, 2 wrong use or configuration, 3 data refused, 4 gate held.
Everything heavy is imported inside the command that needs it: `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.errors import GateHeld, Logs2RecError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.context import Context, Step

app = typer.Typer(
    help="From raw interaction logs to a registered recommender.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Config = Annotated[Path, typer.Option("--config", "-c", help="Recipe (YAML).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value. Repeatable.")]
First = Annotated[str | None, typer.Option("--from", help="First arrival date to ingest, YYYY-MM-DD.")]
Last = Annotated[str | None, typer.Option("--to", help="Last arrival date to ingest; also the run date.")]
Json = Annotated[bool, typer.Option("--json", help="Last line of stdout is one JSON object.")]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="Make the data again in full, published or not.")]
RoleName = Annotated[str | None, typer.Option("--role", help="retrieval or ranking; both if left out.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be empty or absent.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 1500,
    items: Annotated[int, typer.Option(help="Number of items.")] = 400,
    days: Annotated[int, typer.Option(help="Number of arrival days.")] = 10,
    seed: Annotated[int, typer.Option(help="Same arguments, same bytes.")] = 0,
    bots: Annotated[float, typer.Option(help="Share of the users who are bots.")] = 0.005,
    hot_user: Annotated[float, typer.Option(help="Share of all events that one user has.")] = 0.0,
    schema_change: Annotated[
        int | None, typer.Option(metavar="DAY", help="First arrival day (2 or later) whose files have a new schema.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write raw logs with known structure and known defects, and truth.json with the planted counts."""
    from featurize.simulate import simulate as write

    truth = write(
        out,
        users=users,
        items=items,
        days=days,
        seed=seed,
        bots=bots,
        hot_user=hot_user,
        schema_change=schema_change,
    )
    bad = sum(truth["quarantined"].values())
    typer.echo(
        f"{out}: {truth['rows']:,} rows on {days} days: {truth['events']:,} events ({truth['late']:,} late), "
        f"{truth['duplicates']:,} duplicates, {bad:,} bad"
    )
    _finish(truth, as_json)


@app.command()
def run(
    config: Config,
    first: First = None,
    last: Last = None,
    rebuild: Rebuild = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Every stage that is not published yet, in order: raw logs to a registered, promoted model."""
    from pipelines.run import STAGES
    from pipelines.run import run as carry_out
    from pipelines.summary import show

    with _context(config, overrides, first, last, len(STAGES) + 4, rebuild) as ctx:
        outcome = carry_out(ctx)
        show(outcome, _truth(ctx))
    _finish(outcome.as_json(), as_json)
    _held(outcome.held)


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(help="events, vocabularies, histories, sequences, samples, train, evaluate, register, promote."),
    ],
    config: Config,
    first: First = None,
    last: Last = None,
    rebuild: Rebuild = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """One stage, over whatever is published in front of it."""
    from pipelines.context import MODEL_STAGES
    from pipelines.run import STAGES
    from pipelines.run import run as carry_out

    if name not in STAGES:
        raise UsageError(f"stage {name!r}: choose one of {', '.join(STAGES)}")
    if rebuild and name in MODEL_STAGES:
        raise UsageError(f"--rebuild is for data stages, and {name} follows them by itself; leave it out")
    with _context(config, overrides, first, last, 1, rebuild) as ctx:
        ctx.only = name
        outcome = carry_out(ctx)
    mine = [s for s in outcome.stages if s["unit"].partition(":")[0] == name]
    for step in mine:
        typer.echo(f"{step['unit']} {step['date']}: {step['status']} {json.dumps(step['outputs'])}")
    _finish(outcome.as_json(), as_json)
    _held(outcome.held if name == "promote" else [])


@app.command()
def backfill(
    config: Config,
    first: Annotated[str, typer.Option("--from", help="First arrival date to make, YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", help="Last arrival date to make.")],
    stage: Annotated[str | None, typer.Option(help="Up to this stage; all data stages if left out.")] = None,
    rebuild: Rebuild = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Past days, one after the other, each as `run --to DAY` would have made it; published ones are skipped."""
    from pipelines.backfill import backfill as carry_out
    from pipelines.run import STAGES

    if stage is not None and stage not in STAGES:
        raise UsageError(f"stage {stage!r}: choose one of {', '.join(STAGES)}")
    done: list[dict[str, Any]] = []

    def tell(day: str, steps: Sequence[Step]) -> None:
        for step in steps:
            typer.echo(f"{day} {step.unit}: {step.status} {json.dumps(step.outputs)}")
            done.append(step.__dict__)

    with _context(config, overrides, first, last, 1, rebuild) as ctx:
        carry_out(ctx, first, last, stage, tell)
    _finish({"from": first, "to": last, "run_id": ctx.run_id, "units": done}, as_json)


@app.command()
def status(config: Config, overrides: Set = None, as_json: Json = False) -> None:
    """What is published, per stage and date, with versions and lineage; aliases and promotions."""
    from pipelines.status import status as look

    with _context(config, overrides, None, None, 1) as ctx:
        found = look(ctx)
    for row in found["published"]:
        typer.echo(f"{row['published_at']}  {row['date']:<10}  {row['unit']:<28} {json.dumps(row['outputs'])}")
        typer.echo(f"{'':<39}from {json.dumps(row['inputs'])}")
    for entry in found["contracts"]:
        typer.echo(f"contract version {entry['version']}: arrivals {', '.join(entry['arrivals']) or 'none any more'}")
        for change in entry["changes"]:
            typer.echo(f"  {change}")
    for name, aliases in found["aliases"].items():
        typer.echo(f"{name}: " + ", ".join(f"{a} {v or '-'}" for a, v in aliases.items()))
    for name, entry in found["moved_by_hand"].items():
        typer.echo(
            f"{name}: champion is version {entry['champion'] or '-'}, the record says {entry['recorded'] or '-'}: it "
            "was moved by hand, or a command died; `promote` or `rollback` sets it right"
        )
    if not found["published"]:
        typer.echo("Nothing is published yet.")
    _finish(found, as_json)


@app.command("data-report")
def data_report(
    config: Config, first: First = None, last: Last = None, overrides: Set = None, as_json: Json = False
) -> None:
    """Each arrival's rows, missing rates, new users and items, drift and warnings: a table, JSON and a page."""
    from pipelines.data_report import UNIT, build, show
    from pipelines.event_stages import events

    with _context(config, overrides, first, last, 1) as ctx:
        ctx.only = UNIT
        reports = build(ctx, events(ctx))
    show(reports)
    _finish({"reports": [r.content for r in reports]}, as_json)


@app.command()
def vacuum(
    config: Config,
    apply: Annotated[bool, typer.Option("--apply", help="Remove the files; without it they are only listed.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, help="Hours; nothing younger goes: three times the longest stage.")
    ] = 24.0,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Days that a publication stays although a newer one took its place.")
    ] = 30.0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Files that no version refers to, and those of versions that neither a model nor the ledger needs."""
    from pipelines.maintenance import show_vacuum
    from pipelines.maintenance import vacuum as clean

    with _context(config, overrides, None, None, 1) as ctx:
        found = clean(ctx, apply=apply, older_than_hours=older_than, keep_days=keep_days)
    show_vacuum(found)
    _finish(found, as_json)


@app.command()
def compact(config: Config, overrides: Set = None, as_json: Json = False) -> None:
    """The record tables into one file each, checkpoints for long logs, new ones for damaged ones; no row changes."""
    from pipelines.maintenance import compact as rewrite

    with _context(config, overrides, None, None, 1) as ctx:
        found = rewrite(ctx)
    for table, done in found["records"].items():
        typer.echo(f"{table}: {done['rows']:,} rows in {done['after']} file(s), {done['before']} before")
    for table, names in found["repaired"].items():
        typer.echo(f"{table}: damaged checkpoint removed: {', '.join(names)}")
    typer.echo(f"Checkpoints made: {', '.join(found['checkpoints']) or 'none were due'}")
    _finish(found, as_json)


@app.command()
def rekey(config: Config, overrides: Set = None, as_json: Json = False) -> None:
    """All tables from the user keys they were written under to those with a new one behind them."""
    from pipelines.rekey import rekey as carry_out
    from pipelines.rekey import show

    with _context(config, overrides, None, None, 1) as ctx:
        found = carry_out(ctx)
    show(found)
    _finish(found, as_json)


@app.command()
def score(
    config: Config,
    date: Annotated[str | None, typer.Option(help="Run date, YYYY-MM-DD; the last arrival's if left out.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """The lists of a run date into the table recommendations, by the champions, for every user with a history."""
    from pipelines.scoring import score as carry_out

    _check_date("--date", date)
    with _context(config, overrides, None, date, 1) as ctx:
        row = carry_out(ctx)
    report = row.report
    typer.echo(
        f"recommendations {row.date}: {report['users']:,} users, {report['lists_full']:,} of them with "
        f"{report['k']} items; rows by source: "
        + ", ".join(f"{source} {count:,}" for source, count in report["rows"].items())
    )
    _finish({"date": row.date, "outputs": dict(row.outputs), **report}, as_json)


@app.command()
def promote(
    config: Config,
    role: RoleName = None,
    force: Annotated[str | None, typer.Option(help="Promote what the gate holds; the reason is kept.")] = None,
    approve: Annotated[str | None, typer.Option(help="Agree, where gate.approval asks; the reason is kept.")] = None,
    to: Annotated[str | None, typer.Option(help="Take the champions to another registry, at this address.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Ask the gate again about the newest registered versions, and move the alias if it agrees."""
    from pipelines.decision import Will
    from pipelines.promotion import promote as decide
    from pipelines.transfer import transfer

    if to is not None and (force, approve) != (None, None):
        raise UsageError("--to takes champions, about which the gate has decided; leave --force and --approve out")
    with _context(config, overrides, None, None, 1) as ctx:
        found = decide(ctx, role, Will(force, approve)) if to is None else transfer(ctx, role, to)
    for entry in found:
        typer.echo(f"{entry['name']} version {entry['version']}: {entry['verdict']}; {'; '.join(entry['reasons'])}")
    _finish({"models": found}, as_json)
    _held([e["name"] for e in found if e["alias"] != "champion"])


@app.command()
def rollback(
    config: Config,
    reason: Annotated[str, typer.Option(help="Why; kept in the promotions table.")],
    role: RoleName = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Point champion back at the version it replaced."""
    from pipelines.promotion import rollback as go_back

    with _context(config, overrides, None, None, 1) as ctx:
        found = go_back(ctx, role, reason)
    for entry in found:
        typer.echo(f"{entry['name']}: champion is version {entry['version']} again (was {entry['from_version']})")
    _finish({"models": found}, as_json)


@app.command()
def replicate(
    model: Annotated[
        str, typer.Option(help="Section of recipes/replicate.yaml (sasrec, adrec, ...) or ranked.yaml (dnn, ...).")
    ],
    data: Annotated[
        Path, typer.Option(help="Folder of a split's sequences.parquet, or, for ranking models, a workspace.")
    ],
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="Of training, of cells taken away, and of the noise at inference."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override config.*, training.*, evaluation.*, planting.*. Repeatable."),
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="Folder to keep and to resume in; if left out, a temporary one.")
    ] = None,
    categories: Annotated[
        Path | None, typer.Option(help="The items' categories, for the lists: Parquet with item, categories.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train and evaluate one model on a published leave-one-out split, or a ranking model on a workspace's samples."""
    from pipelines import ranked
    from pipelines import replicate as sequences
    from pipelines.progress import Progress
    from pipelines.workbench import sections

    if seed is not None and (twice := [name for name in overrides or () if name.split("=")[0].endswith(".seed")]):
        raise UsageError(f"--set {twice[0]}: --seed {seed} says it for all; leave one of them out")
    with Progress(2) as progress:
        if model in (rankings := sections(ranked.SETTINGS)):
            if categories is not None:
                raise UsageError(f"--categories: {model} is a ranking model and makes no lists of items; leave it out")
            found = ranked.replicate(model, data, ranked.settings_of(model, overrides or (), seed), workspace, progress)
            show = ranked.show
        else:
            if model not in (others := sections(sequences.SETTINGS)):
                raise UsageError(f"--model {model!r}: choose one of {', '.join([*others, *rankings])}")
            settings = sequences.settings_of(model, overrides or (), seed)
            found = sequences.replicate(model, data, settings, workspace, progress, categories)
            show = sequences.show
    show(found.summary)
    _finish(found.summary, as_json)


@app.command()
def study(
    plan: Annotated[Path, typer.Option(help="Plan (YAML): splits, seeds and tables, as in recipes/study.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of what was measured; a study goes on where it stopped.")],
    only: Annotated[list[str] | None, typer.Option(help="Measure this row alone. Repeatable.")] = None,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing; write the page again.")] = False,
    as_json: Json = False,
) -> None:
    """Every model of a plan on its splits, over seeds: what is not measured yet, then tables, tests and a page."""
    from pipelines.progress import Progress
    from pipelines.study import show
    from pipelines.study import study as carry_out

    with Progress(1) as progress:
        outcome = carry_out(plan, out, only or (), progress, page_only)
    show(outcome)
    _finish(outcome.__dict__, as_json)
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Recipe whose services to look at.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """The machine and its services: what was found, what is missing, and what to do about it."""
    from infra.doctor import examine

    if config is not None:
        from pipelines.recipe import open_recipe

        recipe, _ = open_recipe(config, overrides or ())
        findings = examine(recipe.workspace, recipe.tracking.uri, recipe.ray.address)
    else:
        findings = examine(Path("build"))
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'MISS'}  {finding.name:<12} {finding.found}")
        if finding.advice:
            typer.echo(f"      {'':<12} -> {finding.advice}")
    healthy = all(f.ok for f in findings)
    listed = [{"name": f.name, "ok": f.ok, "found": f.found, "advice": f.advice} for f in findings]
    _finish({"ok": healthy, "findings": listed}, as_json)
    if not healthy:
        raise typer.Exit(2)


def _context(
    config: Path,
    overrides: list[str] | None,
    first: str | None,
    last: str | None,
    units: int,
    rebuild: bool = False,
) -> Context:
    from pipelines.context import Context
    from pipelines.progress import Progress
    from pipelines.recipe import open_recipe

    for option, value in (("--from", first), ("--to", last)):
        _check_date(option, value)
    if first is not None and last is not None and first > last:
        raise UsageError(f"--from {first} lies after --to {last}")
    recipe, contract = open_recipe(config, overrides or ())
    return Context(recipe, contract, Progress(units), first=first, last=last, rebuild=rebuild)


def _check_date(option: str, value: str | None) -> None:
    from datetime import date

    try:
        if value is not None and date.fromisoformat(value).isoformat() != value:
            raise ValueError
    except ValueError:
        raise UsageError(f"{option} {value!r}: expected a date as YYYY-MM-DD") from None


def _truth(ctx: Context) -> dict[str, Any] | None:
    """The simulator's planted counts, when the whole of its log was ingested."""
    path = ctx.recipe.data / "truth.json"
    if not path.is_file() or ctx.first or ctx.last:
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, default=str))


def _held(names: list[str]) -> None:
    if names:
        held = ", ".join(names)
        raise GateHeld(f"the gate did not promote {held}; the reasons stand above and in the table promotions")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: turns every error into a message and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # not standalone: wrong options come out as exceptions too, so that --json holds for them
        code = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except GateHeld as error:  # the result was printed before
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Logs2RecError as error:
        _fail(arguments, error, f"error: {error}", error.exit_code)
    except typer.TyperException as error:
        words = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(arguments, error, f"error: {words}" if words else "", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted: what was published stays, the rest is done by the next run", err=True)
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        _fail(arguments, error, f"internal failure: {type(error).__name__}: {error}", 1)


def _fail(arguments: list[str], error: Exception, words: str, code: int) -> None:
    typer.echo(words, err=True)
    if "--json" in arguments:
        text = words.removeprefix("error: ")
        typer.echo(json.dumps({"error": text, "kind": type(error).__name__, "exit_code": code}))
    sys.exit(code)


if __name__ == "__main__":
    main()
