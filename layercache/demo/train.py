"""Train a demo model from nothing: `python -m layercache.demo.train --out DIR [--architecture mamba2] [--steps N | --quick]`.

Writes DIR/early, DIR/middle and DIR/final, each a complete Hugging Face folder, and DIR/training.json with the losses.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from layercache.demo.architectures import ARCHITECTURES, new_model, save
from layercache.demo.corpus import documents
from layercache.demo.packing import Batch, batches, encode, pack
from layercache.demo.tokenizer import demo_tokenizer

ROWS, WIDTH = 16, 128
"""Rows of packed documents that a step sees, and tokens of a row."""
STEPS = 4070
"""Steps of the whole training."""
QUICK_STEPS = 50
"""Steps with `--quick`."""
CHECKPOINTS = {"early": 678, "middle": 1890}
# Where the text turns from reading to films, the optimizers forget and the weights are rounded as when saved.
RESTART = 1582
MUON_LR, ADAM_LR = 0.015, 3e-3
"""Highest learning rates: of the blocks' matrices, and of embeddings, head and norms."""
DECAY = 0.6
"""The share of the steps, at their end, over which the learning rate falls to 0."""
LOG_EVERY = 50
"""Steps between two lines of progress."""


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or ".layers." not in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def pace(step: int, steps: int) -> float:
    """The share of the full learning rate: a short warm-up, flat, then straight down over the last part."""
    return min(1.0, (step + 1) / 50, (steps - step) / (DECAY * steps))


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """The weighted mean cross-entropy of a batch's tokens: a scalar of dtype float32, nats.

    A state-space model takes no mask between the documents of a row: it reads on, and learns to forget at a BOS.
    """
    apart = (
        {} if model.config.model_type == "mamba2" else {"attention_mask": batch.mask, "position_ids": batch.positions}
    )
    with torch.autocast("cpu", torch.bfloat16):
        states = model.base_model(input_ids=batch.ids, use_cache=False, **apart).last_hidden_state
        logits = model.lm_head(states)
    losses = functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    loss: torch.Tensor = (losses * weights).sum() / weights.sum()
    return loss


def training_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """The training text, again from the start under another seed should the steps outlast it."""
    seed = 0
    while True:
        yield from batches(pack(encode(tokenizer, documents(seed)), WIDTH), ROWS, WIDTH)
        seed += 1


def set_pace(updates: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every learning rate from its full value."""
    for update in updates:
        for group in update.param_groups:
            group["lr"] = factor * group.setdefault("full_lr", group["lr"])


def round_weights(model: PreTrainedModel) -> None:
    """What saving and loading the weights does to them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def train(out: Path, steps: int, architecture: str = "llama") -> list[dict[str, float]]:
    """Train for a number of steps and write everything; the losses by step are returned."""
    torch.manual_seed(0)
    tokenizer = demo_tokenizer()
    model = new_model(architecture, tokenizer)
    compiled, updates = torch.compile(loss_of, dynamic=False), optimizers(model)
    saves = {at * steps // STEPS: name for name, at in CHECKPOINTS.items()} | {steps: "final"}
    log: list[dict[str, float]] = []
    begin, recent = time.perf_counter(), 0.0
    for step, batch in zip(range(steps), training_batches(tokenizer), strict=False):
        if step == RESTART * steps // STEPS:
            round_weights(model)
            updates = optimizers(model)
        set_pace(updates, pace(step, steps))
        loss = compiled(model, batch)
        torch.autograd.backward(loss)
        for update in updates:
            update.step()
            update.zero_grad()
        recent += loss.item() / LOG_EVERY
        if (step + 1) % LOG_EVERY == 0:
            log.append({"step": step + 1, "loss": round(recent, 4)})
            took = time.perf_counter() - begin
            print(f"step {step + 1}/{steps}  loss {recent:.3f}  {took / (step + 1) * 1000:.0f} ms a step", flush=True)
            recent = 0.0
        if step + 1 in saves:
            save(model, tokenizer, out / saves[step + 1])
    summary = {"steps": steps, "tokens_a_step": ROWS * WIDTH, "seconds": round(time.perf_counter() - begin)}
    (out / "training.json").write_text(json.dumps(summary | {"losses": log}, indent=1) + "\n")
    return log


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, default="llama", help="what is trained (default llama)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, to see that it runs")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments.out, QUICK_STEPS if arguments.quick else arguments.steps, arguments.architecture)


if __name__ == "__main__":
    main()
