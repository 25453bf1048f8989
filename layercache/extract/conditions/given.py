"""What conditions are made from, and what is left out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from layercache.conditions import Settings
from layercache.extract.tokenize import Sample, Samples, special_ids
from layercache.template import Prompt


class LeftOut(NamedTuple):
    """A sample that a condition cannot be made of.

    Attributes:
        reason: why, as `samples.absent` says it.
        final: more rows in the data set cannot change that, so the store may keep it.
    """

    sample: Sample
    reason: str
    final: bool = True


@dataclass(frozen=True)
class Given:
    """What conditions are made from.

    Attributes:
        samples: the data set's clean samples.
        prompts: every row's prompt, as `samples.of_row` has them.
        chat: prompts go through the tokenizer's chat template.
        context: tokens the model can see; None for no limit.
        truncate: prompts that are longer are cut.
        vocabulary: tokens the model has embeddings for; None where that is not known.
        donors: sample id → the donor that the store names for it under this condition.
    """

    samples: Samples
    prompts: Sequence[Prompt]
    tokenizer: Any
    chat: bool
    context: int | None
    truncate: bool
    vocabulary: int | None
    settings: Settings
    donors: Mapping[str, str] = field(default_factory=dict)

    def with_donors(self, donors: Mapping[str, str]) -> "Given":
        """Return the same, with other donors."""
        return replace(self, donors=donors)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids of the vocabulary that are not special: int32 [ids], ascending."""
        size = len(self.tokenizer) if self.vocabulary is None else self.vocabulary
        special = special_ids(self.tokenizer)
        ids = {number for number in self.tokenizer.get_vocab().values() if number < size} - special
        return np.array(sorted(ids), dtype=np.int32)

    @cached_property
    def prompt_of(self) -> dict[str, Prompt]:
        """Sample id → its prompt; of several texts with the same tokens the smallest, whatever the rows' order."""
        found: dict[str, Prompt] = {}
        for name, prompt in zip(self.samples.of_row, self.prompts, strict=True):
            if name is not None and (name not in found or prompt.text < found[name].text):
                found[name] = prompt
        return found

    def text(self, tokens: np.ndarray, special: np.ndarray) -> str:
        """Return what tokens say, int [n]: the text as a tokenizer would take it, so without the special ones, bool [n]."""
        ids = tokens if self.chat else tokens[~special]
        return str(self.tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False))
