"""Baselines of the fine-tuning study that need training from scratch: a small GRU and a small transformer encoder.

    python -m layercache.demo.small_models [--data boolq.jsonl] [--kind rnn|transformer] [--seeds 3] [--epochs 8]

They read the tokens of the demo model's tokenizer, one classification at the end, on the splits that `layercache finetune`
makes of the same rows, so that their numbers stand beside its table. Optional, and no part of the package's core.
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from layercache import dataset, splits
from layercache.demo.datasets import TEMPLATES
from layercache.extract import checkpoint, model
from layercache.extract.tokenize import tokenize
from layercache.groups import TEST, TRAIN, VALIDATION
from layercache.recipe import DataSpec

WIDTH, BATCH, RATE, LONGEST = 96, 32, 1e-3, 512
"""Elements of a state, rows of a batch, the learning rate, and tokens of the longest prompt."""


class Rows(NamedTuple):
    """Rows of one part: token ids padded with 0, shifted by one [n, longest], their lengths [n], and the answers [n]."""

    ids: torch.Tensor
    lengths: torch.Tensor
    answers: torch.Tensor


class Gru(nn.Module):
    """One bidirectional GRU over embeddings, its states averaged over the tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, WIDTH, padding_idx=0)
        self.rnn = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 2]."""
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(_mean(states, lengths))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Two encoder layers over embeddings and learnt positions, their states averaged over the tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, WIDTH, padding_idx=0)
        self.position = nn.Embedding(LONGEST, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 2]."""
        states = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        states = self.layers(states, src_key_padding_mask=torch.arange(ids.shape[1])[None] >= lengths[:, None])
        return self.head(_mean(states, lengths))  # type: ignore[no-any-return]


KINDS: dict[str, type[Gru] | type[Transformer]] = {"rnn": Gru, "transformer": Transformer}


def _mean(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Average states [n, t, d] over each row's own tokens."""
    real = (torch.arange(states.shape[1])[None] < lengths[:, None])[:, :, None]
    return (states * real).sum(1) / lengths[:, None]


def load(source: str, limit: int | None = None) -> tuple[dict[str, Rows], int]:
    """Read the rows of every part, and the size of the vocabulary."""
    spec = DataSpec(source=source, template=TEMPLATES["boolq"], labels=["answer:boolean"], limit=limit)
    data = dataset.load(spec)
    groups = splits.groups_of(data, ["passage", "question"])
    data = splits.with_split(data, groups, validation=0.1, test=0.2, seed=0)
    tokenizer = model.load_tokenizer(checkpoint.find("demo"))
    samples = tokenize(data.prompts, tokenizer, chat=False, context=LONGEST, truncate=True)
    parts, answers = splits.parts(data, groups), data.frame["answer"].to_list()
    found = {}
    for part in (TRAIN, VALIDATION, TEST):
        rows = [i for i, own in enumerate(parts) if own == part]
        tokens = [torch.from_numpy(samples.distinct[samples.of_row[i] or ""].tokens).long() + 1 for i in rows]
        found[part] = Rows(
            nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            torch.tensor([len(one) for one in tokens]),
            torch.tensor([int(answers[i]) for i in rows]),
        )
    return found, len(tokenizer)


def train(kind: str, rows: dict[str, Rows], vocabulary: int, epochs: int, seed: int) -> dict[str, float]:
    """Train one model; keep the epoch that does best on the rows to validate on.

    Returns:
        The accuracy on every part.
    """
    torch.manual_seed(seed)
    net = KINDS[kind](vocabulary)
    update = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    best = {TRAIN: 0.0, VALIDATION: -1.0, TEST: 0.0}
    own = rows[TRAIN]
    for _ in range(epochs):
        net.train()
        for chosen in torch.split(torch.randperm(len(own.answers)), BATCH):
            longest = int(own.lengths[chosen].max())
            logits = net(own.ids[chosen, :longest], own.lengths[chosen])
            loss = nn.functional.cross_entropy(logits, own.answers[chosen])
            update.zero_grad()
            torch.autograd.backward(loss)
            update.step()
        net.eval()
        found = {part: accuracy(net, one) for part, one in rows.items()}
        best = max(best, found, key=lambda one: one[VALIDATION])
    return best


@torch.no_grad()
def accuracy(net: nn.Module, rows: Rows) -> float:
    """Return the share of rows answered right."""
    hits = [
        (net(rows.ids[chosen], rows.lengths[chosen]).argmax(1) == rows.answers[chosen]).float()
        for chosen in torch.split(torch.arange(len(rows.answers)), 64)
    ]
    return float(torch.cat(hits).mean())


def main() -> None:
    """Train and print a line a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo:boolq")
    parser.add_argument("--kind", choices=sorted(KINDS), help="both when not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    asked = parser.parse_args()
    rows, vocabulary = load(asked.data)
    for kind in [asked.kind] if asked.kind else KINDS:
        found = [train(kind, rows, vocabulary, asked.epochs, seed) for seed in range(asked.seeds)]
        means = {part: np.mean([one[part] for one in found]) for part in rows}
        spread = " ".join(f"{one[TEST]:.3f}" for one in found)
        told = ", ".join(f"{part} {mean:.3f}" for part, mean in means.items())
        print(f"{kind}: accuracy {told} ({len(rows[TEST].answers)} rows tested; seeds: {spread})")


if __name__ == "__main__":
    main()
