"""What is inside samples, as far as bytes allow: of those shown whole everything, then of the others what is short."""

import random
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import polars as pl

from layercache.report import references
from layercache.report.browser import by_layer, encode, inside
from layercache.report.browser.choosing import SEED
from layercache.report.browser.encode import Tables
from layercache.report.browser.inside import Held
from layercache.report.browser.listed import Shown
from layercache.store.reader import Store

_REFERENCES = 5


class Insides(NamedTuple):
    """What is inside rows, named by `data set/run/place`: their places in the page's lists.

    Attributes:
        samples: of samples tokens and spans and, of those shown whole, lenses and texts; the place is the sample's.
        rows: of rows predictions and pathways by layer, and references; the place is the row's.
        abouts: by `data set/run` what is said once of these numbers.
        whole: of each data set the places of rows that are shown whole.
        short: how many others have what is short.
    """

    samples: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]]
    abouts: dict[str, dict[str, Any]]
    whole: list[list[int]]
    short: int


def fill(
    store: Store,
    numbers: pl.DataFrame,
    shown: Sequence[Shown],
    runs: dict[str, tuple[int, Held]],
    tables: Tables,
    n_tokens: int,
    most_bytes: int,
) -> Insides:
    """Fill the page with samples, those shown whole first; what does not fit is left out.

    Args:
        store: the store.
        numbers: `frames.results` of it.
        shown: the data sets.
        runs: of each run on the page, by id, its number there and what it holds.
        tables: texts and tokens of the page.
        n_tokens: most probable tokens of each layer.
        most_bytes: what it may take in the page.
    """
    sources = [
        [
            _Source(store, numbers, one, at, *runs[run.id], n_tokens)
            for at, run in enumerate(one.data.runs)
            if run.id in runs
        ]
        for one in shown
    ]
    abouts = {f"{number}/{one.number}": one.about() for number, own in enumerate(sources) for one in own}
    found = Insides({}, {}, abouts, [[] for _ in shown], 0)
    left, short = most_bytes - encode.size(abouts), 0
    for number, place, complete in _order(shown):
        mark, before = tables.mark(), tables.bytes
        samples: dict[str, dict[str, Any]] = {}
        rows: dict[str, dict[str, Any]] = {}
        for source in sources[number]:
            sample, row = source.inside(place, complete, tables)
            # A sample may be there already: by a row with the same prompt.
            name = f"{number}/{source.number}/{source.places.get(source.samples[place] or '', '')}"
            samples |= {name: found.samples.get(name, {}) | sample} if sample else {}
            rows |= {f"{number}/{source.number}/{place}": row} if row else {}
        needed = encode.size(samples) + encode.size(rows) + tables.bytes - before
        if needed > left:
            tables.undo(mark)
            continue
        left -= needed
        found.samples.update(samples)
        found.rows.update(rows)
        found.whole[number].extend([place] if complete else [])
        short += not complete
    return found._replace(short=short)


def _order(shown: Sequence[Shown]) -> Iterator[tuple[int, int, bool]]:
    """Yield rows in the order they are filled in, data sets in turn: its number, the place, and whether it is whole."""
    whole = [[choice.place for choice in one.chosen] for one in shown]
    rest = [sorted(set(range(len(one.data.rows))) - set(own)) for one, own in zip(shown, whole, strict=True)]
    for own in rest:
        random.Random(SEED).shuffle(own)
    for places, complete in ((whole, True), (rest, False)):
        for turn in zip_longest(*places):
            yield from ((number, place, complete) for number, place in enumerate(turn) if place is not None)


class _Source:
    """Where what is inside the rows of a data set comes from in one run; everything is read at once."""

    def __init__(
        self, store: Store, numbers: pl.DataFrame, one: Shown, at: int, number: int, held: Held, n_tokens: int
    ) -> None:
        data, run = one.data, one.data.runs[at]
        self.number, self.held = number, held
        self.samples, self.places = data.samples(at), data.sample_places(at)
        self.written: list[str | None] = data.rows[f"text_{at}"].to_list()
        whole = [choice.place for choice in one.chosen]
        ids, texts = [self.samples[place] for place in whole], [self.written[place] for place in whole]
        self.frames = inside.read(store, run, held, self.samples, ids, texts, n_tokens)
        self.predictions = by_layer.predictions(store, numbers, data, at)
        self.pathways = by_layer.pathways(store, numbers, data, at)
        self.references = _references(store, one, at)

    def about(self) -> dict[str, Any]:
        """Return what is said once of all rows."""
        return {
            "predictions": [one.about for one in self.predictions],
            "pathways": [one.about for one in self.pathways],
        }

    def inside(self, place: int, complete: bool, tables: Tables) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is inside the sample of a row, and of the row itself."""
        name = self.samples[place]
        if name is None or name not in self.frames.samples:
            return {}, {}
        sample = inside.prompt_json(self.frames, name, tables)
        if complete:
            sample |= inside.panels_json(self.held, self.frames, name, self.written[place], tables)
        row: dict[str, Any] = {
            "predictions": [by_layer.row_json(one, place, tables) for one in self.predictions],
            "pathways": [by_layer.row_json(one, place, tables) for one in self.pathways],
            "references": [tables.text(text) for text in self.references.get(place, [])],
        }
        return sample, {key: value for key, value in row.items() if any(one is not None for one in value)}


def _references(store: Store, one: Shown, at: int) -> dict[int, list[str]]:
    """Return the texts that a row's generated text is compared with, place → texts."""
    info, run = one.data.infos[at], one.data.runs[at]
    known = [name for name in references.columns(store, run, info) if name in one.data.own[at].columns]
    if not known:
        return {}
    cells = one.data.rows.select("row").join(
        one.data.own[at].select("row", *(pl.col(name).alias(f"text {name}") for name in known)),
        on="row",
        how="left",
        maintain_order="left",
    )
    return {place: references.texts(row[1:])[:_REFERENCES] for place, row in enumerate(cells.iter_rows())}
