"""The sample browser of the page: every listed row with labels and scores, and whole samples as far as bytes allow.

    section(store, numbers, ReportSpec(), "store")      the section "Samples", with what its script shows

`listing` reads the rows, `scores` what analyses say of each, `choosing` chooses which are shown whole; `listed`, `inside` and
`by_layer` say what the page holds, `filling` as much as fits, `encode` writes it short. `browser.js` and what is beside it
show it; the page's data is one JSON object:

    runs      name, id, final layer, names of layers, lenses, the lens at every token, texts: what all samples share
    sets      data sets: rows, prompts, and for each run samples, labels and scores, aligned with the rows
    samples   `set/run/place of the sample` → tokens, spans, lenses, texts
    rows      `set/run/place of the row` → predictions and pathways by layer, references
    abouts    `set/run` → the labels, places and layers of these
    first     the row the page opens at: set, place, run, and why
    tables    texts and tokens, meant by their numbers everywhere else
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from layercache.recipe import ReportSpec
from layercache.report import page
from layercache.report.browser import choosing, inside, listing, scores
from layercache.report.browser.choosing import ASKED, CHANCE
from layercache.report.browser.encode import Tables, size
from layercache.report.browser.filling import Insides, fill
from layercache.report.browser.inside import Held
from layercache.report.browser.listed import Shown, lists, reason
from layercache.report.browser.listing import DataSet
from layercache.report.frames import model_names
from layercache.report.page import Section
from layercache.report.text import count, plain
from layercache.store.layout import Run
from layercache.store.reader import Store

LISTED, MOST_BYTES = 2000, 2_600_000
"""Rows that are listed, of all data sets together; what the browser's data may take of a page of five million bytes."""
_HERE = Path(__file__).parent
_SCRIPTS = ("draw.js", "panels.js", "layers.js", "list.js", "browser.js")
_HOW = (
    "Pick a row to see its prompt and the spans in it, what the logit lens reads at every layer, what each layer wrote and what"
    " probes say of it. The arrow keys go from row to row, and this page's address leads back to the row picked."
)
_CHOSEN = (
    " About half of them were chosen because they stand out (surest and wrong, largest loss, least sure, worst text), the rest by"
    " a draw that is the same every time."
)


def section(store: Store, numbers: pl.DataFrame, spec: ReportSpec, place: str) -> Section:
    """Return the sample browser.

    Args:
        store: the store.
        numbers: `frames.results` of it.
        spec: how many samples are shown whole, which in any case, and how many tokens of each layer.
        place: the store as a command would name it.

    Raises:
        AnalysisError: a sample that is asked for is not there.
    """
    sets = listing.read(store)
    asked = choosing.find(sets, spec.show)
    if not sets:
        return Section("samples", "Samples", [page.paragraph("No row of the store has a sample.")])
    shown = _shown(store, numbers, sets, asked, spec)
    names = model_names(store)
    runs = sorted({run.id: run for data in sets for run in data.runs}.values(), key=lambda run: names[run.id])
    tables = Tables()
    listed, left_out = lists(store, shown, runs, tables)
    held = {
        run.id: (number, inside.held(store, run, _answered(sets, run)))
        for number, run in enumerate(runs)
        if run.id not in left_out
    }
    left = MOST_BYTES - size(listed) - size(tables.json())
    insides = fill(store, numbers, shown, held, tables, spec.tokens, left)
    for own, one, whole in zip(listed, shown, insides.whole, strict=True):
        own["whole"] = _marked(own, one.data, whole, tables)
    data = {
        "runs": [_run_json(run, names[run.id], held[run.id][1] if run.id in held else None) for run in runs],
        "sets": listed,
        **{name: getattr(insides, name) for name in ("samples", "rows", "abouts")},
        "first": _first(shown, insides.whole, runs, names),
        "tables": tables.json(),
        "more": f"layercache report --store {place} --sample",
    }
    said = [page.paragraph(_HOW, "faint"), page.paragraph(_which(shown, insides, len(left_out), place), "faint")]
    waiting = '<div id="sample-browser"><noscript><p>The samples need JavaScript.</p></noscript></div>'
    return Section("samples", "Samples", [*said, waiting], data, _script(), _asset("browser.css"))


