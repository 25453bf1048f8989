"""The page in a real browser: everything is drawn, nothing is fetched, nothing of a stranger's runs.

Skipped where Playwright for Python or Chromium is missing.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_store import Plan, build
from test_report_page import HOSTILE, NAME

from layercache import report
from layercache.recipe import ReportSpec

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
COUNT = "[document.querySelectorAll('.chart svg').length, document.querySelectorAll('.chart').length]"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=120_000)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("browser")
    plans = {"plain": Plan(), "hostile": HOSTILE}
    stores = {name: build(folder / name, plan) for name, plan in plans.items()}
    return {name: report.build(store, folder / f"{name}.html", ReportSpec()) for name, store in stores.items()}


class Visit:
    """An opened page, and what happened while it was open."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", width: int = 1280) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def all_drawn(self) -> int:
        """Open everything that is folded and wait until every chart is there; the policy forbids the page to poll."""
        self.page.evaluate(OPEN_ALL)
        deadline = time.monotonic() + 120
        drawn, places = self.page.evaluate(COUNT)
        while drawn < places and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
            drawn, places = self.page.evaluate(COUNT)
        assert drawn == places
        return int(drawn)


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_everything_is_drawn_and_nothing_fetched(name: str, browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages[name])
    assert visit.all_drawn() == 15
    assert visit.page.locator(".failed").count() == 0
    assert visit.complaints == []
    assert visit.requests == [pages[name].as_uri()]
    assert visit.page.locator("img, iframe, script[src]").count() == 0
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1280
    visit.page.close()


def test_names_reach_charts_and_tooltips_as_text(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["hostile"])
    visit.all_drawn()
    assert NAME in (visit.page.locator(".chart").first.text_content() or "")
    bar = visit.page.locator("#samples .chart path[aria-roledescription='bar']").first
    bar.scroll_into_view_if_needed()
    bar.hover()
    tooltip = visit.page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    assert "probability" in (tooltip.text_content() or "")
    assert tooltip.locator("script, img").count() == 0
    assert visit.complaints == []
    visit.page.close()


def test_charts_follow_light_and_dark(browser: Any, pages: dict[str, Path]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        visit = Visit(browser, pages["plain"], scheme)
        visit.all_drawn()
        read = "node => [getComputedStyle(document.body).backgroundColor, getComputedStyle(node).fill]"
        colours[scheme] = visit.page.locator(".chart svg text").first.evaluate(read)
        visit.page.close()
    assert colours == {
        "light": ["rgb(255, 255, 255)", "rgb(89, 99, 110)"],
        "dark": ["rgb(18, 22, 28)", "rgb(154, 165, 177)"],
    }


def test_tables_sort_by_their_headings(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"])
    visit.all_drawn()
    table = visit.page.locator("#probes table").first
    heading = table.locator("th", has_text="value")
    column = "rows => rows.map(row => row.cells[5].dataset.value).filter(Boolean).map(Number)"
    heading.locator("button").click()
    rising = table.locator("tbody tr").evaluate_all(column)
    heading.locator("button").click()
    falling = table.locator("tbody tr").evaluate_all(column)
    assert len(rising) > 10
    assert rising == sorted(rising)
    assert falling == sorted(rising, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    table.locator("th", has_text="model").locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    visit.page.close()


def test_a_telephone_scrolls_charts_and_not_the_page(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], width=400)
    visit.all_drawn()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    visit.page.close()


def test_print_is_light_and_fits(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], "dark")
    visit.all_drawn()
    visit.page.emulate_media(media="print", color_scheme="dark")
    visit.page.set_viewport_size({"width": 700, "height": 900})
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    widths = visit.page.locator(".chart svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert max(widths) <= 700
    assert visit.page.pdf().startswith(b"%PDF")
    visit.page.close()
