"""What calls of `extract` that follow each other share: the model that was loaded last, and the last samples.

    kept = Kept()
    for part in parts.every(100):
        extract(model_spec, data, spec, store, progress, part=part, kept=kept)

The weights are read once, and the data set is tokenised once. Another model takes the place of the one before it.
"""

import gc
from collections.abc import Callable, Hashable

import torch

from layercache.dataset import Dataset
from layercache.extract import model
from layercache.extract.model import Model, Plan
from layercache.extract.tokenize import Samples


class Kept:
    """Holds one model in memory, and one data set's samples; not to be shared by threads."""

    def __init__(self) -> None:
        self._model: tuple[Hashable, Model] | None = None
        self._samples: tuple[Dataset, Hashable, Samples] | None = None

    def load(self, plan: Plan, identity: Hashable) -> Model:
        """Return the model that was loaded for the same identity and place, or load it.

        Args:
            identity: of the weights and of how they are loaded.

        Raises:
            ModelError: as `model.load`.
        """
        key = identity, str(plan.device), plan.device_map, str(plan.max_memory)
        if self._model is None or self._model[0] != key:
            self.drop()
            self._model = key, model.load(plan)
        return self._model[1]

    def drop(self) -> None:
        """Let the model go, and its memory."""
        if self._model is None:
            return
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def samples(self, data: Dataset, how: Hashable, make: Callable[[], Samples]) -> Samples:
        """Return the samples of the same data set, made in the same way, or make them."""
        if self._samples is None or self._samples[0] is not data or self._samples[1] != how:
            self._samples = data, how, make()
        return self._samples[2]
