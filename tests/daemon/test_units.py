"""The systemd units: valid, as confined as the documentation says, and never restarting for ever."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "daemon" / "ml_dash_syncd" / "units"
UNITS = {
    "ml-dash-syncd.service": ROOT / "systemd" / "user" / "ml-dash-syncd.service",
    "ml-dash-syncd@.service": ROOT / "systemd" / "system" / "ml-dash-syncd@.service",
    "ml-dash-server.service": ROOT / "systemd" / "ml-dash-server.service",
}
SYSTEM = ("ml-dash-syncd@.service", "ml-dash-server.service")
MAX_EXPOSURE = 2.5
WHERE = re.compile(r"^(ExecStart=)\S+/(ml-dash\S*)", re.MULTILINE)


class _Unit(configparser.RawConfigParser):
    """A unit file's sections; of a key that stands there more than once, the last."""

    def __init__(self, text: str) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        self.read_string(text)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(name: str) -> _Unit:
    return _Unit(UNITS[name].read_text(encoding="utf-8"))


def test_the_folder_and_the_package_hold_the_same_units() -> None:
    assert {path.name for path in PACKAGED.glob("*.service")} == set(UNITS)
    assert {path.name for path in (ROOT / "systemd").rglob("*.service")} == set(UNITS)
    for name, path in UNITS.items():
        assert path.read_bytes() == (PACKAGED / name).read_bytes(), name


@pytest.fixture
def analyze() -> str:
    """`systemd-analyze`. A machine without it skips; CI, which installs it, does not."""
    found = shutil.which("systemd-analyze")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("systemd-analyze is not on this machine: the units are not verified")
    assert found is not None, "CI has no systemd-analyze; .ci/run should have installed it"
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as an installation has them: the programs they start are there."""
    for program in ("ml-dash", "ml-dash-syncd"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    for name, path in UNITS.items():
        text, count = WHERE.subn(rf"\g<1>{tmp_path}/bin/\g<2>", path.read_text(encoding="utf-8"))
        assert count == 1, f"{name}: one program, by its whole path"
        (tmp_path / name).write_text(text.replace("/bin/kill", shutil.which("kill") or "/bin/kill"))
    return tmp_path


def _run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_complain_about(analyze: str, installed: Path, name: str) -> None:
    """An unknown key is only warned about, with exit code 0: nothing may be said at all."""
    manager = [] if name in SYSTEM else ["--user"]
    assert _run([analyze, "verify", *manager, name], installed) == ""


@pytest.mark.parametrize("name", SYSTEM)
def test_system_units_are_confined_as_the_documentation_says(analyze: str, installed: Path, name: str) -> None:
    said = _run([analyze, "security", "--offline=true", "--no-pager", name], installed)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert match is not None, said
    assert float(match[1]) <= MAX_EXPOSURE
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    documented = re.search(rf"^\| `{re.escape(name)}` \| ([\d.]+) \|", page, re.MULTILINE)
    assert documented is not None, f"docs/security.md does not give the score of {name}"
    # Versions of systemd weigh, and know, slightly different things.
    assert float(documented[1]) == pytest.approx(float(match[1]), abs=0.3)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_that_fails_again_and_again_stays_down(name: str) -> None:
    parsed = unit(name)
    assert parsed["Service"]["Restart"] == "on-failure"
    assert parsed["Service"]["RestartPreventExitStatus"] == "2", "wrong settings do not mend themselves"
    interval_s = 60 * int(parsed["Unit"]["StartLimitIntervalSec"].removesuffix("min"))
    burst, pause_s = int(parsed["Unit"]["StartLimitBurst"]), int(parsed["Service"]["RestartSec"])
    assert burst * pause_s < interval_s, "the limit would never be reached"
    assert pause_s >= 5


@pytest.mark.parametrize("name", ["ml-dash-syncd.service", "ml-dash-syncd@.service"])
def test_the_daemon_reports_to_systemd(name: str) -> None:
    service = unit(name)["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    # A request may take 60 s, and being asked to end another 10.
    assert int(service["WatchdogSec"]) >= 120
    assert int(service["TimeoutStopSec"]) > 10
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert "EnvironmentFile" not in service, "a token in the environment is inherited and shown"


def test_the_system_unit_gets_its_login_as_a_credential() -> None:
    """By name, from the credential stores: a missing one is no failure, as a missing file by path would be."""
    service = unit("ml-dash-syncd@.service")["Service"]
    assert service["LoadCredential"] == "ml-dash-credentials:ml-dash-credentials.%i"
    assert service["User"] == "%i"


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_holds_a_secret_or_a_place_of_one_machine(name: str) -> None:
    text = UNITS[name].read_text(encoding="utf-8")
    assert not re.search(r"(?im)^\s*(environment|setcredential)", text.replace("EnvironmentFile=-", ""))
    assert not re.search(r"/(home|root|tmp|work)/", re.sub(r"(?m)^#.*", "", text))
