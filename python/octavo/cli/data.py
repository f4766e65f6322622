"""``octavo data``: logs made and looked at."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported where they are used: octavo --help is to be quick
    from octavo.data import EventLog

app = typer.Typer(no_args_is_help=True, help="Make and inspect event logs.")
_CHUNK = 1 << 20  # events read at once


@app.command()
def simulate(
    preset: Annotated[str, typer.Argument(help="The world: reference, drift, delay, ... (docs/adsworld.md).")],
    path: Annotated[str, typer.Argument(help="The log's directory, which must not exist.")],
    events: Annotated[int | None, typer.Option(help="How many impressions.", min=1)] = None,
    days: Annotated[float | None, typer.Option(help="How many days, instead of --events.", min=0.01)] = None,
    seed: Annotated[int, typer.Option(help="Another world of the same kind.", min=0)] = 0,
) -> None:
    """Play days of ad traffic (AdsWorld) and write them as an event log with the truth beside it."""
    if (events is None) == (days is None):
        raise typer.BadParameter("give one of --events and --days")
    from octavo.data import AdsWorld, preset_hash

    log = AdsWorld(preset, seed).write(path, events=events, days=days)
    Console().print(f"{log}\npreset {preset} {preset_hash(preset)[:12]}, seed {seed}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    schema: Annotated[str, typer.Argument(help="A schema's YAML, or a shipped name (docs/data.md).")],
    inputs: Annotated[list[str], typer.Argument(help="Parquet or CSV files, paths or URIs, then the log's directory.")],
    max_lateness: Annotated[str, typer.Option(help="How late an event may come: 500ms, 30s, 10m, 2h, 1d.")] = "0s",
    duplicates: Annotated[str, typer.Option(help="Events whose id came before: error, drop, or keep.")] = "error",
    observed_until: Annotated[
        datetime | None, typer.Option(help="Until when outcomes were collected (UTC); open windows are not known.")
    ] = None,
    negatives: Annotated[float, typer.Option(help="Share of the events without the outcome that is kept.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Another sample of the negatives.", min=0)] = 0,
) -> None:
    """Write raw files as an event log, in event time; what was repaired is counted."""
    from octavo.data import DataError, load_schema
    from octavo.data.convert import DUPLICATES
    from octavo.data.convert import convert as write
    from octavo.data.durations import parse_duration

    if len(inputs) < 2:
        raise typer.BadParameter("give at least one input file and the log's directory")
    if duplicates not in DUPLICATES:
        raise typer.BadParameter(f"--duplicates: expected one of {', '.join(DUPLICATES)}, found {duplicates}")
    try:
        lateness = parse_duration(max_lateness, "--max-lateness")
    except DataError as error:
        raise typer.BadParameter(str(error)) from None
    meaning, source = load_schema(schema)
    *files, path = inputs
    until = None if observed_until is None else round(observed_until.replace(tzinfo=UTC).timestamp() * 1000)
    if not 0 < negatives <= 1:
        raise typer.BadParameter(f"--negatives: expected a share above 0 and up to 1, found {negatives}")
    log, done = write(
        meaning, files, path, source, lateness, duplicates,  # type: ignore[arg-type]
        observed_until=until, negatives=negatives, seed=seed,
    )  # fmt: skip
    nulls = "".join(f"\n{count} nulls in {name!r}" for name, count in done.nulls.items())
    Console().print(
        f"{log}\n{done.events} events written, {done.moved} moved into time order, {done.dropped} duplicates dropped"
        + nulls,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A log's directory, a real data set's name, or a raw file; the first and last as URIs too."
        ),
    ],
) -> None:
    """What a log holds: events, time, features, and for every task how often and how late it came true.

    Of a parquet or CSV file: the schema it seems to have, as YAML to review, with the reasons.
    """
    from octavo.data import SETS, EventLog, dump_schema, infer_schema
    from octavo.data.source import is_file

    if is_file(path):
        typer.echo(f"# Inferred from {path}: review every DECIDE before octavo data convert.")
        found = infer_schema(path)
        typer.echo(dump_schema(found.schema, found.source, found.notes), nl=False)
        return

    is_set = path in SETS and not Path(path).exists()
    log, console = SETS[path].open() if is_set else EventLog(path), Console()
    console.print(repr(log), highlight=False, soft_wrap=True)
    console.print(_span(log), highlight=False)
    console.print(_features(log))
    console.print(_tasks(log))


def _span(log: EventLog) -> str:
    first, last = log.files[0].first_time, log.files[-1].last_time
    start, end = (datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") for ms in (first, last))
    size = sum(file.bytes for file in log.files) / 2**20
    return f"{start} to {end} UTC, {(last - first) / 86_400_000:.1f} days, {size:,.1f} MiB"


def _features(log: EventLog) -> Table:
    table = Table(title="Features", title_justify="left")
    for name in ("name", "kind", "rows", "encoding", "table"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for dense in log.schema.dense:
        table.add_row(dense.name, "dense", "", ", ".join(type(step).__name__ for step in dense.transforms), "")
    for kind, group in (("sparse", log.schema.sparse), ("sequence", log.schema.sequences)):
        for feature in group:
            many = f"{kind}, multi" if feature.multi and kind == "sparse" else kind
            table.add_row(feature.name, many, f"{feature.rows:,}", feature.encoding, feature.table or "")
    return table


def _tasks(log: EventLog) -> Table:
    """One pass over the outcomes, a chunk at a time; delays are those of the first chunk."""
    import numpy as np

    table = Table(title="Tasks", title_justify="left")
    for name in ("task", "known", "true", "rate", "delay p50", "p90", "p99 (s)"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for label in log.schema.labels:
        names = [label.task] if label.delay is None else [label.task, label.delay]
        known, true, quantiles = 0, 0.0, ["", "", ""]
        for start in range(0, len(log), _CHUNK):
            part = log.columns(names, start, min(start + _CHUNK, len(log)))
            outcome = part.column(label.task).cast("float64").to_numpy()  # nan: null
            known += int((~np.isnan(outcome)).sum())
            true += float(np.nansum(outcome))
            if label.delay is not None and start == 0:
                late = part.column(label.delay).cast("float64").to_numpy()
                late = late[~np.isnan(late)]
                found = np.quantile(late, [0.5, 0.9, 0.99]) if len(late) else []
                quantiles = [f"{value:,.0f}" for value in found] or quantiles
        table.add_row(label.task, f"{known:,}", f"{true:,.0f}", f"{true / known:.4f}" if known else "-", *quantiles)
    return table
