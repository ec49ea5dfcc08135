"""`ml-dash ui`: the dashboard over folders of this machine."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click

from ml_dash.cli import console


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="The port; 0 takes a free one. Default: 3001, or a free one."
)
@click.option("--no-open", "stays", is_flag=True, help="Print the link, and open no browser.")
def command(paths: tuple[Path, ...], port: int | None, stays: bool) -> None:
    """Show experiments in a browser on this machine: live, without an account.

    PATH is a root, store, project or experiment folder; several are shown together. Default: as other commands. It
    prints a link that works once, and runs until Ctrl-C.
    """
    from ml_dash.reading import read
    from ml_dash.server.local_ui import serve_folders

    folders = [path.expanduser().absolute() for path in paths] or [read.default_folder()]
    for folder in folders:
        if not folder.is_dir():
            console.print_note(f"there is no {console.safe(str(folder))} yet; what is recorded there will be shown")

    def announce(link: str) -> None:
        console.print_text(f"ml-dash ui: {', '.join(console.safe(str(folder)) for folder in folders)}")
        forward = forwarding(os.environ, urlsplit(link).port or 0)
        if forward is not None:
            console.print_text(f"on the machine that your browser is on, first: {forward}")
        # A line of its own, with nothing after the link: other programs read it.
        print(f"in a browser {'there' if forward else 'on this machine'}, logged in (works once): {link}", flush=True)
        if not stays and has_display(os.environ):
            import webbrowser

            webbrowser.open(link)

    serve_folders(folders, port, announce)


def forwarding(environment: Mapping[str, str], port: int) -> str | None:
    """Return the command that brings a port to the machine from which somebody came by ssh; None without ssh."""
    match environment.get("SSH_CONNECTION", "").split():
        case [_, _, host, at]:
            option = "" if at == "22" else f"-p {at} "
            return f"ssh -N {option}-L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}"
    return None


def has_display(environment: Mapping[str, str]) -> bool:
    """True if a browser that is opened here is seen by who has typed the command."""
    if environment.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("win32", "darwin") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
