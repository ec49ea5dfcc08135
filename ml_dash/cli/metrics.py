"""`ml-dash metrics`: the metrics of an experiment, or the points of one, as numbers or as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ml_dash.cli import console, options
from ml_dash.cli.plot import plot
from ml_dash.cli.views import ExperimentView, choose_view, json_point, resolve_metric
from ml_dash.core.limits import MAX_LIMIT
from ml_dash.core.records import MetricStats, Point
from ml_dash.reading import read

LAST = 10
PLOT_HEIGHT = 12
MAX_PLOTS = 6
_ALL = 1 << 62


def complete_metric(ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    from ml_dash.errors import MLDashError

    try:
        view = read.view(read.locate(ctx.params.get("experiment"), ctx.params.get("path")))
        return [metric["name"] for metric in view.metrics() if metric["name"].startswith(typed)]
    except (MLDashError, OSError):
        return []


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@click.argument("metric", required=False, shell_complete=complete_metric)
@click.option("--last", type=click.IntRange(min=0), metavar="N", help=f"How many points to show (default {LAST}).")
@click.option("--superseded", is_flag=True, help="With METRIC: also points that a rewind has superseded.")
@click.option("--plot", "as_plot", is_flag=True, help="Draw the series over their steps.")
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiment: str | None,
    metric: str | None,
    last: int | None,
    superseded: bool,
    as_plot: bool,
    as_of: str | None,
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """List metrics with the statistics of each series, or show the last points of METRIC.

    All points, as CSV or JSON lines: ml-dash export.
    """
    if as_plot and as_json:
        raise click.UsageError("Give --plot or --json, not both.", ctx)
    if superseded and (as_plot or metric is None):
        raise click.UsageError("--superseded goes with the points of a METRIC.", ctx)
    view = choose_view(experiment, path, remote=remote, as_of=as_of)
    names = [entry["name"] for entry in view.metrics()]
    only = None
    if metric is not None:
        metric, only = resolve_metric(view, metric)
    if as_plot:
        _plot(view, names if metric is None else [metric], last, only)
    elif metric is not None:
        _print_points(view, metric, LAST if last is None else last, superseded, as_json)
    else:
        _print_metrics(view, names, as_json)


def _print_metrics(view: ExperimentView, names: list[str], as_json: bool) -> None:
    all_stats = [view.metric_stats(name) for name in names]
    if as_json:
        console.print_json(all_stats)
    elif not names:
        console.print_note("no metrics")
    else:
        console.print_table(*series_table(all_stats), drop=SERIES_DROPPED)


SERIES_DROPPED: Final = (">first", ">mean", ">min", ">max", ">points")
"""The columns of that table that a narrow terminal does without, the first one first."""


def series_table(all_stats: list[MetricStats]) -> tuple[list[str], list[list[str]]]:
    """The headers and rows of a table of all series of some metrics."""
    rows = []
    for stats in all_stats:
        for name, series in stats["series"].items():
            numbers = (series["first"], series["last"], series["min"], series["max"], series["mean"])
            texts = ["-" if number is None else console.value_text(number) for number in numbers]
            rows.append([console.safe(name), f"{series['count']:,}", *texts])
        if not stats["series"]:
            rows.append([console.safe(stats["name"]), f"{stats['totalDataPoints']:,}", *"-----"])
    return ["series", ">points", ">first", ">last", ">min", ">max", ">mean"], rows


def _print_points(view: ExperimentView, name: str, last: int, superseded: bool, as_json: bool) -> None:
    stats = view.metric_stats(name)
    points = _last_points(view, name, last, superseded)
    if as_json:
        console.print_json({**stats, "data": [json_point(point) for point in points]})
        return
    console.print_table(*series_table([stats]), drop=SERIES_DROPPED)
    if count := stats["supersededDataPoints"]:
        counts = f"{count:,} of {stats['totalDataPoints']:,} points are superseded"
        console.print_note(f"{counts}: a run went on from before them")
    if not points:
        return
    console.print_text()
    fields = list(dict.fromkeys(field for point in points for field in point["data"]))
    rows = [
        [
            f"{point['index']:,}",
            *(console.value_text(point["data"][field]) if field in point["data"] else "" for field in fields),
            console.time_text(point["createdAt"]),
        ]
        for point in points
    ]
    console.print_table([">index", *(f">{console.safe(field)}" for field in fields), "time (UTC)"], rows)


def _last_points(view: ExperimentView, name: str, count: int, superseded: bool) -> list[Point]:
    points: list[Point] = []
    while count > len(points):
        limit = min(count - len(points), MAX_LIMIT)
        page = view.metric_page(name, len(points) - count, limit, superseded=superseded)
        points += page["data"]
        if not page["hasMore"]:
            break
    if count and not points:
        view.refuse_released(name)
    return points


def _plot(view: ExperimentView, names: list[str], last: int | None, only: str | None) -> None:
    wanted = [(name, series) for name in names for series in view.metric_stats(name)["series"]]
    wanted = [one for one in wanted if only in (None, one[1])]
    drawn = 0
    for name, series in wanted[:MAX_PLOTS]:
        view.refuse_released(name)
        points = view.series(name, series, 8 * console.width() if last is None else _ALL)
        if last is not None:
            points = points[max(len(points) - last, 0) :]
        lines = plot(points, console.width(), PLOT_HEIGHT, plain=console.is_plain())
        if lines:
            drawn += 1
            console.print_text(console.styled(console.safe(series), "bold"))
            console.print_text("\n".join(lines))
    if not drawn:
        console.print_note("nothing to plot: no numbers")
    if len(wanted) > MAX_PLOTS:
        console.print_note(f"{len(wanted) - MAX_PLOTS} more series: ml-dash metrics EXPERIMENT METRIC --plot")
