"""``octavo windows``: delay laws fitted, any window predicted, both looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from octavo.cli.paths import local_path

app = typer.Typer(no_args_is_help=True, help="Any conversion window from models with fixed ones.")


@app.command()
def fit(
    conversions: Annotated[str, typer.Argument(help="Parquet or CSV: keys, anchor's time, conversion's time or null.")],
    path: Annotated[Path, typer.Argument(parser=local_path, metavar="PATH", help="Where the fit goes.")],
    window: Annotated[
        list[str] | None, typer.Option(help="A model's window; give each, shortest first; default 1d and 7d.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="A key column of groups.")] = None,
    vertical: Annotated[list[str] | None, typer.Option(help="A key column above groups.")] = None,
    family: Annotated[str, typer.Option(help="auto, or one delay law for all groups.")] = "auto",
    shrink: Annotated[str, typer.Option(help="auto, or how many conversions the level above counts as.")] = "auto",
    half_life: Annotated[str, typer.Option(help="Age at which an anchor counts half; none: all alike.")] = "14d",
    anchor: Annotated[str, typer.Option(help="Column of the anchor's time, ms since 1970 or time stamps.")] = "anchor",
    converted: Annotated[str, typer.Option(help="Column of the conversion's time.")] = "converted",
    observed_until: Annotated[str | None, typer.Option(help="When the file was collected; default: its last time.")] = (
        None
    ),
    add: Annotated[bool, typer.Option("--add", help="Add to the fit at PATH, with its settings.")] = False,
    late: Annotated[
        bool, typer.Option("--late", help="With --add: outcomes of anchors that were given before without one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a fit at PATH.")] = False,
) -> None:
    """Fit the groups' delay laws."""
    from octavo._files import locked
    from octavo.windows import PersonalizedInterpolator

    if late and not add:
        raise typer.BadParameter("--late needs --add: anchors that were given before")
    table = _read(conversions)
    if add:
        pi = PersonalizedInterpolator.load(path)  # says so where there is none
        with locked(path / "add.lock"):  # who adds at the same time adds to what this one made
            pi = PersonalizedInterpolator.load(path)
            pi.partial_fit(table, observed_until, late).estimate()
            pi.save(path, overwrite=True)
    else:
        pi = PersonalizedInterpolator(
            window or ("1d", "7d"), group or [], vertical or [], family, _number(shrink),
            None if half_life == "none" else half_life,
            anchor=anchor, converted=converted,
        )  # fmt: skip
        pi.fit(table, observed_until)
        pi.save(path, overwrite=overwrite)
    _print(pi)


@app.command()
def predict(
    fitted: Annotated[Path, typer.Argument(parser=local_path, metavar="FIT", help="What fit wrote.")],
    requests: Annotated[str, typer.Argument(help="Parquet or CSV: keys and a column for each of the models' windows.")],
    path: Annotated[Path, typer.Argument(parser=local_path, metavar="PATH", help="The parquet file to write.")],
    p: Annotated[list[str], typer.Option(help="Column of a model's predictions; one for each of its windows.")],
    window: Annotated[list[str], typer.Option(help="A window to predict; becomes column p_WINDOW.")],
) -> None:
    """Write the requests with a column for each window."""
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    from octavo._files import space_expected
    from octavo.windows import PersonalizedInterpolator

    pi, table = PersonalizedInterpolator.load(fitted), _read(requests)
    before = dict(pi.counts)
    found = pi.predict(*_predictions(table, p), _keys(pi, table), window=window)
    for number, text in enumerate(window):
        table = table.append_column(f"p_{text}", pa.array(found[:, number]))
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with space_expected(path):
            pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{path}: {len(table):,} requests, windows {', '.join(window)}")
    for name, number in pi.counts.items():
        if number > before.get(name, 0):
            console.print(f"{name}: {number - before.get(name, 0):,}")


@app.command()
def report(
    fitted: Annotated[Path, typer.Argument(parser=local_path, metavar="FIT", help="What fit wrote.")],
    path: Annotated[Path, typer.Argument(parser=local_path, metavar="PATH", help="The HTML page to write.")],
    scored: Annotated[
        str | None, typer.Option(help="Parquet or CSV with keys, times and predictions: calibration too.")
    ] = None,
    p: Annotated[list[str] | None, typer.Option(help="Column of a model's predictions, one for each window.")] = None,
    window: Annotated[list[str] | None, typer.Option(help="A window to look at.")] = None,
    observed_until: Annotated[str | None, typer.Option(help="When --scored was collected.")] = None,
    title: Annotated[str, typer.Option(help="The page's title.")] = "Conversion windows",
) -> None:
    """A page with the laws, calibration by window and group, and what does not fit."""
    from octavo.report import write_windows_report
    from octavo.windows import PersonalizedInterpolator
    from octavo.windows.reporting import results_of

    pi = PersonalizedInterpolator.load(fitted)
    table = None if scored is None else _read(scored)
    if table is not None and not p:
        raise typer.BadParameter("--scored needs --p, the column of each model's predictions")
    results = results_of(pi, title, table, p or [], window or [], observed_until)
    write_windows_report(results, path)
    Console().print(f"report: {path.resolve()}", soft_wrap=True, highlight=False)


def _read(path: str) -> Any:
    """A parquet or CSV file as one table."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from octavo.data import DataError
    from octavo.data.errors import one_line

    try:
        if path.endswith((".parquet", ".pq")):
            return pq.read_table(path)
        if path.endswith(".csv"):
            return pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from None
    raise DataError(f"{path}: expected a name that ends in .parquet, .pq or .csv")


def _predictions(table: Any, columns: list[str]) -> list[Any]:
    from octavo.windows.events import column

    return [column(table, name).to_numpy() for name in columns]


def _keys(pi: Any, table: Any) -> Any:
    from octavo.windows.events import column

    names = [*pi.settings["vertical"], *pi.settings["group"]]
    return {name: column(table, name) for name in names} or range(len(table))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # "auto", or what the interpolator refuses


def _print(pi: Any) -> None:
    from rich.table import Table

    found = pi.diagnose()
    console = Console()
    table = Table("level", "groups", "conversions", "families", "misfit", "drift", title_justify="left")
    levels = found["level"].to_pylist()
    for level in dict.fromkeys(levels):
        rows = found.filter([one == level for one in levels])
        families = rows["family"].value_counts().to_pylist()
        shown = ", ".join(f"{f['values']} {f['counts']}" for f in sorted(families, key=lambda f: -f["counts"]))
        conversions = f"{sum(rows['conversions'].to_pylist()):,.0f}"
        flags = (str(sum(rows[name].to_pylist())) for name in ("misfit", "drift"))
        table.add_row(level, f"{len(rows):,}", conversions, shown, *flags)
    console.print(table)
    for name, number in pi.counts.items():
        console.print(f"{name}: {number:,}", highlight=False)
