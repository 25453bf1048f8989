"""The page in a real browser: everything is drawn, linked and saved, nothing is fetched, nothing of a stranger's runs.

Skipped where Playwright for Python or Chromium is missing, unless LAYERCACHE_NEEDS_BROWSER is set: then that is an error.
"""

import csv
import io
import os
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
from layercache.store import reader

try:
    from playwright import sync_api as playwright
except ImportError:
    playwright = None  # type: ignore[assignment]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "Playwright is not installed" if playwright is None else "Chromium is not installed" if not CHROMIUM else ""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
CHARTS = "document.querySelectorAll('.chart').length"
DRAWN = "document.querySelectorAll('.chart.drawn').length"
# Printing opens what is folded and draws all of it.
OPEN_ALL = "window.dispatchEvent(new Event('beforeprint'))"
POINTS = "path[aria-roledescription='point']"
VEIL = ".mark-rect path[opacity='0.78']"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if MISSING and not os.environ.get("LAYERCACHE_NEEDS_BROWSER"):
        pytest.skip(f"{MISSING}: the page is not tried in a browser")
    assert not MISSING, f"{MISSING}, and LAYERCACHE_NEEDS_BROWSER is set"
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=120_000)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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

    def wait(self, script: str, *, least: int = 1) -> int:
        """Wait until a count is reached; the policy forbids the page to poll by itself."""
        deadline = time.monotonic() + 120
        while (found := int(self.page.evaluate(script))) < least and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)
        assert found >= least, script
        return found

    def all_drawn(self) -> int:
        """Open everything that is folded and wait until every chart is there."""
        self.page.evaluate(OPEN_ALL)
        return self.wait(DRAWN, least=int(self.page.evaluate(CHARTS)))

    def chart(self, anchor: str, number: int = 0) -> Any:
        """Return a chart of a section, drawn and in sight."""
        chart = self.page.locator(f"#{anchor} .chart").nth(number)
        chart.scroll_into_view_if_needed()
        chart.locator("svg").first.wait_for(state="attached")
        return chart

    def saved(self, button: Any) -> bytes:
        """Return what a button downloads."""
        with self.page.expect_download() as download:
            button.click()
        return Path(download.value.path()).read_bytes()


