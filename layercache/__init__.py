"""layercache: run a language model once, keep what every layer said, ask about layers with SQL.

import layercache as lc

lc.run("movies", store="films")                          # extract what is missing, analyse, report
lc.extract(models="gpt2", data="films.csv", store="films", pooling=["mean", "last"])

store = lc.open("films")                                 # a laptop is enough from here on
lc.probe(store, labels=["rating"])                       # a table by layer; .results is the tidy one
store.matrix(store.runs()[0], layer=3)                   # (samples, d) float32 and the samples' ids
store.sql("SELECT layer, avg(entropy) FROM lens GROUP BY layer")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layercache.errors import LayercacheError
from layercache.progress import Progress, TerminalProgress

if TYPE_CHECKING:
    from layercache.api import (
        analyze,
        choices,
        compare,
        delta_p,
        entropy,
        extract,
        load_recipe,
        probe,
        probe_depth,
        quality,
        run,
        text,
    )
    from layercache.recipe import Recipe
    from layercache.store.reader import Store, open

__version__ = "0.1.0"

__all__ = [
    "LayercacheError",
    "Progress",
    "Recipe",
    "Store",
    "TerminalProgress",
    "analyze",
    "choices",
    "compare",
    "delta_p",
    "entropy",
    "extract",
    "load_recipe",
    "open",
    "probe",
    "probe_depth",
    "quality",
    "run",
    "text",
]

_STAGES = {"analyze", "extract"}
"""Packages that can be called: importing a module of theirs would replace a function of that name here."""

# Looked up on first use, so that `import layercache` and the command line start at once.
_LAZY = {
    **{name: ("layercache.api", name) for name in __all__ if name[0].islower()},
    "Recipe": ("layercache.recipe", "Recipe"),
    "Store": ("layercache.store.reader", "Store"),
    "open": ("layercache.store.reader", "open"),
}


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return import_module(f"layercache.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'layercache' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
