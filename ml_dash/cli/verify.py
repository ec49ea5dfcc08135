"""`ml-dash verify`: a check that all data is present and unchanged."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from time import time_ns
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import DAMAGE
from ml_dash.reading import read
from ml_dash.reading.located import Located
from ml_dash.reading.verified import note
from ml_dash.reading.verify import VerifyReport, verify

_STYLES = {"torn": "yellow", "base": "dim", "on-server": "dim", "not-brought": "yellow"}


@click.command()
@options.experiment_argument
@click.option("--all", "everything", is_flag=True, help="Every experiment that is found.")
@options.path_option
@options.json_option
@click.pass_context
def command(ctx: click.Context, experiment: str | None, everything: bool, path: Path | None, as_json: bool) -> None:
    """Check every frame, blob and file of an experiment.

    Exit code 4 if anything is damaged or lost. A torn tail (a write cut off by a kill, never
    acknowledged) and released files (replaced or deleted) are reported, but not counted as damage.
    """
    if everything and experiment is not None:
        raise click.UsageError("Give an EXPERIMENT or --all, not both.", ctx)
    chosen = read.find(path) if everything else [read.locate(experiment, path)]
    reports = []
    for located in chosen:
        with console.progress(f"verify {located.project}/{located.name}") as progress:
            reports.append((located, verify(located, progress)))
    # For the page that shows when this was done last; a state folder that cannot be written is no reason to fail.
    with contextlib.suppress(OSError):
        note({located.journal: report.ok for located, report in reports}, time_ns())
    if as_json:
        shown = [_as_json(located, report) for located, report in reports]
        console.print_json(shown if everything else shown[0])
    else:
        for located, report in reports:
            _print_report(located, report)
    if any(report.damaged for _, report in reports):
        ctx.exit(DAMAGE)


def _as_json(located: Located, report: VerifyReport) -> dict[str, Any]:
    facts = asdict(report)
    facts["findings"] = list(facts["findings"])
    return {"project": located.project, "name": located.name, "ok": report.ok, "damaged": report.damaged, **facts}


def _print_report(located: Located, report: VerifyReport) -> None:
    name = console.styled(console.safe(f"{located.project}/{located.name}"), "bold")
    verdict = console.styled("DAMAGED", "bold red") if report.damaged else console.styled("intact", "green")
    console.print_text(
        f"{name}: {verdict}; {console.plural(report.events, 'event')} in "
        f"{console.plural(report.segments, 'segment')}, {console.size_text(report.bytes)}, "
        f"{console.plural(report.blobs, 'blob')}"
    )
    released = sum(finding.kind == "released" for finding in report.findings)
    if released:
        console.print_text(f"  content of {console.plural(released, 'replaced or deleted file')} was released")
    findings = [finding for finding in report.findings if finding.kind != "released"]
    if findings:
        console.print_table(
            ["finding", "where", "what"],
            [
                (
                    console.Styled(one.kind, _STYLES.get(one.kind, "red")),
                    *map(console.safe, (one.where, one.what)),
                )
                for one in findings
            ],
        )