def _shown(
    store: Store, numbers: pl.DataFrame, sets: list[DataSet], asked: list[list[int]], spec: ReportSpec
) -> list[Shown]:
    sizes = [len(data.rows) for data in sets]
    found = []
    for data, own, whole, most in zip(
        sets, asked, choosing.shares(sizes, spec.samples), choosing.shares(sizes, LISTED), strict=True
    ):
        scored = scores.of_rows(store, numbers, data)
        chosen = choosing.choose(data, scored, own, whole)
        places = choosing.listed(data, chosen, most)
        kept = {place: new for new, place in enumerate(places)}
        chosen = [one._replace(place=kept[one.place]) for one in chosen]
        found.append(Shown(data.take(places), [one.take(kept) for one in scored], chosen, len(data.rows)))
    return found


def _marked(own: dict[str, Any], data: DataSet, whole: list[int], tables: Tables) -> dict[str, int | None]:
    """Return the rows that are marked as whole, place → why: those that are, and those with their prompts."""
    keys = list(zip(*(data.samples(run) for run in range(len(data.runs))), strict=True))
    places = {keys[place]: place for place in whole}
    found = {}
    for place, key in enumerate(keys):
        if key in places:
            same = f"the prompt of row {own['rows'][places[key]]}"
            found[str(place)] = own["whole"][str(place)] if place in whole else tables.text(same)
    return found


def _first(
    shown: list[Shown], whole: list[list[int]], runs: list[Run], names: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the row that the page opens at, and why: one asked for, else the first that stands out, else the first whole one."""
    for number, (one, places) in enumerate(zip(shown, whole, strict=True)):
        if not places:
            continue
        there = [choice for choice in one.chosen if choice.place in places]
        best = there[0] if there[0].why != CHANCE else min(there)
        said = {
            ASKED: "The page opens here because this row was asked for.",
            CHANCE: "The page opens here: this is the first row with every panel.",
        }.get(best.why, f"The page opens here because this row comes first by “{reason(one, best, names)}”.")
        run = runs.index(one.data.runs[best.run or 0])
        return {"set": number, "place": best.place, "run": run, "said": said}
    return None


def _which(shown: list[Shown], insides: Insides, left_out: int, place: str) -> str:
    """Say which rows are in the list, which of them can be seen in full and why, and how to see others."""
    listed, of = sum(len(one.data.rows) for one in shown), sum(one.of for one in shown)
    wanted, whole = sum(len(one.chosen) for one in shown), sum(map(len, insides.whole))
    said = (
        f"All {count(of, 'row')} are in the list"
        if listed == of > 1
        else f"{listed:,} of {count(of, 'row')} are in the list"
    )
    if whole == listed:
        return f"{said}, each with every panel.{_rooms(left_out)}"
    said += f"; {whole:,} of them, marked ●, have every panel.{_CHOSEN if whole else ''}"
    if whole < wanted:
        said += f" The page had no room for {wanted - whole:,} more."
    if insides.short + whole < listed:
        said += f" For want of room, {listed - insides.short - whole:,} rows show no tokens and no curves."
    return (
        f"{said}{_rooms(left_out)} To see another row in full: `layercache report --store {place} --sample DATA:ROW` (or how the"
        " sample's id begins). To see more of them: `--samples 100`, in a recipe `--set report.samples=100`."
    )


def _rooms(left_out: int) -> str:
    return f" {count(left_out, 'model')} found no room in the list." if left_out else ""


def _run_json(run: Run, name: str, held: Held | None) -> dict[str, Any]:
    layers = {str(layer.layer): plain(layer.name) for layer in run.layers}
    known = {"name": name, "id": run.id, "final": run.final_layer, "layers": layers}
    return known | (held.json() if held else {"left_out": True})


def _answered(sets: list[DataSet], run: Run) -> bool:
    """Tell whether a run's samples are prompts with the answers that it generated."""
    own = (frame for data in sets for one, frame in zip(data.runs, data.own, strict=True) if one.id == run.id)
    return any("prompt_sample_id" in frame.columns for frame in own)


def _script() -> str:
    """Return the browser's scripts as one; within braces their names are their own."""
    return "\n{\n" + "".join(map(_asset, _SCRIPTS)) + "}\n"


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
