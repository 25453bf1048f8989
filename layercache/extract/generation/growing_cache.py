"""A cache of keys and values that grows in place, for rows that share prompts and leave one by one."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens by which a cache grows; it is copied whenever it does."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A block's keys and values [rows, heads, tokens, d] for some rows, appended to in place.

    Args:
        prompt: the cache of the prompts, a row each.
        rows: which of those every row of this one continues.
    """

    def __init__(self, prompt: DynamicLayer, rows: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = prompt.dtype, prompt.device, True
        self._length = prompt.keys.shape[-2]
        self._keys, self._values = self._roomy(prompt.keys, rows), self._roomy(prompt.values, rows)
        self._show()

    def get_seq_length(self) -> int:
        """Return the tokens held, of no row as well."""
        return int(self._length)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Append the keys and values [rows, heads, new tokens, d] of some tokens; return those of all."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._keys.shape[-2]:
            self._keys, self._values = self._roomy(self._keys), self._roomy(self._values)
        self._keys[:, :, start : self._length] = key_states
        self._values[:, :, start : self._length] = value_states
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep some rows, int64 [kept], in that order."""
        rows = beam_idx.to(self._keys.device)
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self._length], self._values[:, :, : self._length]

    def _roomy(self, states: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        n, heads, tokens, width = states.shape
        new = states.new_empty(n if rows is None else len(rows), heads, max(tokens, self._length) + _ROOM, width)
        new[:, :, :tokens] = states if rows is None else states[rows.to(states.device)]
        return new
