"""What the page says of analyses: what a recipe asked for first, nothing of what there are no numbers for."""

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from layercache.report import adapted_sections, again, depth_sections, frames, in_depth, overview, sections
from layercache.report.page import Section
from layercache.store import recipes
from layercache.store.layout import CLEAN, Run
from layercache.store.reader import Store

_COMPARED = ("best_layer", "best_depth", "best_score", "picked_share")


def makers(store: Store, numbers: pl.DataFrame) -> list[Callable[[], list[Section]]]:
    """Return what makes the sections of the analyses that have numbers, one after another.

    Args:
        store: an open store.
        numbers: `frames.results` of it.
    """
    held = set(numbers["analysis"])
    steps = in_depth.checkpoints(store, numbers)
    return [
        lambda: [sections.probe_section(store, numbers)] if frames.tasks(numbers) else [],
        lambda: [depth_sections.deep_section(store, numbers)] if "probe_depth" in held else [],
        lambda: [depth_sections.compare_section(numbers)] if numbers["metric"].is_in(_COMPARED).any() else [],
        lambda: [depth_sections.steps_section(steps)] if steps else [],
        lambda: [sections.entropy_section(store, numbers)] if frames.entropies(numbers) else [],
        lambda: [sections.text_section(store, numbers)] if "text" in held else [],
        lambda: [sections.pathways_section(numbers)] if "delta_p" in held else [],
        lambda: [sections.quality_section(store, numbers)] if "quality" in held else [],
        lambda: [adapted_sections.answers_section(numbers)] if "choices" in held else [],
        lambda: adapted_sections.adaptation_sections(numbers),
    ]


def ordered(store: Store, found: list[Section]) -> list[Section]:
    """Return sections with their commands, those that recipes of the store ask for first, as these name them."""
    asked = [spec["kind"] for recipe in recipes.load_all(store.path) for spec in recipe.get("analyze") or []]

    def place(part: Section) -> int:
        kinds, _ = again.PARTS[part.anchor]
        return min((asked.index(kind) for kind in kinds if kind in asked), default=len(asked))

    return [
        replace(part, commands=again.analysis(store, *again.PARTS[part.anchor])) for part in sorted(found, key=place)
    ]


def not_analysed(store: Store, numbers: pl.DataFrame) -> list[tuple[str, str]]:
    """Return what the store holds and no analysis has looked at: what it would say, and the command."""
    where, held = overview.place(store.path), set(numbers["analysis"])
    return [
        (what, f"layercache analyze {kind} --store {where}")
        for kind, what, there in _POSSIBLE
        if kind not in held and any(there(store, run) for run in store.runs())
    ]


def _labels(store: Store, run: Run) -> bool:
    return any(info.labels for info in store.data(run))


def _lens(store: Store, run: Run) -> bool:
    return bool(store.lens_outputs(run))


def _choices(store: Store, run: Run) -> bool:
    return any(":choices-" in lens.output for lens in store.lens_outputs(run))


def _texts(store: Store, run: Run) -> bool:
    """Tell whether every layer wrote; an answer that is part of the samples is no such text."""
    outputs = (name for shard in store.shards(run) for name in shard.outputs)
    return "answer" not in run.spec and any(name.startswith("generation:") for name in outputs)


def _knockouts(store: Store, run: Run) -> bool:
    cut = any(name.startswith("knockout-") for name in store.conditions(run) if name != CLEAN)
    return cut and any(label.kind == "boolean" for info in store.data(run) for label in info.labels)


_POSSIBLE: tuple[tuple[str, str, Callable[[Store, Run], bool]], ...] = (
    ("probe", "What each layer knows of the labels", _labels),
    ("entropy", "How predictions form, read by the logit lens", _lens),
    ("text", "How good the text of each layer is", _texts),
    ("choices", "Which answers each layer prefers", _choices),
    ("delta_p", "What a knockout does to a probe of truthfulness", _knockouts),
)
"""Analyses that read what a store may hold: what they say, and whether a run has it."""
