"""What tests of charts do and read: charts by the names of their series, by what they have drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

_T = TypeVar("_T")
WAIT_S: Final = 30.0


def figure(page: Page, name: str) -> Locator:
    """The chart of a series."""
    return page.get_by_role("figure", name=name, exact=True)


def drawn(page: Page, name: str, when: Callable[[list[dict[str, Any]]], bool] = bool) -> list[dict[str, Any]]:
    """What a chart has drawn of each run, once that is as expected: by default, something."""
    return until(
        lambda: page.evaluate("name => window.mlDash.chart(name)?.runs ?? []", name), when, f"the chart of {name}"
    )


def until(look: Callable[[], _T], when: Callable[[_T], bool], what: str) -> _T:
    """What `look` finds, once it is as expected; the browser draws meanwhile."""
    end = time.monotonic() + WAIT_S
    while True:
        found = look()
        if when(found):
            return found
        assert time.monotonic() < end, f"{what} is {str(found)[:2000]}"


def address(page: Page, when: Callable[[str], bool]) -> str:
    """The page's address, once it is as expected. The page is asked: `page.url` stands still while nothing is."""
    return until(lambda: page.evaluate("location.href"), when, "the address")


def plot_area(page: Page, name: str) -> dict[str, float]:
    """Where the curves of a chart are on the page."""
    box = figure(page, name).locator(".u-over").bounding_box()
    assert box is not None
    return dict(box)


def drag(page: Page, name: str, start: float, end: float) -> None:
    """Drags over a chart from one part of its width to another."""
    area = plot_area(page, name)
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] * start, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * end, middle, steps=5)
    page.mouse.up()


def serious(page: Page) -> list[str]:
    """What axe-core finds on a page that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
