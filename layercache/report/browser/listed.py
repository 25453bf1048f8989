"""The list of the sample browser as JSON: rows, how prompts begin, labels and scores, as far as bytes allow."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from layercache.report.browser import encode, listing
from layercache.report.browser.choosing import Choice
from layercache.report.browser.encode import Tables
from layercache.report.browser.listing import DataSet
from layercache.report.browser.scores import Score
from layercache.report.frames import model_names
from layercache.report.text import plain
from layercache.store.layout import Run
from layercache.store.reader import Store

LIST_BYTES, PROMPT_BYTES = 900_000, 500_000
"""The page's bytes for labels and scores, and for prompts."""


class Shown(NamedTuple):
    """A data set as the page has it: its listed rows, and those of them that are shown whole, the most wanted first."""

    data: DataSet
    scores: list[Score]
    chosen: list[Choice]
    of: int
    """Rows there are, listed or not."""


def lists(store: Store, shown: list[Shown], runs: list[Run], tables: Tables) -> tuple[list[dict[str, Any]], set[str]]:
    """Return the list of each data set, and the ids of runs for which there was no room.

    The first run always has its place; the others as far as bytes allow.
    """
    names = model_names(store)
    found = [_rows(one, PROMPT_BYTES // len(shown), names, tables) for one in shown]
    left = LIST_BYTES - sum(encode.size({**one, "prompts": None}) for one in found)
    left_out = set()
    for number, run in enumerate(runs):
        parts = [_of_run(store, one, run, number) for one in shown]
        needed = sum(map(encode.size, parts))
        if number and needed > left:
            left_out.add(run.id)
            continue
        left -= needed
        for own, part in zip(found, parts, strict=True):
            own["runs"] += [part] if part else []
    return found, left_out


def reason(one: Shown, choice: Choice, names: Mapping[str, str]) -> str:
    """Say why a row is shown whole, and of several runs by which."""
    several = choice.run is not None and len(one.data.runs) > 1
    return f"{choice.why} ({names[one.data.runs[choice.run or 0].id]})" if several else choice.why


def _rows(one: Shown, prompt_bytes: int, names: Mapping[str, str], tables: Tables) -> dict[str, Any]:
    """Return what a list holds whatever the run; `whole` are rows shown whole, place → why."""
    prompts = [plain(prompt, keep="\n\t") for prompt in one.data.rows["prompt"].to_list()]
    prefix = listing.shared(prompts)
    rests = [prompt[len(prefix) :] for prompt in prompts]
    most = listing.longest(rests, prompt_bytes)
    return {
        "name": plain(one.data.name),
        "of": one.of,
        "rows": one.data.rows["row"].to_list(),
        "prefix": prefix,
        "prompts": [encode.cut(rest, most) for rest in rests],
        "whole": {str(choice.place): tables.text(reason(one, choice, names)) for choice in one.chosen},
        "runs": [],
    }


def _of_run(store: Store, one: Shown, run: Run, number: int) -> dict[str, Any] | None:
    """Return a run's samples (places among `ids`), labels and scores; None where it does not have the data set."""
    own = next((place for place, held in enumerate(one.data.runs) if held.id == run.id), None)
    if own is None:
        return None
    places = one.data.sample_places(own)
    return {
        "run": number,
        "ids": list(places),
        "samples": [None if sample is None else places[sample] for sample in one.data.samples(own)],
        "labels": listing.labels(store, one.data, own),
        "scores": [score.json() for score in one.scores if score.run == own],
    }
