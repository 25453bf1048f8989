"""Which choice a model prefers after a prompt, by the log-probability of the whole answer."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from layercache.extract.finetune.examples import Example

Floats = npt.NDArray[np.float64]

_LOGITS = 1 << 27
"""Logits computed at once: half a gigabyte of float32."""


class _Pass(NamedTuple):
    """A sequence to run: the example it is of, prompt with all but the last token of the answers it scores, and those."""

    example: int
    tokens: tuple[int, ...]
    choices: tuple[int, ...]


@torch.inference_mode()
def log_probabilities(module: Any, examples: Sequence[Example], device: torch.device) -> Floats:
    """Score every choice after every prompt.

    Args:
        module: a causal language model in evaluation mode.

    Returns:
        float64 [examples, choices]: log-probability of the answer's tokens, nats.
    """
    found = np.zeros((len(examples), len(examples[0].answers) if examples else 0))
    vocabulary = int(module.config.get_text_config().vocab_size)
    for batch in _batches(list(_passes(examples)), max(1, _LOGITS // vocabulary)):
        longest = max(len(one.tokens) for one in batch)
        # Padded on the right, no token sees the padding, and positions count from 0 by themselves.
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(batch):
            ids[row, : len(one.tokens)] = torch.tensor(one.tokens)
            mask[row, : len(one.tokens)] = 1
        logits = module(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        for row, one in enumerate(batch):
            example = examples[one.example]
            for choice in one.choices:
                answer = example.answers[choice]
                start = len(example.tokens) - 1
                each = logits[row, start : start + len(answer)].float().log_softmax(-1)
                found[one.example, choice] = sum(float(each[place, token]) for place, token in enumerate(answer))
    return found


def accuracy(scores: Floats, examples: Sequence[Example]) -> dict[str, float | int]:
    """Return the share of examples whose right answer is the most probable choice, its mean surprisal, and their number.

    Of equally probable choices the first one counts.

    Args:
        scores: log-probabilities, float64 [examples, choices], nats, as `log_probabilities` gives them.
    """
    right = np.array([one.right for one in examples])
    hits = scores.argmax(axis=1) == right
    surprisal = -scores[np.arange(len(right)), right]
    return {"accuracy": float(hits.mean()), "answer_nll": float(surprisal.mean()), "n": len(right)}


def _passes(examples: Sequence[Example]) -> Iterator[_Pass]:
    """Yield the sequences to run: answers of one token need only the prompt, once for all of them."""
    for index, one in enumerate(examples):
        together: dict[tuple[int, ...], list[int]] = {}
        for choice, answer in enumerate(one.answers):
            together.setdefault(answer[:-1], []).append(choice)
        for before, choices in together.items():
            yield _Pass(index, one.tokens + before, tuple(choices))


def _batches(passes: list[_Pass], most: int) -> Iterator[list[_Pass]]:
    """Cut passes, the longest first, into batches of at most so many padded tokens."""
    batch: list[_Pass] = []
    for one in sorted(passes, key=lambda one: -len(one.tokens)):
        if batch and len(batch[0].tokens) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
