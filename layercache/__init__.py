"""layercache: run a language model once, keep what every layer said, ask about layers with SQL.

import layercache as lc

study = lc.load_recipe("movies")                 # or a path to a .toml file
lc.run(study, Path("store"), lc.Progress())      # extract what is missing, analyse, report
store = lc.open("store")                         # a laptop is enough from here on
store.matrix(store.runs()[0], layer=3)           # (samples, d) float32 and the samples' ids
store.sql("SELECT layer, avg(entropy) FROM lens GROUP BY layer")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layercache.errors import LayercacheError
from layercache.progress import Progress, TerminalProgress

if TYPE_CHECKING:
    from layercache.recipe import Recipe
    from layercache.recipe import load as load_recipe
    from layercache.store.reader import Store, open
    from layercache.study import run

__version__ = "0.1.0"

__all__ = [
    "LayercacheError",
    "Progress",
    "Recipe",
    "Store",
    "TerminalProgress",
    "load_recipe",
    "open",
    "run",
]

# Looked up on first use, so that `import layercache` and the command line start at once. The stages alone are
# `layercache.study.extract` and `layercache.study.analyze`: `layercache.extract` is the package.
_LAZY = {
    "Recipe": ("layercache.recipe", "Recipe"),
    "Store": ("layercache.store.reader", "Store"),
    "load_recipe": ("layercache.recipe", "load"),
    "open": ("layercache.store.reader", "open"),
    "run": ("layercache.study", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'layercache' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
