"""docs/cli.md against the program: every command, every option, every form of JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from ml_dash.cli.app import COMMANDS, Commands, ml_dash

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
SECTIONS = {match[1]: match[2] for match in re.finditer(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)}
SHAPES = re.findall(r"<!-- json: (.*?) -->\n```json\n(.*?)```", PAGE, re.DOTALL)
COMMON = {"--path", "--json", "--help"}
# Those that ask a server have tests of their own form of JSON.
NOT_READING = {"demo", "ui", "completion", "sync", "push", "pull", "gc", "server", "login", "logout", "whoami"}
# These print one object a line.
LINES = {"logs", "export", "dump", "tail"}
ANY = "..."


def _command(name: str) -> click.Command:
    group: Commands = ml_dash  # type: ignore[assignment]
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def _options(name: str) -> set[str]:
    parameters = [parameter for parameter in _parameters(_command(name)) if isinstance(parameter, click.Option)]
    return {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}


def _parameters(command: click.Command) -> list[click.Parameter]:
    """Those of the command and of its subcommands."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(parameter for one in below for parameter in _parameters(one))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_its_place_in_the_page(name: str) -> None:
    assert name in SECTIONS
    missing = [option for option in _options(name) - COMMON if f"`{option}" not in SECTIONS[name]]
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_the_page_exists(name: str) -> None:
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", re.sub(r"```.*?```", "", SECTIONS[name], flags=re.DOTALL)))
    assert named - _options(name) - COMMON == set()


def test_the_page_has_no_section_of_a_command_that_is_gone() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NOT_READING))
def test_every_reading_command_has_json_and_its_form_is_documented(name: str) -> None:
    assert "--json" in _options(name)
    assert name in {command.split()[0] for command, _ in SHAPES}


def test_help_is_short_and_complete(shell: Shell) -> None:
    out = shell.ok("--help").out
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []
    assert shell.ok("ls", "-h").out == shell.ok("ls", "--help").out
    assert shell.ok("--version").out.startswith("ml-dash ")


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiments of the page, recorded by the program in the page."""
    folder = tmp_path_factory.mktemp("page")
    program = PAGE.split("```python\n")[1].split("```")[0]
    (folder / "train.py").write_text(program)
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    return folder


# In one process: what is renamed and noted by one command is shown by those after it, as on the page.
@pytest.mark.xdist_group("the page of the command line")
@pytest.mark.parametrize(("command", "shown"), SHAPES, ids=[command for command, _ in SHAPES])
def test_json_has_the_form_that_the_page_gives(shell: Shell, page_folder: Path, command: str, shown: str) -> None:
    result = shell(*command.split(), "--json", folder=page_folder)
    assert result.code == 0, result.err
    name = command.split()[0]
    expected = (
        [json.loads(line) for line in shown.splitlines()] if name in LINES else [json.loads(shown)]
    )
    actual = result.json_lines if name in LINES else [_first(result.json)]
    for number, form in enumerate(expected):
        _same_form(form, actual[number], f"{command}[{number}]")


def _first(printed: Any) -> Any:
    return printed[0] if isinstance(printed, list) else printed


def _same_form(form: Any, actual: Any, where: str) -> None:
    """The same keys in the same order, with values of the same type; an empty list or object stands for any."""
    assert type(form) is type(actual), f"{where}: the page shows {form!r}, printed is {actual!r}"
    if isinstance(form, dict) and form:
        extra = where.endswith("writers[0]")  # a writer has more keys, as far as they are known
        assert list(form) == [key for key in actual if key in form or not extra], where
        for key, value in form.items():
            _same_form(value, actual[key], f"{where}.{key}")
    elif isinstance(form, list):
        for number, (one, other) in enumerate(zip(form, actual, strict=False)):
            _same_form(one, other, f"{where}[{number}]")
