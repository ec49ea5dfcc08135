"""`ml-dash demo`: a training that is killed and resumed, beside a server that is killed too, told step by step."""

from __future__ import annotations

import os
import random
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ml_dash.cli import console
from ml_dash.cli.codes import DAMAGE, FAILURE
from ml_dash.cli.plot import plot
from ml_dash.demo import stage, story
from ml_dash.demo.train import EPOCHS
from ml_dash.disk import config
from ml_dash.reading import read
from ml_dash.reading.verify import verify

if TYPE_CHECKING:
    from rich.tree import Tree

PLOT_HEIGHT = 9
DRAIN_S = 30.0
"""How long the server may take to catch up. It takes a second where the machine has nothing else to do."""
LOCAL_ONLY = """
What a server needs is not installed, so none was killed. For that part of the demo:
  pip install 'ml-dash[server]' && ml-dash demo"""


@click.command()
@click.option(
    "--path",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to record it. Default: as any other.",
)
@click.pass_context
def command(ctx: click.Context, path: Path | None) -> None:
    """Train a small model, kill it half-way, resume it, and show that nothing was lost.

    The data are the 150 iris flowers of R. A. Fisher (1936; UCI Machine Learning Repository, CC BY 4.0).
    """
    name = story.free_name(path)
    full = f"{story.PROJECT}/{name}"
    console.say(f"Training a small network on 150 iris flowers, for {EPOCHS} epochs, recorded as {_bold(full)}.")
    place = stage.Stage(_backstage(path, name)) if stage.is_possible() else None
    with place or nullcontext():
        if place is not None:
            console.say(f"A server at {place.url} and the uploader run beside it, and end with this demo.")
        told = _train(name, path, place)
        synced = _say_proof(full, path, place) if place is not None else True
    located = read.locate(full, path)
    report = verify(located)
    verdict = console.styled("DAMAGED", "bold red") if report.damaged else console.styled("intact", "green")
    console.say(f"\nEvery frame and file checked (ml-dash verify): {verdict}.")
    console.say(f"\n{_tree(located)}\n\n{_bold('loss')} over epochs")
    points = read.view(located).series("loss", "loss", 8 * console.width())
    console.say("\n".join(plot(points, console.width(), PLOT_HEIGHT, plain=console.is_plain())))
    console.say(_next_steps(full, path))
    if place is None:
        console.say(LOCAL_ONLY)
    if report.damaged:
        ctx.exit(DAMAGE)
    if not (told and synced):
        ctx.exit(FAILURE)


def _backstage(path: Path | None, name: str) -> Path:
    """Where the server and the daemon keep their things: in the store, under a name that no project can have."""
    return config.resolve(local_path=path, env=story.environment({})).store / ".demo" / name


