"""A model's tail as numbers: final norm, projection and unembedding, applied with NumPy alone.

    logits = cap(scale · (U P norm(x) + b))        cap(z) = c · tanh(z / c), where there is a soft-cap c

    rms      norm(x) = g · x / sqrt(mean(x²) + eps) + h                (Zhang & Sennrich 2019)
    layer    norm(x) = g · (x - mean(x)) / sqrt(var(x) + eps) + h      (Ba, Kiros & Hinton 2016)

with g the weight, or 1 + the weight (Gemma), and h the bias, each where there is one. `extract.head` takes it
from a model, `store.head` keeps it beside a run, `analyze.lens` asks it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layercache import nearest
from layercache.errors import AnalysisError

_CAST_ELEMENTS = 1 << 24
"""Elements of a 16-bit unembedding made float32 at a time."""
_NEAR = 3


def float32(values: np.ndarray) -> np.ndarray:
    """Return numbers as float32 of the same shape; uint16 are the bits of bfloat16, which NumPy does not know."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Norm:
    """A norm over a state's d elements.

    Attributes:
        kind: `rms` or `layer`.
        eps: what is added to the mean square or the variance.
        weight, bias: [d]; None where there is none.
        add_one: the factor is 1 + weight.
    """

    kind: Literal["rms", "layer"]
    eps: float
    weight: np.ndarray | None
    bias: np.ndarray | None
    add_one: bool

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return the norm of float32 states [n, d], in float32; sums are in float64."""
        if self.kind == "layer":
            states = states - states.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        # Of states near 1e19 the squares are beyond float32.
        square = np.square(states, dtype=np.float64).mean(axis=-1, keepdims=True)
        out: np.ndarray = states * (1 / np.sqrt(square + self.eps)).astype(np.float32)
        if self.weight is not None:
            out *= float32(self.weight) + np.float32(self.add_one)
        if self.bias is not None:
            out += float32(self.bias)
        return out


@dataclass(frozen=True)
class Linear:
    """A linear map: weight [out, in], bias [out] or None; float32, float16, or bfloat16's bits in uint16."""

    weight: np.ndarray
    bias: np.ndarray | None

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return float32 [n, out] for float32 [n, in]; a 16-bit weight is made float32 in pieces."""
        n_out, n_in = self.weight.shape
        step = max(1, _CAST_ELEMENTS // n_in)
        out = np.empty((len(states), n_out), dtype=np.float32)
        for start in range(0, n_out, step):
            out[:, start : start + step] = states @ float32(self.weight[start : start + step]).T
        if self.bias is not None:
            out += float32(self.bias)
        return out


@dataclass(frozen=True)
class Head:
    """The tail of a model, and its vocabulary as text.

    Attributes:
        norm: the final norm; None where the model has none.
        projection: what stands between norm and unembedding (OPT); usually None.
        unembedding: [V, d].
        softcap, scale: what the logits are capped at and multiplied by.
        texts: Arrow strings [V], every token decoded alone; empty for an id that the tokenizer does not have.
        pieces: Arrow strings [V], the same as the tokenizer writes them (`▁Paris`, `ĠParis`).
    """

    norm: Norm | None
    projection: Linear | None
    unembedding: Linear
    softcap: float | None
    scale: float
    texts: pa.Array
    pieces: pa.Array

    @property
    def width(self) -> int:
        """Elements of a state."""
        first = self.projection or self.unembedding
        return int(first.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Logits of a state."""
        return len(self.unembedding.weight)

    def logits(self, states: np.ndarray, *, normed: bool = False) -> np.ndarray:
        """Return logits, float32 [n, V], of float32 states [n, d]; `normed` states are after the final norm."""
        if self.norm is not None and not normed:
            states = self.norm(states)
        if self.projection is not None:
            states = self.projection(states)
        logits = self.unembedding(states)
        if self.scale != 1.0:
            logits *= np.float32(self.scale)
        if self.softcap is not None:
            logits /= np.float32(self.softcap)
            np.tanh(logits, out=logits)
            logits *= np.float32(self.softcap)
        return logits

    def token(self, wanted: int | str) -> int:
        """Return a token's id, given the id, its text (` Paris`) or the tokenizer's own writing (`▁Paris`).

        Raises:
            AnalysisError: there is no such id, or the text is no single token, or several.
        """
        if not isinstance(wanted, str):
            if not 0 <= wanted < self.vocabulary:
                raise AnalysisError(f"there is no token {wanted}: ids are 0 to {self.vocabulary - 1}")
            return int(wanted)
        found = _places(self.texts, wanted)
        if len(found) != 1:
            found = _places(self.pieces, wanted) or found
        if not wanted or not found:
            raise AnalysisError(f"{wanted!r} is no single token of this model: {self._near(wanted)}")
        if len(found) > 1:
            same = ", ".join(f"{one} ({self.pieces[one].as_py()!r})" for one in found[:_NEAR])
            raise AnalysisError(f"{wanted!r} is {len(found)} tokens, {same}: give one of these ids or writings")
        return found[0]

    def _near(self, wanted: str) -> str:
        """Name tokens that were perhaps meant: the same but for spaces and case, its beginning, or similar ones."""
        known = dict.fromkeys(self.texts.to_pylist())
        core = wanted.strip()
        spelled = [form for word in (core, core.lower(), core.capitalize()) for form in (f" {word}", word)]
        near = [form for form in spelled if form in known and form.strip()]
        starts = (form[:end] for end in range(len(core), 1, -1) for form in (f" {core}", core))
        near += next(([start] for start in starts if start in known), [])
        if core:
            alike = [text for text in known if text.strip()[:1] == core[:1]]
            near += nearest.nearest(wanted, alike, n=_NEAR)
        near = list(dict.fromkeys(near))[:_NEAR]
        return f"near ones are {', '.join(map(repr, near))}" if near else "give the id instead"


def _places(texts: pa.Array, wanted: str) -> list[int]:
    return [int(place) for place in pc.indices_nonzero(pc.equal(texts, wanted)).to_pylist()]
