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
        self._backend = tokenizer.backend_tokenizer
        self._size = len(tokenizer)
        self._known: dict[int, str] = {}

    def texts(self, tokens: np.ndarray) -> pa.Array:
        """Return the texts of ids of any integer dtype, as an Arrow string array [n].

        An id that the tokenizer does not have (a vocabulary padded to a round number) is the empty text.
        """
        distinct, index = np.unique(tokens, return_inverse=True)
        ids = distinct.tolist()
        new = [token for token in ids if token not in self._known]
        inside = [token for token in new if token < self._size]
        self._known |= dict.fromkeys(new, "")
        decoded = self._backend.decode_batch([[token] for token in inside], skip_special_tokens=False)
        self._known |= dict(zip(inside, decoded, strict=True))
        return pa.array([self._known[token] for token in ids], pa.string()).take(pa.array(index))