def _train(name: str, path: Path | None, place: stage.Stage | None) -> bool:
    """Trains, with all that goes wrong meanwhile; whether everything that was acknowledged is there."""
    full = f"{story.PROJECT}/{name}"
    env = place.environment() if place is not None else None
    kill_after = story.POINTS // 2 + random.randrange(story.POINTS // 20)
    with _epochs("training") as progress:
        cut = {kill_after // 2: place.kill_server} if place is not None else None
        first = story.run(name, path, kill_after=kill_after, progress=progress, env=env, cues=cut)
    located = read.locate(full, path)
    after_kill = story.count(read.view(located), [first])
    killed = console.styled("Killed it", "bold red")
    if place is not None:
        console.say(f"{console.styled('Killed the server', 'bold red')} with SIGKILL. Training did not notice.")
    status = console.styled(read.record(located)["status"], "yellow")
    console.say(f"{killed} with SIGKILL in epoch {first.epochs + 1}: no warning, no clean-up. Status: {status}.")

    with _epochs("resumed", first.epochs) as progress:
        back = {kill_after // 3: place.start_server} if place is not None else None
        second = story.run(name, path, kill_after=None, progress=progress, env=env, cues=back)
    view = read.view(located)
    resumed, status = (
        console.styled("Resumed it", "bold green"),
        console.styled(view.record()["status"], "green"),
    )
    start = EPOCHS - second.epochs
    console.say(f"{resumed} from its checkpoint after epoch {start}, and trained to the end. Status: {status}.")
    if place is not None:
        console.say(f"{console.styled('Started the server again', 'bold green')} meanwhile, with the data that it had.")
    again = sum(view.metric_stats(one["name"])["supersededDataPoints"] for one in view.metrics())
    points = "1 point was" if again == 1 else f"{again:,} points were"
    console.say(f"{points} recorded once more from there: what was there first is superseded, and kept.")
    in_all = story.count(view, [first, second])
    console.say()
    _say_counts({"when it was killed": after_kill, "at the end": in_all})
    return after_kill.complete and in_all.complete


def _say_proof(full: str, path: Path | None, place: stage.Stage) -> bool:
    """Waits until the server has caught up, and shows how one can tell; whether it has."""
    place.wait_for_server()
    place.hurry()
    deadline = time.monotonic() + DRAIN_S
    complete, shown = stage.sync_status(full, path, place.environment())
    while not complete and time.monotonic() < deadline:
        time.sleep(0.2)  # each look starts a process, and hashes everything on both sides
        complete, shown = stage.sync_status(full, path, place.environment())
    console.say(f"\nOn the server ({_bold(f'ml-dash sync status {full}')}):\n{shown.rstrip()}")
    return complete


def _bold(text: str) -> str:
    return console.styled(text, "bold")


@contextmanager
def _epochs(title: str, first: int = 0) -> Iterator[story.Progress]:
    with console.progress(title) as show:
        yield lambda epoch: show(epoch, EPOCHS) if show is not None else None


def _say_counts(counts: dict[str, story.Count]) -> None:
    """The acknowledgements were counted outside the victims, from what their calls had returned."""
    rows: list[list[console.Cell]] = [
        [
            when,
            f"{count.acknowledged:,}",
            f"{count.recovered:,}",
            console.Styled("nothing lost", "green")
            if count.complete
            else console.Styled(f"{count.acknowledged - count.recovered:,} LOST, {count.beyond:,} extra", "bold red"),
        ]
        for when, count in counts.items()
    ]
    console.say_table(["calls", ">acknowledged", ">found on disk", ""], rows)
    beyond = max(count.beyond for count in counts.values())
    if beyond:
        console.note(f"({console.plural(beyond, 'call')} more had written, but not yet returned, when the kill came)")


def _tree(located: read.Located) -> str:
    from rich.tree import Tree

    tree = Tree(console.safe(os.path.relpath(located.folder)))
    _grow(tree, located.folder)
    return console.rendered(tree)


def _grow(tree: Tree, folder: Path) -> None:
    """The folder as a user sees it, and one line for the journal."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name == ".journal":
            files = [file for file in path.rglob("*") if file.is_file()]
            total = console.size(sum(file.stat().st_size for file in files))
            what = f".journal/  {console.plural(len(files), 'file')}, {total}: what ml-dash trusts"
            tree.add(what, style="dim")
        elif path.is_dir():
            _grow(tree.add(console.safe(path.name) + "/"), path)
        else:
            tree.add(f"{console.safe(path.name)}  {console.size(path.stat().st_size)}")


def _next_steps(full: str, path: Path | None) -> str:
    where = f" --path {shlex.quote(str(path))}" if path is not None else ""
    steps = {
        f"ml-dash ls{where}": "all experiments",
        f"ml-dash show {full}{where}": "this one, and the two processes that wrote it",
        f"ml-dash metrics {full} accuracy --plot{where}": "another plot",
        f"ml-dash logs {full}{where}": "what was logged",
        f"ml-dash rebuild {full}{where}": "make the folder again from the journal",
    }
    wide = max(map(len, steps))
    lines = [f"  {_bold(f'{command:<{wide}}')}  {what}" for command, what in steps.items()]
    return "\n".join(["\nTry next:", *lines, "The training script: python -m ml_dash.demo.train"])
