"""The GPU side: runs a model and stores what its layers say. torch and transformers live here.

Called, the package is the stage: `layercache.extract(models=…, data=…)` is `layercache.api.extract`.
"""

import sys
from types import ModuleType

from layercache import api


class _Stage(ModuleType):
    """A package that is called like the function that users know by its name."""

    __call__ = staticmethod(api.extract)


sys.modules[__name__].__class__ = _Stage
