"""Documents as rows of tokens for training: packed side by side, never looking at each other."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast

from layercache.demo.corpus import Document

CHUNK = 2048
"""Documents tokenised at once."""
EOS_WEIGHT = 0.3
"""Weight of the end of a document in the loss, beside 0 for its beginning."""


class Encoded(NamedTuple):
    """The token ids of a document with BOS and EOS, and each token's weight in the loss."""

    ids: list[int]
    weights: list[float]


class Batch(NamedTuple):
    """What one training step sees."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def encode(tokenizer: PreTrainedTokenizerFast, documents: Iterator[Document]) -> Iterator[Encoded]:
    """Token ids and weights of documents; EOS counts a little, as it is easy."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while chunk := [document for _, document in zip(range(CHUNK), documents, strict=False)]:
        pieces = [text for document in chunk for text, _ in document]
        coded = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
        for document in chunk:
            ids, weights = [bos], [0.0]
            for _, weight in document:
                piece = next(coded)
                ids += piece
                weights += [weight] * len(piece)
            yield Encoded([*ids, eos], [*weights, EOS_WEIGHT])


def pack(encoded: Iterator[Encoded], width: int, open_rows: int = 32) -> Iterator[list[Encoded]]:
    """Documents gathered into rows of at most `width` tokens, each put into the fullest row where it fits."""
    waiting: list[tuple[int, list[Encoded]]] = []
    for document in encoded:
        length = len(document.ids)
        if length > width:
            raise ValueError(f"a document of {length} tokens does not fit a row of {width}")
        fitting = [i for i, (used, _) in enumerate(waiting) if used + length <= width]
        if fitting:
            best = max(fitting, key=lambda i: waiting[i][0])
            waiting[best] = (waiting[best][0] + length, [*waiting[best][1], document])
        else:
            waiting.append((length, [document]))
        if len(waiting) > open_rows:
            yield waiting.pop(max(range(len(waiting)), key=lambda i: waiting[i][0]))[1]
    for _, row in waiting:
        yield row


def batches(rows: Iterator[list[Encoded]], size: int, width: int) -> Iterator[Batch]:
    """Full batches; what is left over at the end is dropped."""
    while len(group := [row for _, row in zip(range(size), rows, strict=False)]) == size:
        yield collate(group, width)


def collate(rows: list[list[Encoded]], width: int) -> Batch:
    """One batch with its block-diagonal causal mask; padding is a block of its own without weight."""
    shape = (len(rows), width)
    ids, positions, blocks = (np.zeros(shape, np.int64) for _ in range(3))
    targets, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        at = 0
        for block, document in enumerate(row, 1):
            end = at + len(document.ids)
            ids[r, at:end] = document.ids
            positions[r, at:end] = np.arange(end - at)
            blocks[r, at:end] = block
            targets[r, at : end - 1] = document.ids[1:]
            weights[r, at : end - 1] = document.weights[1:]
            at = end
    tensors = [torch.from_numpy(array) for array in (ids, targets, weights, positions)]
    return Batch(tensors[0], tensors[1], tensors[2], tensors[3], _mask(blocks))


def _mask(blocks: npt.NDArray[np.int64]) -> torch.Tensor:
    same = blocks[:, None, :, None] == blocks[:, None, None, :]
    return torch.from_numpy(same & np.tri(blocks.shape[1], dtype=bool))
