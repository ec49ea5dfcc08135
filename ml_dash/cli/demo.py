"""`ml-dash demo`: a training run that is killed and resumed, beside a server that is killed too."""

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
from ml_dash.demo import services, steps
from ml_dash.demo.train import EPOCHS
from ml_dash.disk import settings
from ml_dash.reading import read
from ml_dash.reading.located import Located
from ml_dash.reading.verify import verify

if TYPE_CHECKING:
    from rich.tree import Tree

PLOT_HEIGHT = 9
DRAIN_S = 30.0
"""The server must have everything within this time. It takes a second where the machine has nothing else to do."""
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
    name = steps.free_name(path)
    full = f"{steps.PROJECT}/{name}"
    console.print_text(f"Training a small network on 150 iris flowers, for {EPOCHS} epochs, recorded as {_bold(full)}.")
    running = services.Services(_services_folder(path, name)) if services.is_possible() else None
    with running or nullcontext():
        if running is not None:
            console.print_text(f"A server at {running.url} and the uploader run beside it, and end with this demo.")
        complete = _train(name, path, running)
        synced = _print_proof(full, path, running) if running is not None else True
    located = read.locate(full, path)
    report = verify(located)
    verdict = console.styled("DAMAGED", "bold red") if report.damaged else console.styled("intact", "green")
    console.print_text(f"\nEvery frame and file checked (ml-dash verify): {verdict}.")
    console.print_text(f"\n{_tree(located)}\n\n{_bold('loss')} over epochs")
    points = read.view(located).series("loss", "loss", 8 * console.width())
    console.print_text("\n".join(plot(points, console.width(), PLOT_HEIGHT, plain=console.is_plain())))
    console.print_text(_other_steps(full, path))
    if running is None:
        console.print_text(LOCAL_ONLY)
    console.print_text(f"\nTry next:  {_bold(f'ml-dash ui {shlex.quote(_shown_store(path))}')}")
    if report.damaged:
        ctx.exit(DAMAGE)
    if not (complete and synced):
        ctx.exit(FAILURE)


def _services_folder(path: Path | None, name: str) -> Path:
    """The folder for the server and the daemon: in the store, under a name that no project can have."""
    return settings.resolve(local_path=path, env=steps.environment({})).store / ".demo" / name


def _train(name: str, path: Path | None, running: services.Services | None) -> bool:
    """Train, kill and resume; True if everything that was acknowledged is there."""
    full = f"{steps.PROJECT}/{name}"
    env = running.environment() if running is not None else None
    kill_after = steps.POINTS // 2 + random.randrange(steps.POINTS // 20)
    with _epochs("training") as progress:
        cut = {kill_after // 2: running.kill_server} if running is not None else None
        first = steps.run(name, path, kill_after=kill_after, progress=progress, env=env, actions=cut)
    located = read.locate(full, path)
    after_kill = steps.count(read.view(located), [first])
    killed = console.styled("Killed it", "bold red")
    if running is not None:
        console.print_text(f"{console.styled('Killed the server', 'bold red')} with SIGKILL. Training did not notice.")
    status = console.styled(read.record(located)["status"], "yellow")
    console.print_text(f"{killed} with SIGKILL in epoch {first.epochs + 1}: no warning, no clean-up. Status: {status}.")

    with _epochs("resumed", first.epochs) as progress:
        back = {kill_after // 3: running.start_server} if running is not None else None
        second = steps.run(name, path, kill_after=None, progress=progress, env=env, actions=back)
    view = read.view(located)
    resumed, status = (
        console.styled("Resumed it", "bold green"),
        console.styled(view.record()["status"], "green"),
    )
    start = EPOCHS - second.epochs
    console.print_text(f"{resumed} from its checkpoint after epoch {start}, and trained to the end. Status: {status}.")
    if running is not None:
        restarted = console.styled("Started the server again", "bold green")
        console.print_text(f"{restarted} meanwhile, with the data that it had.")
    again = sum(view.metric_stats(one["name"])["supersededDataPoints"] for one in view.metrics())
    points = "1 point was" if again == 1 else f"{again:,} points were"
    console.print_text(f"{points} recorded once more from there: what was there first is superseded, and kept.")
    in_all = steps.count(view, [first, second])
    console.print_text()
    _print_counts({"when it was killed": after_kill, "at the end": in_all})
    return after_kill.complete and in_all.complete


def _print_proof(full: str, path: Path | None, running: services.Services) -> bool:
    """Wait until the server has everything, and print the proof; False if it takes longer than DRAIN_S."""
    running.wait_for_server()
    running.end_pauses()
    deadline = time.monotonic() + DRAIN_S
    complete, shown = services.sync_status(full, path, running.environment())
    while not complete and time.monotonic() < deadline:
        time.sleep(0.2)  # each question starts a process, and hashes everything on both sides
        complete, shown = services.sync_status(full, path, running.environment())
    console.print_text(f"\nOn the server ({_bold(f'ml-dash sync status {full}')}):\n{shown.rstrip()}")
    return complete


def _bold(text: str) -> str:
    return console.styled(text, "bold")


@contextmanager
def _epochs(title: str, first: int = 0) -> Iterator[steps.Progress]:
    with console.progress(title) as show:
        yield lambda epoch: show(epoch, EPOCHS) if show is not None else None


def _print_counts(counts: dict[str, steps.Count]) -> None:
    """Print how many acknowledged calls were found again. They were counted outside the processes that were killed."""
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
    console.print_table(["calls", ">acknowledged", ">found on disk", ""], rows)
    beyond = max(count.beyond for count in counts.values())
    if beyond:
        calls = console.plural(beyond, "call")
        console.print_note(f"({calls} more had written, but not yet returned, when the kill came)")


def _tree(located: Located) -> str:
    from rich.tree import Tree

    tree = Tree(console.safe(os.path.relpath(located.folder)))
    _grow(tree, located.folder)
    return console.rendered(tree)


def _grow(tree: Tree, folder: Path) -> None:
    """Add the files and folders of `folder` to the tree, and one line for the journal."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name == ".journal":
            files = [file for file in path.rglob("*") if file.is_file()]
            total = console.size_text(sum(file.stat().st_size for file in files))
            what = f".journal/  {console.plural(len(files), 'file')}, {total}: what ml-dash trusts"
            tree.add(what, style="dim")
        elif path.is_dir():
            _grow(tree.add(console.safe(path.name) + "/"), path)
        else:
            tree.add(f"{console.safe(path.name)}  {console.size_text(path.stat().st_size)}")


def _shown_store(path: Path | None) -> str:
    """The folder that holds the experiments of the demo, as one types it here."""
    store = settings.resolve(local_path=path, env=steps.environment({})).store
    return os.path.relpath(store) if store.is_relative_to(Path.cwd()) else str(store)


def _other_steps(full: str, path: Path | None) -> str:
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
    return "\n".join(["\nOn the command line:", *lines, "The training script: python -m ml_dash.demo.train"])
