"""`ml-dash export`: points, logs or experiments, for other programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from ml_dash.cli import console, options
from ml_dash.cli.chosen import Asked, One, chosen
from ml_dash.cli.summary import final_values, summary
from ml_dash.cli.views import ExperimentView, choose_view, json_point, resolve_metric
from ml_dash.core.json_values import flatten, to_json
from ml_dash.core.records import Point, series_name
from ml_dash.core.statistics import NO_SERIES
from ml_dash.errors import NotFound
from ml_dash.reading import read

if TYPE_CHECKING:
    from ml_dash.reading.where import Sort, Where

Meant = tuple[str, str | None]
Line = Mapping[str, Any]
Table = tuple[Sequence[str], Iterable[Sequence[Any]]]
Source = tuple[Callable[[], Iterable[Line]], Callable[[], Table]]
"""What to write, as lines of JSON and as a table. Only one of the two is called."""

_LOG: Final = ("timestamp", "level", "message", "metadata", "sequenceNumber")


@click.command(cls=options.RemoteCommand)
@options.experiments_argument
@options.where_option
@options.sort_option
@options.columns_option
@click.option(
    "--what",
    type=click.Choice(["points", "logs", "experiments"]),
    default="points",
    show_default=True,
    help="experiments: one row for each that is named, else found, with its parameters and final values.",
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; may be repeated.")
@click.option("--superseded", is_flag=True, help="Also points that a rewind has superseded.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: standard output.")
@click.option("--json", "as_json", is_flag=True, help="As --format jsonl.")
@options.as_of_option
@options.remote_option
@options.path_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    where: Where | None,
    sort: Sort | None,
    columns: tuple[str, ...],
    what: str,
    metrics: tuple[str, ...],
    superseded: bool,
    form: str,
    output: Path | None,
    as_json: bool,
    as_of: str | None,
    remote: str | None,
    path: Path | None,
) -> None:
    """Write points, logs or experiments as CSV or JSON lines."""
    if metrics and what != "points":
        raise click.UsageError(f"--metric goes with points, not with --what {what}.", ctx)
    if superseded and what != "points":
        raise click.UsageError(f"--superseded goes with points, not with --what {what}.", ctx)
    if len(experiments) > 1 and what != "experiments":
        raise click.UsageError(f"--what {what} is of one EXPERIMENT; {len(experiments)} are named.", ctx)
    if columns and what != "experiments":
        raise click.UsageError(f"--columns goes with --what experiments, not with --what {what}.", ctx)
    if what == "experiments" or where is not None or sort is not None:
        found = chosen(ctx, experiments, Asked(where, sort, columns), path, remote, as_of)
        if not found:
            console.print_note(_nothing(path, remote, where))
            return
        lines, table = (
            _experiments(found, columns) if what == "experiments" else _of_many(found, what, metrics, superseded)
        )
    else:
        view = choose_view(next(iter(experiments), None), path, remote=remote, as_of=as_of)
        lines, table = _of_one(view, what, metrics, superseded)
    with _stream(output) as stream:
        if as_json or form == "jsonl":
            for line in lines():
                stream.write(console.json_text(line) + "\n")
        else:
            _write_csv(*table(), stream)


def _nothing(path: Path | None, remote: str | None, where: Where | None) -> str:
    matching = " that match" if where is not None else ""
    if remote is not None:
        return f"no experiments{matching} there"
    return f"no experiments{matching} in {read.places(path)}; name another folder with --path"


def _of_one(view: ExperimentView, what: str, metrics: tuple[str, ...], superseded: bool) -> Source:
    if what == "logs":
        view.refuse_released()
        return view.each_log, lambda: (_LOG, ([entry[key] for key in _LOG] for entry in view.each_log()))
    names = [resolve_metric(view, name) for name in metrics] or [(entry["name"], None) for entry in view.metrics()]
    return lambda: _points(view, names, superseded), lambda: _points_table(view, names, superseded)


def _points(view: ExperimentView, names: list[Meant], superseded: bool) -> Iterator[Line]:
    for name, series in names:
        for point in _each(view, name, series, superseded):
            yield {"metric": name, **json_point(point)}


def _each(view: ExperimentView, name: str, series: str | None, superseded: bool) -> Iterator[Point]:
    """Points of a metric. With `series`, only those that have it, without the fields of other series."""
    view.refuse_released(name)
    for point in view.each_point(name, superseded=superseded):
        if series is None:
            yield point
            continue
        field = next((field for field in point["data"] if series_name(name, field) == series), None)
        if field is not None:
            kept = {key: value for key, value in point["data"].items() if key == field or key in NO_SERIES}
            yield {**point, "data": kept}


def _points_table(view: ExperimentView, names: list[Meant], superseded: bool) -> Table:
    """A header and rows of points. They are read twice, first for the columns: they may not fit into memory."""
    fields: dict[str, None] = {}
    for name, series in names:
        for point in _each(view, name, series, superseded):
            fields.update(dict.fromkeys(point["data"]))
    fixed = ["metric", "index", "createdAt"]
    header = fixed + [f"data.{field}" if field in fixed else field for field in fields]
    rows = (
        [line["metric"], line["index"], line["createdAt"], *(line["data"].get(field) for field in fields)]
        for line in _points(view, names, superseded)
    )
    return header, rows


def _of_many(found: list[One], what: str, metrics: tuple[str, ...], superseded: bool) -> Source:
    """Points or logs of several experiments, one after the other, each row with the name of its experiment.

    Of the metrics that are named, those are written that an experiment has.
    """

    def sources() -> Iterator[tuple[str, Source]]:
        for one in found:
            view = one.look()
            names = tuple(name for name in metrics if _has(view, name))
            if names or not metrics:
                yield one.label, _of_one(view, what, names, superseded)

    def lines() -> Iterator[Line]:
        return ({"experiment": name, **line} for name, (its_lines, _) in sources() for line in its_lines())

    def table() -> Table:
        headers = [header for _, (_, its_table) in sources() for header in its_table()[0]]
        columns = list(dict.fromkeys(headers))
        return ["experiment", *columns], _rows_of(sources(), columns)

    return lines, table


def _has(view: ExperimentView, metric: str) -> bool:
    try:
        resolve_metric(view, metric)
    except NotFound:
        return False
    return True


def _rows_of(sources: Iterable[tuple[str, Source]], columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """The rows of several tables under one header, which has all their columns."""
    for name, (_, table) in sources:
        header, rows = table()
        places = [header.index(column) if column in header else None for column in columns]
        for row in rows:
            yield [name, *(None if place is None else row[place] for place in places)]


def _experiments(found: list[One], columns: tuple[str, ...]) -> Source:
    """A row for each experiment: its summary, and the columns or else all parameters and final values."""
    if columns:
        return _columns(found, columns)

    def lines() -> Iterator[Line]:
        for one in found:
            view = one.look()
            facts = summary(one.project, one.name, one.path, view.record())
            yield {**facts, "parameters": view.parameters(), "metrics": final_values(view)}

    def table() -> Table:
        """Nested mappings become columns: `parameters.lr`, `metrics.loss`."""
        # An empty mapping (no parameters, no metrics) must not become a column.
        flat = [{key: value for key, value in flatten(line).items() if value != {}} for line in lines()]
        header = list(dict.fromkeys(key for line in flat for key in line))
        return header, ([line.get(key) for key in header] for line in flat)

    return lines, table


def _columns(found: list[One], columns: tuple[str, ...]) -> Source:
    """A row for each experiment: its project and name, and the values of columns."""

    def lines() -> Iterator[Line]:
        for one in found:
            yield {"project": one.project, "name": one.name, "values": one.values()}

    def table() -> Table:
        rows = ([line["project"], line["name"], *(line["values"].get(field) for field in columns)] for line in lines())
        return ["project", "name", *columns], rows

    return lines, table


@contextmanager
def _stream(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with output.open("w", encoding="utf-8", newline="") as file:
        yield file


def _write_csv(header: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO) -> None:
    # A program gets every character as it was recorded; a terminal would act on some of them.
    clean: Callable[[str], str] = console.safe if console.on_terminal(stream) else str
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(clean, header))
    for row in rows:
        writer.writerow(clean(_cell(value)) for value in row)


def _cell(value: Any) -> str:
    """Return a value for CSV: text as it is, None as nothing, anything else as JSON, floats with all their digits."""
    if value is None:
        return ""
    shown = to_json(value)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
