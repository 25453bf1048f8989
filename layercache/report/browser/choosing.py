"""Which samples the page shows whole: those asked for, the extremes of every score, and a seeded choice among the rest."""

import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from layercache import nearest
from layercache.errors import AnalysisError
from layercache.report.browser.listing import DataSet
from layercache.report.browser.scores import Score

SEED = 0
"""Of the draw of samples that nothing else chooses: a report made again shows the same ones."""
ASKED, CHANCE = "asked for", "chosen by chance"
_PREFIX = re.compile(r"[0-9a-f]{4,24}")


class Choice(NamedTuple):
    """A row that is shown whole: its place in the data set, why it was chosen, and by what run of the data set's."""

    place: int
    why: str
    run: int | None = None


def choose(data: DataSet, scores: Sequence[Score], asked: Sequence[int], how_many: int) -> list[Choice]:
    """Choose rows of a data set, the most wanted first; of rows with one prompt only the first.

    First those asked for, whatever their number. Of the other `how_many` half are the extremes: the first of each score's
    order in turn, then the second of each, and so on. The rest is a seeded choice, which is the same every time.

    Args:
        data: the rows.
        scores: their scores.
        asked: places of rows that are shown in any case.
        how_many: rows chosen beside them.
    """
    chosen: dict[int, Choice] = {place: Choice(place, ASKED) for place in asked}
    samples = [data.samples(run) for run in range(len(data.runs))]
    prompts = [tuple(one[place] for one in samples) for place in range(len(data.rows))]
    taken = {prompts[place] for place in chosen}

    def add(choice: Choice, most: int) -> None:
        if prompts[choice.place] not in taken and len(chosen) - len(asked) < most:
            chosen[choice.place] = choice
            taken.add(prompts[choice.place])

    for choice in _in_turn(scores):
        add(choice, (how_many + 1) // 2)
    rest = list(range(len(data.rows)))
    random.Random(SEED).shuffle(rest)
    for place in rest:
        add(Choice(place, CHANCE), how_many)
    return list(chosen.values())


def listed(data: DataSet, chosen: Sequence[Choice], most: int) -> list[int]:
    """Return the places of the rows that are listed, in order: all, or those chosen and a seeded choice of the others."""
    if len(data.rows) <= most:
        return list(range(len(data.rows)))
    own = [choice.place for choice in chosen]
    rest = sorted(set(range(len(data.rows))) - set(own))
    random.Random(SEED).shuffle(rest)
    return sorted([*own, *rest[: max(0, most - len(own))]])


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """Share a total among parts as evenly as their sizes allow; the first get what cannot be divided."""
    found, left = [0] * len(sizes), total
    for done, place in enumerate(sorted(range(len(sizes)), key=lambda place: (sizes[place], -place))):
        found[place] = min(sizes[place], left // (len(sizes) - done))
        left -= found[place]
    return found


def find(sets: Sequence[DataSet], wanted: Sequence[str]) -> list[list[int]]:
    """Return the rows asked for, of each data set their places: by `films:12` or by how a sample's id begins.

    Raises:
        AnalysisError: there is no such row or sample.
    """
    found: list[list[int]] = [[] for _ in sets]
    for one in dict.fromkeys(wanted):
        places = _rows(sets, one) or _samples(sets, one)
        if not places:
            raise AnalysisError(f"no sample {one!r} to show: {_hint(sets, one)}")
        for number, place in places:
            found[number].append(place)
    return [list(dict.fromkeys(places)) for places in found]


def _in_turn(scores: Sequence[Score]) -> Iterator[Choice]:
    """Yield the first row of every order, then the second of every order, with what it is extreme in."""
    for turn in range(max((score.n_extreme for score in scores), default=0)):
        for score in scores:
            if turn < score.n_extreme:
                yield Choice(score.order[turn], score.extreme, score.run)


def _rows(sets: Sequence[DataSet], wanted: str) -> list[tuple[int, int]]:
    name, _, row = wanted.rpartition(":")
    if not row.isdecimal():
        return []
    return [
        (number, int(place))
        for number, data in enumerate(sets)
        if data.name == name
        for place in (data.rows["row"] == int(row)).arg_true()
    ]


def _samples(sets: Sequence[DataSet], wanted: str) -> list[tuple[int, int]]:
    if not _PREFIX.fullmatch(wanted):
        return []
    return [
        (number, int(place))
        for number, data in enumerate(sets)
        for run in range(len(data.runs))
        for place in data.rows[f"sample_{run}"].str.starts_with(wanted).fill_null(False).arg_true()
    ]


def _hint(sets: Sequence[DataSet], wanted: str) -> str:
    names = [data.name for data in sets]
    name, colon, _ = wanted.rpartition(":")
    if colon and name not in names:
        return nearest.hint(name, names, "the data sets are")
    if colon:
        rows = sets[names.index(name)].rows["row"].to_list()
        return f"the rows of {name} are numbered {rows[0]} to {rows[-1]}"
    return f"give a row as {names[0] if names else 'DATA'}:0, or the first digits of a sample's id"
