"""Analyses: they read the store and give one tidy table of numbers. No torch here but in `bertscore`, when it is asked for.

A new kind of analysis is a module with one function and one entry of KINDS. Called, the package is the stage:
`layercache.analyze(store, "probe")` is `layercache.api.analyze`.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from layercache import api
from layercache.analyze import bertscore, text_scores
from layercache.analyze.choices import choices
from layercache.analyze.compare import compare
from layercache.analyze.delta_p import delta_p
from layercache.analyze.entropy import entropy
from layercache.analyze.probe import probe
from layercache.analyze.probe_depth import probe_depth
from layercache.analyze.quality import quality
from layercache.analyze.text import text
from layercache.progress import Progress
from layercache.recipe import AnalysisSpec, TextSpec
from layercache.store.reader import Store
from layercache.store.results import Outcome

KINDS: dict[str, Callable[[Store, Any, Progress], Outcome]] = {
    "probe": probe,
    "probe_depth": probe_depth,
    "entropy": entropy,
    "text": text,
    "choices": choices,
    "delta_p": delta_p,
    "quality": quality,
    "compare": compare,
}
"""The function behind every kind of analysis, called with the store, the kind's own spec and a progress."""


def analyze(store: Store, spec: AnalysisSpec, progress: Progress) -> Outcome:
    """Run one analysis; nothing is written (`store.results.save` keeps the outcome).

    Raises:
        AnalysisError: it cannot be computed from what the store holds; one line, with what to do.
        StoreError: the store cannot be read, or a run is not known.
    """
    return KINDS[spec.kind](store, spec, progress)


def reads(spec: AnalysisSpec) -> list[str]:
    """Name by its content what an analysis reads beside the store: the encoder of BERTScore."""
    if not isinstance(spec, TextSpec) or spec.bertscore_model is None:
        return []
    needed = any(name in text_scores.BERTSCORE for name in text_scores.asked(spec))
    return [f"bertscore/{bertscore.identity(spec.bertscore_model)}"] if needed else []


class _Stage(ModuleType):
    """A package that is called like the function that users know by its name."""

    __call__ = staticmethod(api.analyze)


sys.modules[__name__].__class__ = _Stage
