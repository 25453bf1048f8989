"""The sample browser in a real browser: picking, searching, sorting and the layer slider; strangers' texts stay text.

Skipped where Playwright for Python or Chromium is missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing_store import Plan, build
from test_report_browser import CHROMIUM, FLAGS, Visit, playwright
from test_report_samples import HOSTILE

from layercache import report
from layercache.recipe import ReportSpec

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or playwright is None, reason="Chromium or Playwright for Python is not installed"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=120_000)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    plans = {"plain": Plan(models=("one", "two")), "hostile": Plan(n=4, word=HOSTILE)}
    # Eight of eleven samples are shown whole.
    return {
        name: report.build(build(folder / name, plan), folder / f"{name}.html", ReportSpec(samples=8))
        for name, plan in plans.items()
    }


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    opened = Visit(browser, pages["plain"])
    opened.page.set_default_timeout(20_000)
    yield opened
    assert opened.complaints == []
    assert opened.requests == [pages["plain"].as_uri()]
    opened.page.close()


def title(visit: Visit) -> str:
    return str(visit.page.locator("#sample-browser .picked h3").text_content())


def listed(visit: Visit) -> list[int]:
    return [int(text) for text in visit.page.locator("#sample-browser [role=option] .row").all_text_contents()]


def panels(visit: Visit) -> list[str]:
    found: list[str] = visit.page.locator("#sample-browser .picked h4").all_text_contents()
    return found


def move(visit: Visit, index: int) -> None:
    """Put the layer slider on a place."""
    slider = visit.page.locator("#sample-browser .layer input")
    slider.evaluate("(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", index)


def test_the_row_that_stands_out_most_is_picked_from_the_start(visit: Visit) -> None:
    assert title(visit) == "towns, row 11"
    said = "The page opens here because this row comes first by “age: most wrong (one)”."
    assert visit.page.locator(".picked > header").get_by_text(said).is_visible()
    assert visit.page.locator("[role=option][aria-selected=true]").get_attribute("data-place") == "11"
    assert "#" not in visit.page.url
    assert panels(visit) == [
        *("Labels and scores", "Prompt", "Logit lens", "Most probable tokens", "What each layer writes"),
        *("Predictions by layer", "Under changed passes"),
    ]
    assert listed(visit) == list(range(12))
    visit.page.locator("#sample-browser [role=option]").nth(3).click()
    assert visit.page.get_by_text("The page opens here").count() == 0


def test_picking_switches_every_panel_and_the_address(visit: Visit) -> None:
    place = visit.page.locator("#sample-browser [role=option]")
    whole = place.filter(has=visit.page.locator(".whole"))
    assert whole.count() == 9
    place.nth(10).click()
    assert title(visit) == "towns, row 10"
    assert " town10" in (visit.page.locator(".picked .tokens").text_content() or "")
    facts = visit.page.locator(".picked .facts").text_content() or ""
    assert "✓ high (P .833)" in facts
    assert "6 (off by +1.00)" in facts
    assert "−8.0 points, does not flip" in facts
    assert "text 10 of layer 4 of one" in (visit.page.locator(".picked .texts").text_content() or "")
    assert "reference 10" in (visit.page.locator(".picked aside").text_content() or "")
    assert re.search(r"#sample=towns:10&model=one-[0-9a-f]+$", visit.page.url)
    assert place.nth(10).get_attribute("aria-selected") == "true"
    assert visit.page.locator("[role=option][aria-selected=true]").count() == 1


def test_keys_go_from_row_to_row(visit: Visit) -> None:
    visit.page.locator("#sample-browser [role=option]").first.click()
    box = visit.page.locator("#sample-browser [role=listbox]")
    box.focus()
    for key, row in (("ArrowDown", 1), ("j", 2), ("ArrowUp", 1), ("End", 11), ("Home", 0)):
        box.press(key)
        assert title(visit) == f"towns, row {row}"
        assert box.get_attribute("aria-activedescendant") == f"sample-{row}"
    visit.page.get_by_role("button", name="next ›").click()
    assert title(visit) == "towns, row 1"
    visit.page.get_by_role("button", name="‹ previous").click()
    visit.page.get_by_role("button", name="row 11").click()
    assert title(visit) == "towns, row 11", "the row with the same prompt"


def test_search_filter_and_order(visit: Visit) -> None:
    search = visit.page.locator("#sample-browser input[type=search]")
    search.fill("town7 w4")
    assert listed(visit) == [7]
    assert visit.page.locator("#sample-browser [role=status]").text_content() == "1 of 12 rows"
    search.press("Enter")
    assert title(visit) == "towns, row 7"
    search.fill("size low")
    assert listed(visit) == [1, 3, 5, 7, 9, 11]
    search.fill("nothing like it")
    assert listed(visit) == []
    search.fill("")
    show, order = (visit.page.get_by_label(name, exact=True) for name in ("show", "order"))
    show.select_option(label="size: probe wrong (layer 2, last@prompt)")
    assert listed(visit) == [2, 5, 8, 11]
    order.select_option(label="size: surest and wrong first (layer 2, last@prompt)")
    assert listed(visit) == [11, 8, 5, 2]
    show.select_option(label="all rows")
    assert listed(visit) == [11, 8, 5, 2, 0, 1, 3, 4, 6, 7, 9, 10]
    order.select_option(label="by age, falling")
    assert listed(visit) == list(range(11, -1, -1))
    order.select_option(label="knockout-name: most lost first (layer 2, last@prompt, right)")
    assert listed(visit)[0] == 11


def test_the_slider_moves_every_panel(visit: Visit) -> None:
    name = visit.page.locator("#sample-browser .layer output")
    assert name.text_content() == "layer 4 (block 4)"
    assert visit.page.locator(".bars .final").count() == 1
    seen = {}
    for layer in (4, 1):
        move(visit, layer)
        assert name.text_content() == f"layer {layer} (block {layer})"
        seen[layer] = visit.page.locator(".bars li .n").first.text_content()
        assert visit.page.locator(".heat tr.here th").text_content() == str(layer)
        assert visit.page.locator(".texts tr.here th").text_content() == str(layer)
        assert visit.page.locator(".strip td.here").count() == 1
    assert seen == {4: ".900", 1: ".600"}, "0.5 + 0.4 · layer / 4"
    visit.page.locator(".heat tbody tr").first.locator("td").first.click()
    assert name.text_content() == "layer 4 (block 4)"
    row = visit.page.locator("#sample-browser [role=option]").nth(2)
    move(visit, 2)
    row.click()
    assert name.text_content() == "layer 2 (block 2)", "the layer stays from row to row"


def test_what_is_wide_or_high_is_scrolled_to_the_layer_picked(visit: Visit) -> None:
    strip = visit.page.locator(".predictions .scroll:has(.strip)").first
    heat = visit.page.locator(".lens .tall")
    strip.evaluate("node => { node.style.maxWidth = '160px'; }")
    heat.evaluate("node => { node.style.maxHeight = '50px'; }")
    boxes = ((strip, "td.here", "width"), (heat, "tr.here", "height"))
    for layer in (0, 4, 1, 3):
        move(visit, layer)
        for box, here, size in boxes:
            outer, inner = box.bounding_box(), box.locator(here).first.bounding_box()
            side = "x" if size == "width" else "y"
            assert outer[side] <= inner[side] + 1
            assert inner[side] + inner[size] <= outer[side] + outer[size] + 1
    assert visit.page.evaluate("scrollX") == 0


def test_curves_say_what_the_store_says(visit: Visit) -> None:
    visit.page.locator("#sample-browser [role=option]").nth(10).click()
    move(visit, 2)
    lines = visit.page.locator(".pathways tbody tr")
    said = [line.locator("td").all_text_contents() for line in lines.all()]
    # Row 10: clean .9 - .002, the control takes .05, the knockout .08; right before and after.
    assert said == [[".898", "", ""], [".848", "−5.0", "no"], [".818", "−8.0", "no"]]
    assert visit.page.locator(".pathways svg polyline").count() == 3
    visit.page.locator(".pathways select").select_option("delta")
    assert visit.page.locator(".pathways svg polyline").count() == 2


def test_cells_and_tokens_are_told_by_keys(visit: Visit) -> None:
    visit.page.locator("#sample-browser [role=option]").nth(3).click()
    token = visit.page.locator(".picked .token").first
    assert "special" in (token.get_attribute("class") or "")
    token.focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    output = visit.page.locator(".picked .prompt .readout")
    assert output.text_content() == "position 3 · “␣town3” (id 103) · prompt, question, name"
    cell = visit.page.locator(".heat tbody tr").first.locator("td").first
    cell.focus()
    visit.page.keyboard.press("ArrowDown")
    told = visit.page.locator(".picked .lens .readout").text_content() or ""
    assert told.startswith("after position 6, layer 3: “␣t5” (id 5), P .800, entropy ")


def test_spans_white_space_and_what_is_absent(visit: Visit) -> None:
    legend = visit.page.locator(".picked .legend button")
    assert legend.all_text_contents() == ["question (6 tokens)", "name (2 tokens)"]
    assert "span hint: empty span; no hidden:resid:mean@hint" in (visit.page.locator(".absent").text_content() or "")
    legend.nth(1).focus()
    assert visit.page.locator(".picked .token:not(.dim)").count() == 2
    legend.nth(1).blur()
    visit.page.get_by_label("show white space").check()
    assert "␣town0" in (visit.page.locator(".picked .tokens").text_content() or "")
    assert "⏎" in (visit.page.locator(".picked .tokens").text_content() or "")


def test_the_lens_is_read_elsewhere_and_by_entropy(visit: Visit) -> None:
    assert visit.page.locator(".heat thead th").count() == 4, "three positions"
    shade = "node => node.style.getPropertyValue('--p')"
    by_probability = visit.page.locator(".heat td").first.evaluate(shade)
    visit.page.get_by_label("colour", exact=True).select_option("h")
    assert visit.page.locator(".heat td").first.evaluate(shade) != by_probability
    visit.page.get_by_label("read at", exact=True).select_option(label="last@prompt")
    assert visit.page.locator(".heat thead th").count() == 11, "ten tokens"


def test_models_are_switched(visit: Visit) -> None:
    visit.page.get_by_label("model", exact=True).select_option(label="two")
    assert "text 0 of layer 4 of two" in (visit.page.locator(".picked .texts").text_content() or "")
    assert "model=two-" in visit.page.url


def test_a_sample_that_is_not_whole_says_how_to_get_it(visit: Visit) -> None:
    items = visit.page.locator("#sample-browser [role=option]")
    rest = [place for place in range(12) if not items.nth(place).locator(".whole").count()]
    assert len(rest) == 3
    items.nth(rest[0]).click()
    command = visit.page.locator(".picked > p code").text_content() or ""
    assert command.endswith(f"--sample towns:{rest[0]}")
    assert "Logit lens" not in panels(visit)
    assert "Under changed passes" in panels(visit)


def test_an_address_leads_to_its_row(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"])
    visit.page.evaluate("location.hash = '#sample=towns:5'")
    visit.page.wait_for_timeout(200)
    assert title(visit) == "towns, row 5"
    two = visit.page.evaluate("JSON.parse(document.getElementById('samples-data').textContent).runs[1].id")
    visit.page.goto(f"{pages['plain'].as_uri()}#sample=towns:10&model={two}")
    visit.page.reload()
    assert title(visit) == "towns, row 10"
    assert "of two" in (visit.page.locator(".picked .texts").text_content() or "")
    for nonsense in ("#sample=nowhere:5", "#sample=%E0%A4%A:1", "#sample=towns:999"):
        visit.page.goto(pages["plain"].as_uri() + nonsense)
        visit.page.reload()
        assert title(visit) == "towns, row 11"
    assert visit.complaints == []
    visit.page.close()


def test_hostile_texts_stay_text(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["hostile"])
    for place in range(4):
        visit.page.locator("#sample-browser [role=option]").nth(place).click()
        move(visit, 1)
    assert visit.page.locator("#sample-browser :is(img, script, iframe)").count() == 0
    shown = visit.page.locator("#sample-browser").text_content() or ""
    assert "</script><img src=x onerror=alert(1)>⟨U+2028⟩⟨U+202E⟩⟨U+001B⟩'\"${y}" in shown
    assert "sample=%3C%2Fscript%3E" in visit.page.url
    assert visit.complaints == []
    assert visit.requests == [pages["hostile"].as_uri()]
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme(scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], scheme)
    read = "node => [getComputedStyle(node.closest('#samples')).color, getComputedStyle(node).backgroundColor]"
    ink, tint = visit.page.locator(".picked .token:not(.special)").nth(3).evaluate(read)
    assert ink == {"light": "rgb(31, 35, 40)", "dark": "rgb(230, 237, 243)"}[scheme]
    assert tint not in ("rgba(0, 0, 0, 0)", "")
    visit.page.close()


def test_it_fits_a_telephone_and_prints_the_row_picked(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["plain"], width=400)
    visit.page.locator("#sample-browser [role=option]").nth(2).click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    visit.page.emulate_media(media="print")
    assert not visit.page.locator("#sample-browser [role=listbox]").is_visible()
    assert visit.page.locator("#sample-browser .picked h3").is_visible()
    assert visit.page.locator("#sample-browser .heat").is_visible()
    visit.page.close()
