"""Text from every layer in one sweep: a batch whose row of exit k leaves after block k.

    prompts ──▶ block 1 ──▶ block 2 ──▶ … ──▶ block L        once, all prompts; every block fills its cache
    rows        all exits   exits ≥ 2         exits ≥ L        for every new token: L blocks, not L (L + 1) / 2

Rows stand deepest exit first, so those that leave are the end of the batch. The model's own forward pass runs;
hooks before every block cut everything it is given (states, masks, positions) to the rows still there. What
of that is a row of the batch is found by running batches of two sizes. Every block's cache holds the rows
that reach it, and of a prompt's keys and values each exit takes its own copy, since they grow apart.

Whether all this is right for a model is not assumed: `sweep_check.py` compares it with full passes.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from layercache.extract.batching import collate
from layercache.extract.generation.growing_cache import GrowingLayer
from layercache.extract.generation.narrow import Axes, Unsupported, narrow, row_axis, tensors
from layercache.extract.model import Model
from layercache.extract.tokenize import Sample

_CACHES = ("past_key_values", "cache_params")
"""What models call their cache; the second has no keys, only a state, and takes a mask only with a prompt."""


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass after the deepest exit."""


class Sweep:
    """Next-token states of many exits at once.

    Args:
        pieces: two or more samples, of different lengths, that rows are told from other dimensions with.

    Raises:
        Unsupported: the model takes no cache, or rows cannot be told apart in what its blocks are given.
    """

    def __init__(self, model: Model, pad_id: int, pieces: Sequence[Sample]) -> None:
        self.model, self.pad_id = model, pad_id
        self._taken = inspect.signature(model.structure.base.forward).parameters
        self._cache_name = next((name for name in _CACHES if name in self._taken), "")
        if not self._cache_name:
            raise Unsupported(f"{type(model.structure.base).__name__} takes no cache")
        # Of the rows of the moment: their exits, which tokens are real, and the last token's position.
        self._exits = np.zeros(0, dtype=np.int64)
        self._mask = self._positions = torch.zeros(0, 0, dtype=torch.int64)
        self._cache = DynamicCache()
        self._axes = self._find_axes(pieces)

    @torch.inference_mode()
    def start(self, samples: list[Sample], layers: Sequence[int]) -> torch.Tensor:
        """Read the prompts, once for all exits.

        Returns:
            float32 [rows, d]: the last position's state for every (layer, sample), deepest layer first.
        """
        batch = self._prompts(samples)
        deep_first = sorted(set(layers), reverse=True)
        states = self._forward(batch.input_ids, deep_first, None)
        rows = torch.arange(len(samples), device=batch.input_ids.device).repeat(len(deep_first))
        self._exits = np.repeat(np.array(deep_first, dtype=np.int64), len(samples))
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        for index, layer in enumerate(self._cache.layers):
            reach = int((self._exits > index).sum())
            if type(layer) is DynamicLayer and layer.is_initialized and reach:
                self._cache.layers[index] = GrowingLayer(layer, rows[:reach])
            else:
                layer.reorder_cache(rows[:reach])
        return states

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor, keep: list[int]) -> torch.Tensor:
        """Add one token to every row that goes on.

        Args:
            tokens: int64 [kept], the rows' new tokens.
            keep: indices of the rows that go on, ascending; the others are forgotten.

        Returns:
            float32 [kept, d]: their states at the new position, in the same order.
        """
        if len(keep) < len(self._exits):
            self._leave(keep)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(keep), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        deep_first = sorted(set(self._exits.tolist()), reverse=True)
        return self._forward(tokens[:, None], deep_first, self._counts())

    def forget(self) -> None:
        """Let the caches go."""
        self._cache = DynamicCache()

    def _counts(self) -> list[int]:
        """Return the number of rows that reach every layer, 0 to one past L."""
        return [int((self._exits >= layer).sum()) for layer in range(self.model.structure.n_layers + 2)]

    def _leave(self, keep: list[int]) -> None:
        rows = torch.tensor(keep, dtype=torch.int64, device=self._mask.device)
        before = self._counts()
        kept = np.array(keep, dtype=np.int64)
        for index, layer in enumerate(self._cache.layers):
            reached = before[index + 1] if index + 1 < len(before) else 0
            stay = int((kept < reached).sum())
            if reached and stay < reached:
                layer.reorder_cache(rows[:stay])
        self._exits = self._exits[keep]
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _prompts(self, samples: list[Sample]) -> Any:
        """Lay prompts side by side, all ending in the last column, and start an empty cache."""
        plan = self.model.plan
        batch = collate(samples, plan.device, pad_id=self.pad_id, position_offset=plan.position_offset, left=True)
        self._mask, self._positions = batch.attention_mask, batch.position_ids
        self._cache = DynamicCache(config=self.model.module.config)
        return batch

    def _forward(self, ids: torch.Tensor, deep_first: list[int], counts: list[int] | None) -> torch.Tensor:
        """Run the blocks; with `counts`, layer k is given `counts[k]` rows and `counts[k + 1]` go on.

        Without, every row goes through every block, and each exit takes all rows.
        """
        found: dict[int, torch.Tensor] = {}

        def give(layer: int, output: Any) -> None:
            if layer in deep_first:
                hidden = output[0] if isinstance(output, (tuple, list)) else output
                hidden = hidden.reshape(counts[layer] if counts else len(ids), ids.shape[1], -1)
                found[layer] = hidden[counts[layer + 1] if counts else 0 :, -1].float().to(ids.device)
            if counts is not None and layer >= deep_first[0]:
                raise _Stop

        with self._hooks(give, self._narrowed(counts)), suppress(_Stop):
            self.model.structure.base(**self._inputs(ids, first=counts is None))
        return torch.cat([found[layer] for layer in deep_first])

    def _inputs(self, ids: torch.Tensor, *, first: bool) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": ids, self._cache_name: self._cache, "use_cache": True}
        if first or any(isinstance(layer, CacheLayerMixin) for layer in self._cache.layers):
            given["attention_mask"] = self._mask
        if "position_ids" in self._taken:
            given["position_ids"] = self._positions
        return given

    @contextmanager
    def _hooks(self, give: Callable[[int, Any], None], change: Callable[..., Any]) -> Iterator[None]:
        """Call `give(layer, state)` for every layer, and `change(layer, args, kwargs)` before every block."""
        block = 0

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if block == 0:
                give(0, args[0] if args else kwargs["hidden_states"])
            return change(block + 1, args, kwargs)

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal block
            block += 1
            give(block, output)

        with ExitStack() as stack:
            for module in self.model.structure.blocks:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after).remove)
            yield

    def _narrowed(self, counts: list[int] | None) -> Callable[..., Any]:
        def change(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if counts is None or counts[layer] == counts[0]:
                return None
            return (
                tuple(narrow(value, str(i), counts[layer], self._axes) for i, value in enumerate(args)),
                {name: narrow(value, name, counts[layer], self._axes) for name, value in kwargs.items()},
            )

        return change

    @torch.inference_mode()
    def _find_axes(self, pieces: Sequence[Sample]) -> Axes:
        """See which dimensions of a block's inputs grow with the rows, on steps of two and three rows."""
        two, three = (self._shapes([pieces[i % 2] for i in range(n)]) for n in (2, 3))
        if two.keys() != three.keys():
            raise Unsupported("its blocks are given other things in other batches")
        return {path: row_axis(path, shape, three[path]) for path, shape in two.items()}

    def _shapes(self, samples: list[Sample]) -> dict[str, tuple[int, ...]]:
        """Run a prompt and one more token; return the shapes of what blocks are given for the latter."""
        seen: dict[str, tuple[int, ...]] = {}

        def look(_layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for name, value in [*((str(i), arg) for i, arg in enumerate(args)), *kwargs.items()]:
                for path, tensor in tensors(value, name):
                    seen[path] = tuple(tensor.shape)

        batch = self._prompts(samples)
        with self._hooks(lambda *_: None, lambda *_: None):
            self.model.structure.base(**self._inputs(batch.input_ids, first=True))
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(samples), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        with self._hooks(lambda *_: None, look):
            self.model.structure.base(**self._inputs(batch.input_ids[:, -1:], first=False))
        return seen
