"""Firefox, driven by its own protocol, Marionette: `length:JSON` over TCP, each message [type, id, error, result]."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

START_S: Final = 60.0
SCRIPT_MS: Final = 60_000


class Firefox:
    """One window of a Firefox without a screen, with a profile of its own."""

    def __init__(self, program: str, profile: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        profile.mkdir()
        preferences = {
            "marionette.port": port, "app.update.enabled": False, "datareporting.policy.dataSubmissionEnabled": False,
            "network.captive-portal-service.enabled": False, "network.connectivity-service.enabled": False,
            "browser.shell.checkDefaultBrowser": False, "toolkit.telemetry.enabled": False,
        }  # fmt: skip
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
        (profile / "user.js").write_text("".join(lines))
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [program, "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile), "MOZ_HEADLESS": "1"},
        )  # fmt: skip
        self._socket = self._connected(port)
        self._file = self._socket.makefile("rb")
        # It says first what it is.
        self._message()
        self.call("WebDriver:NewSession", capabilities={})
        self.call("WebDriver:SetTimeouts", script=SCRIPT_MS)

    def _connected(self, port: int) -> socket.socket:
        end = time.monotonic() + START_S
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=2 * SCRIPT_MS / 1000)
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self._process.kill()
                    self._process.wait()
                    raise
                time.sleep(0.05)

    def _message(self) -> Any:
        length = b"".join(iter(lambda: self._file.read(1), b":"))
        return json.loads(self._file.read(int(length)))

    def call(self, command: str, **parameters: Any) -> Any:
        """Sends a command; its result."""
        sent = json.dumps([0, next(self._numbers), command, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(sent), sent))
        _, _, error, result = self._message()
        assert error is None, error
        return result

    def go(self, url: str) -> None:
        """Opens a page, and waits until it has loaded."""
        self.call("WebDriver:Navigate", url=url)

    def until(self, expression: str) -> Any:
        """Waits until an expression in the page is true; its value."""
        script = f"""
            const done = arguments[arguments.length - 1];
            const look = () => {{
                const value = (() => {{ try {{ return {expression}; }} catch {{ return null; }} }})();
                value ? done(value) : requestAnimationFrame(look);
            }};
            look();
        """
        return self.call("WebDriver:ExecuteAsyncScript", script=script, args=[])["value"]

    def end(self) -> None:
        """Ends it."""
        self._file.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait(START_S)
