"""``octavo das``: the data augmentation service of a teacher and its students."""

from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from octavo.cli.paths import local_path

if TYPE_CHECKING:  # imported where they are used: octavo --help is to be quick
    from octavo.exfm import DAS

app = typer.Typer(no_args_is_help=True, help="Soft labels of a large teacher for many students (docs/exfm.md).")
Service = Annotated[Path, typer.Argument(parser=local_path, metavar="DIR", help="The service's directory.")]


@app.command()
def run(
    path: Service,
    logs: Annotated[list[str] | None, typer.Argument(help="Students' logs to add: STUDENT=LOG, paths or URIs.")] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="Whom to ask; default: all that were published.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the work, one thread each.", min=1)] = 1,
) -> None:
    """Add students' logs, then ask the teachers about every example that nobody asked them about.

    May be killed and run again, and run several times at once: no example is lost or asked about twice.
    """
    from octavo.data import EventLog
    from octavo.exfm import DAS

    das, console = DAS(path), Console()
    named = [entry.partition("=") for entry in logs or []]
    if wrong := [entry for entry, (student, _, log) in zip(logs or [], named, strict=True) if not student or not log]:
        raise typer.BadParameter(f"{wrong[0]}: expected STUDENT=LOG, for example feed=logs/feed")
    if len({student for student, _, _ in named}) < len(named):
        raise typer.BadParameter("a student's name is there twice; add its logs by one command each")
    if named:
        segment = das.ingest({student: EventLog(log) for student, _, log in named})
        if segment is None:
            console.print("nothing new: these logs were added before")
        else:
            console.print(
                f"added {segment.events:,} examples; {segment.known:,} were there, {segment.duplicates:,} copies in "
                f"several logs ({segment.skewed:,} with another time, {segment.conflicts:,} other values that differ)",
                highlight=False,
                soft_wrap=True,
            )
    teachers = teacher or _published(das)
    if not teachers:
        raise typer.BadParameter(f"{path}: no teacher was published; octavo das publish does, or train with publish")
    if workers == 1:
        _ask(str(path), teachers, None)
    else:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_ask, args=(str(path), teachers, 1)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise typer.Exit(2)  # which said why
    _print_status(console, das)


@app.command()
def status(path: Service) -> None:
    """What the service holds, and how far each teacher is."""
    from octavo.exfm import DAS

    _print_status(Console(), DAS(path))


@app.command()
def publish(
    path: Service,
    run_dir: Annotated[Path, typer.Argument(parser=local_path, metavar="RUN_DIR", help="A run of octavo train.")],
    teacher: Annotated[str, typer.Option(help="The teacher's name.")] = "teacher",
    delay: Annotated[str, typer.Option(help="From when after its last event on it may speak: 30m, 6h, 1d.")] = "0s",
    checkpoint: Annotated[int | None, typer.Option(help="The step of a checkpoint; default: the newest.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Records hold embeddings too.")] = False,
) -> None:
    """Publish a trained run as the teacher's next version; makes the service where there is none."""
    from octavo.data.durations import parse_duration
    from octavo.exfm.running import publish_run

    version = publish_run(path, run_dir, teacher, parse_duration(delay, "--delay"), checkpoint, embeddings)
    Console().print(
        f"version {version.number} of {teacher}: had seen events until {_moment(version.trained_until)}, speaks from "
        f"{_moment(version.available_from)}",
        highlight=False,
        soft_wrap=True,
    )


def _ask(path: str, teachers: list[str], threads: int | None) -> None:
    import torch

    from octavo.exfm import DAS

    if threads is not None:
        torch.set_num_threads(threads)
    das = DAS(path)
    for teacher in teachers:
        for _ in das.annotate(teacher):
            pass


def _published(das: DAS) -> list[str]:
    folder = das.path / "teachers"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if len(das.lineage(name))]


def _print_status(console: Console, das: DAS) -> None:
    das.shared.reload()
    examples = sum(segment.events for segment in das.shared.segments)
    students = sorted({student for segment in das.shared.segments for student in segment.sources})
    console.print(f"{examples:,} examples of {', '.join(students) or 'no student'}", highlight=False)
    table = Table("teacher", "versions", "newest until", "parts", "examples asked about", "without an answer")
    for name in _published(das):
        found, newest = das.progress(name), das.lineage(name).versions[-1]
        table.add_row(
            name, str(found.versions), _moment(newest.trained_until), f"{found.parts} of {found.of}",
            f"{found.events:,}", f"{found.silent:,}",
        )  # fmt: skip
    if table.row_count:
        console.print(table)


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M")