@pytest.fixture(params=["plain", "hostile"])
def visit(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    made = Visit(browser, pages[request.param])
    yield made
    assert made.complaints == []
    assert [url for url in made.requests if not url.startswith("blob:")] == [pages[request.param].as_uri()]
    made.page.close()


@pytest.fixture
def plain(browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    made = Visit(browser, pages["plain"])
    yield made
    assert made.complaints == []
    made.page.close()


def test_charts_are_drawn_when_they_are_looked_at_and_nothing_is_fetched(visit: Visit) -> None:
    places = visit.page.evaluate(CHARTS)
    first = visit.wait(DRAWN)
    assert first < places / 2, "what is out of sight waits"
    assert visit.page.locator("details:not([open]) .chart svg").count() == 0
    assert visit.all_drawn() == places > 30
    assert visit.page.locator("details:not([open]):not(.numbers)").count() == 0
    assert visit.page.locator(".failed").count() == 0
    assert visit.page.locator("img, iframe, script[src], [onclick], [onerror]").count() == 0
    assert visit.page.locator("style").count() == 1
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_hovering_says_names_and_values_as_text(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["hostile"])
    chart = visit.chart("probes")
    assert NAME in (chart.text_content() or "")
    box = chart.locator(POINTS).first.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = visit.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(state="visible")
    said = tooltip.text_content() or ""
    assert "balanced accuracy0." in said
    assert "embeddings" in said or "<style>*{display:none}</style>" in said
    assert tooltip.locator("script, img, style, b").count() == 0
    assert visit.complaints == []
    visit.page.close()


def test_layers_picked_in_one_chart_are_picked_in_all(plain: Visit) -> None:
    chart = plain.chart("probes")
    other = plain.chart("lens")
    chart.scroll_into_view_if_needed()
    table = plain.page.locator("#probes details.numbers").first
    table.locator("summary").click()
    rows = table.locator("tbody tr")
    assert rows.count() == 68
    marks = [one.bounding_box() for one in chart.locator(POINTS).all()[2:5:2]]
    x = [box["x"] + box["width"] / 2 for box in marks]
    y = chart.locator("svg").first.bounding_box()["y"] + 120
    plain.page.mouse.move(x[0], y)
    plain.page.mouse.down()
    plain.page.mouse.move(x[1], y, steps=4)
    plain.page.mouse.up()
    fields = [plain.page.locator(f".page-controls [name={name}]") for name in ("from", "to")]
    assert [field.input_value() for field in fields] == ["2", "4"]
    assert chart.locator(VEIL).count() == 4, "two sides of two panels"
    other.locator(VEIL).first.wait_for(state="attached")
    column = table.locator("th").all_text_contents().index("layer")
    layers = rows.evaluate_all(f"rows => rows.map(row => row.cells[{column}].textContent)")
    assert set(layers) == {"", "2", "3", "4"}, "baselines have no layer and stay"
    plain.page.mouse.click(x[0], y)
    assert [field.input_value() for field in fields] == ["0", "7"]
    assert rows.count() == 68
    fields[0].fill("5")
    fields[0].press("Enter")
    other.locator(VEIL).first.wait_for(state="attached")
    plain.page.locator(".page-controls [name=all]").click()
    assert fields[0].input_value() == "0"


def test_the_veil_lies_over_baselines_and_under_the_mouse(plain: Visit) -> None:
    chart = plain.chart("probes")
    assert chart.locator(".mark-rule.role-mark line").count()
    plain.page.locator(".page-controls [name=from]").fill("4")
    plain.page.locator(".page-controls [name=from]").press("Enter")
    chart.locator(VEIL).first.wait_for(state="attached")
    # The last baseline of the first panel, and what the mouse feels: points that are not seen.
    kinds = (".mark-rule.role-mark line", ".mark-line path", "path[opacity='0'][aria-roledescription='point']")
    order = chart.locator(".layers1_group").evaluate(
        """(panel, [veil, ...kinds]) => kinds.map((kind) => {
            const own = [...panel.querySelectorAll(kind)];
            const over = panel.querySelector(veil);
            return own.map((one) => Boolean(one.compareDocumentPosition(over) & Node.DOCUMENT_POSITION_FOLLOWING));
        })""",
        [VEIL, *kinds],
    )
    assert [set(one) for one in order] == [{True}, {True}, {False}]


def test_a_swatch_has_its_lines_dashes_and_room_for_them(plain: Visit) -> None:
    for anchor in ("probes", "pathways"):
        chart = plain.chart(anchor)
        swatches = chart.locator(".role-legend-symbol path[stroke-dasharray]")
        drawn = chart.locator(".mark-rule.role-mark line[stroke-dasharray]")
        lines = {one.get_attribute("stroke-dasharray") for one in drawn.all()}
        shown = {one.get_attribute("stroke-dasharray"): one.bounding_box()["width"] for one in swatches.all()}
        assert lines
        assert lines <= shown.keys()
        for dashes, width in shown.items():
            assert width >= sum(map(float, dashes.split(",")))


def test_a_model_is_hidden_and_shown_everywhere(plain: Visit) -> None:
    charts = [plain.chart(anchor) for anchor in ("probes", "lens")]
    before = [chart.locator(POINTS).count() for chart in charts]
    box = plain.page.locator(".page-controls input[type=checkbox]").first
    box.uncheck()
    for chart, count in zip(charts, before):
        plain.page.wait_for_timeout(100)
        assert chart.locator(POINTS).count() == count / 2
    charts[0].scroll_into_view_if_needed()
    charts[0].locator(".role-legend-label text").first.click()
    assert box.is_checked(), "the legend shows it again"
    plain.page.wait_for_timeout(100)
    assert [chart.locator(POINTS).count() for chart in charts] == before


def test_tables_sort_and_are_saved(plain: Visit, pages: dict[str, Path]) -> None:
    table = plain.page.locator("#probes details.numbers").first
    table.locator("summary").click()
    names = table.locator("th").all_text_contents()
    column = f"rows => rows.map(row => row.cells[{names.index('value')}].dataset.value).map(Number)"
    heading = table.locator("th", has_text="value")
    found = []
    for _ in range(2):
        heading.locator("button").press("Enter")
        found.append(table.locator("tbody tr").evaluate_all(column))
    assert found[0] == sorted(found[0]) != found[1] == sorted(found[0], reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    table.locator("th", has_text="model").locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    cell = table.locator("tbody td.n[data-value*='.']").first
    assert float(cell.get_attribute("title")) == pytest.approx(float(cell.text_content()), abs=5e-4)
    text = plain.saved(table.locator("[data-save=csv]")).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    query = (
        "SELECT value FROM results WHERE analysis = 'probe' AND metric = 'balanced_accuracy' AND label = 'certificate'"
    )
    stored = reader.open(pages["plain"].with_suffix("")).sql(query).column("value").to_pylist()
    assert sorted(float(row["value"]) for row in rows) == pytest.approx(sorted(stored), rel=1e-4)
    assert {row["model"] for row in rows} == {"demo", "demo:early"}
    assert all(row["layer"] == "" or row["layer"].isdigit() for row in rows)


def test_charts_are_saved_in_light_colours(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], "dark")
    visit.chart("probes")
    figure = visit.page.locator("#probes figure").first
    svg = visit.saved(figure.locator("[data-save=svg]")).decode()
    assert svg.startswith("<svg")
    assert "#0072B2" in svg
    assert "var(--" not in svg
    assert visit.saved(figure.locator("[data-save=png]")).startswith(b"\x89PNG")
    assert visit.complaints == []
    visit.page.close()


def test_charts_follow_light_and_dark(browser: Any, pages: dict[str, Path]) -> None:
    looks = {"light": ["rgb(255, 255, 255)", "rgb(89, 99, 110)"], "dark": ["rgb(18, 22, 28)", "rgb(154, 165, 177)"]}
    read = "node => [getComputedStyle(document.body).backgroundColor, getComputedStyle(node).fill]"
    for scheme, other in (("light", "dark"), ("dark", "light")):
        visit = Visit(browser, pages["plain"], scheme)
        text = visit.chart("probes").locator("svg text").first
        assert text.evaluate(read) == looks[scheme]
        visit.page.locator(".page-controls [name=theme]").select_option(other)
        assert text.evaluate(read) == looks[other]
        visit.page.close()


def test_a_telephone_scrolls_charts_and_not_the_page(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], width=400)
    chart = visit.chart("probes")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    panels = [one.bounding_box() for one in chart.locator(".mark-group.role-scope > g > .background").all()]
    assert max(box["width"] for box in panels if box) <= 400
    visit.page.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_titles_and_legends_are_not_cut_off(width: int, browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["hostile"], width=width)
    visit.all_drawn()
    # Words that are drawn, and where they end; what is wider than its place can be scrolled to.
    cut = visit.page.evaluate("""() => [...document.querySelectorAll(".chart")].flatMap((place) => {
        const end = place.getBoundingClientRect().left + place.clientWidth + 1;
        const words = [...place.querySelectorAll(":is(.role-title, .role-legend-title, .role-legend-label) text")];
        return words.filter((word) => word.getBoundingClientRect().right > end).map((word) => word.textContent);
    })""")
    assert cut == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.locator(".role-title tspan").count(), "some are in lines"
    visit.page.close()


def test_print_is_light_open_and_fits(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark", viewport={"width": 700, "height": 900})
    page.goto(
        report.plot(reader.open(pages["plain"].with_suffix("")), "probe", pages["plain"].with_name("p.html")).as_uri()
    )
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate(OPEN_ALL)
    page.locator(".chart svg").first.wait_for(state="attached")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    widths = page.locator(".chart svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert max(widths) <= 700
    assert not page.locator(".page-controls").is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.close()
