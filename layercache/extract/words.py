"""Token ids as text, decoded alone and remembered."""

from typing import Any

import numpy as np
import pyarrow as pa


class Words:
    """Decodes token ids, each alone.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Return one token's text; empty for an id that the tokenizer does not have (a padded vocabulary)."""
        if token not in self._known:
            size = len(self._tokenizer)
            decode = self._tokenizer.decode
            self._known[token] = str(decode([token], clean_up_tokenization_spaces=False)) if token < size else ""
        return self._known[token]

    def texts(self, tokens: np.ndarray) -> pa.Array:
        """Return the texts of ids of any integer dtype, as an Arrow string array [n]."""
        distinct, index = np.unique(tokens, return_inverse=True)
        return pa.array([self.text(int(token)) for token in distinct], pa.string()).take(pa.array(index))
