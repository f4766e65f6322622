"""The commands and how they fail: one line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import octavo
from octavo.cli import das, data, windows
from octavo.cli.paths import local_path

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(das.app, name="das")
app.add_typer(windows.app, name="windows")
_DEMO = {
    "name": "demo",
    "data": {"source": "demo"},
    "model": {"top": [512, 256]},
    "training": {"window": 8000, "checkpoint_every": 200},
}


def main() -> None:
    """Entry point of ``octavo``."""
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if not _is_expected(error):
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"octavo: {_text(error)}", style="red", markup=False
        )
        sys.exit(2)


def _is_expected(error: Exception) -> bool:
    """Mistakes in what the user gave, and a full disk; anything else is a bug and shows its traceback."""
    from octavo._files import NoSpaceError
    from octavo.config import ConfigError
    from octavo.data import DataError
    from octavo.exfm import TeacherError
    from octavo.store import LineageError, StoreError
    from octavo.training import CheckpointError, TrainingError

    mistakes = (ConfigError, DataError, CheckpointError, TrainingError, TeacherError, LineageError, StoreError)
    expected = (*mistakes, FileNotFoundError, FileExistsError, NoSpaceError)
    return isinstance(error, expected) or hasattr(error, "format_message")


def _text(error: Exception) -> str:
    formatted = getattr(error, "format_message", None)
    return str(formatted() if formatted else error)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Large recommendation models in eight bits."""
    if version:
        typer.echo(octavo.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; see examples/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example training.batch_size=512.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="PATH", help="Where everything goes; default runs/<run id>."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run's checkpoints and start again.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Fail where there is no checkpoint to go on from.")] = False,
) -> None:
    """Train in event time, plan, convert, compare, report. A run that was stopped goes on where it was.

    With a section ``publish`` it is a teacher, with ``distillation`` a student (docs/exfm.md).

    In parallel: torchrun --nproc-per-node 2 --no-python octavo train CONFIG.
    """
    from octavo.config import load_config, run_id

    if fresh and resume:
        raise typer.BadParameter("--fresh deletes what --resume goes on from; give one of them")
    loaded = load_config(config, overrides or [])
    _train(loaded, run_dir or Path("runs") / run_id(loaded), fresh, resume)


@app.command()
def demo(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example data.events=50000.")] = None,
    run_dir: Annotated[Path, typer.Option(parser=local_path, metavar="PATH", help="Where everything goes.")] = Path(
        "demo-run"
    ),
    fresh: Annotated[bool, typer.Option(help="Delete the run's checkpoints and start again.")] = False,
) -> None:
    """The main job on a log that octavo generates: under three minutes on two cores."""
    from octavo.config import build_config

    _train(build_config(_DEMO, overrides or [], source="octavo demo"), run_dir, fresh)


def _train(config: Any, run_dir: Path, fresh: bool, resume: bool = False) -> None:
    from octavo.cli.progress import Stages
    from octavo.cli.tables import print_results
    from octavo.exfm import run
    from octavo.training import Group

    with Group.current() as group:
        console = Console(quiet=not group.is_first)
        with Stages(console) as stages:
            results = run(config, run_dir, fresh, stages.listen, resume)
    if results is not None:
        print_results(console, results)
        console.print(f"report: {(run_dir / 'report.html').resolve()}", soft_wrap=True, highlight=False)


@app.command()
def evaluate(
    run_dir: Annotated[
        Path, typer.Argument(parser=local_path, metavar="RUN_DIR", help="A directory that octavo train left.")
    ],
    log: Annotated[
        str | None, typer.Option(help="Another log with the run's schema, a path or URI; default: the run's.")
    ] = None,
    checkpoint: Annotated[int | None, typer.Option(help="The step of a checkpoint; default: the newest.")] = None,
    part: Annotated[
        str, typer.Option("--slice", help="heldout, all, or BEGIN:END in events; default heldout, all with --log.")
    ] = "",
    against: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="PATH", help="Another run on the same log: differences to it, paired by event."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap behind the 95% intervals.", min=100)] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Quality of a trained run on a log, for each task and domain, with 95% intervals over users."""
    from octavo.cli.tables import print_evaluation
    from octavo.training import evaluate_run

    found = evaluate_run(run_dir, log, checkpoint, part or None, against, resamples)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print_evaluation(Console(), found)


@app.command()
def probe(
    config: Annotated[Path, typer.Argument(help="A YAML file; see examples/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example model.top=[256].")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Of the run whose newest checkpoint is probed, if any; default runs/<run id>.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="PATH", help="Where the three files go; default RUN_DIR/probe."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Batches to train; none where the run has training.probe.", min=1)] = 1000,
    every: Annotated[int, typer.Option(help="Steps between two that the Probe looks at.", min=1)] = 10,
    draws: Annotated[int, typer.Option(help="Pairs of operands drawn per site and class, at most.", min=2)] = 100,
    max_post_norm: Annotated[
        float | None, typer.Option(help="Error after the next norm; default 0.05 where nothing is demanded.")
    ] = None,
    max_signal_rel: Annotated[float | None, typer.Option(help="Signal-relative error.")] = None,
    max_rel_l1: Annotated[float | None, typer.Option(help="Relative L1 error.")] = None,
    max_mere: Annotated[float | None, typer.Option(help="Mean element-wise relative error.")] = None,
    min_sqnr_db: Annotated[float | None, typer.Option(help="Signal to quantization noise.")] = None,
    min_speedup: Annotated[float, typer.Option(help="Of a class over high precision.", min=0.01)] = 1.05,
    training: Annotated[bool, typer.Option("--training/--inference", help="Plan gradients too, or not.")] = True,
) -> None:
    """Which layers may run in low precision: watch training, judge every class, plan, and report why.

    Writes report.json (the evidence), plan.json and report.html.
    """
    from octavo import loka
    from octavo.cli.progress import Stages
    from octavo.config import load_config, run_id
    from octavo.ops.dispatch import Requirement
    from octavo.training import probe_run

    given = (max_rel_l1, max_mere, max_signal_rel, max_post_norm, min_sqnr_db)
    if all(value is None for value in given):
        max_post_norm = 0.05
    requirement = Requirement(max_rel_l1, max_mere, max_signal_rel, max_post_norm, min_sqnr_db)
    loaded = load_config(config, overrides or [])
    run_dir = run_dir or Path("runs") / run_id(loaded)
    out = out or run_dir / "probe"
    console = Console()
    with Stages(console) as stages:
        results = probe_run(
            loaded, run_dir, requirement, steps=steps, every=every, draws=draws, min_speedup=min_speedup,
            training=training, out=out, listen=stages.listen,
        )  # fmt: skip
    loka.explain(results.plan, results.report)
    console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True, highlight=False)


@app.command()
def doctor(
    qualify: Annotated[bool, typer.Option("--qualify", help="Check every kernel on this machine now.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit the kernels' costs to this machine now.")] = False,
) -> None:
    """What this machine has, which kernels qualified, what to install for more."""
    from octavo.cli.doctor import diagnose

    diagnose(Console(), qualify, calibrate)
