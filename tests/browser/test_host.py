"""The application loads from both hosts, under its policy, and for nobody but who may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.mark.console("Content Security Policy")
def test_no_script_runs_that_is_not_the_dashboards_own(browser_page: Page, team_server: Server) -> None:
    browser_page.goto(f"{team_server.url}/login")
    browser_page.evaluate(
        """async () => {
            const inline = document.createElement("script");
            inline.textContent = "window.ran = true";
            document.body.append(inline);
            const elsewhere = document.createElement("script");
            elsewhere.src = "data:text/javascript,window.ran=true";
            document.body.append(elsewhere);
            const button = document.createElement("button");
            button.setAttribute("onclick", "window.ran = true");
            document.body.append(button);
            button.click();
            setTimeout("window.ran = true");
            // Whatever runs has run by then.
            await new Promise((done) => setTimeout(done, 200));
        }"""
    )
    assert browser_page.evaluate("window.ran") is None
