"""How fast states and lens are stored, against the bare forward pass that no tool can beat.

    python benchmarks/extract.py [--quick] [--json]

A Llama of 12 layers and width 768 with random weights and a vocabulary of 32,000 reads prompts of
log-normal length (4 to 768 tokens). Everything compared runs in turn in this process, in paired rounds:

    bare, sorted          the blocks alone, in our batches: the limit for states
    bare, data order      the same, sixteen prompts at a time as they come
    output_hidden_states  the usual loop: all layers of the full model, mean and last pooled afterwards
    layercache states     mean and last of every layer, written to a store
    limit for the lens    bare, sorted, and one unembedding product of every layer at one position
    layercache lens       states, and the lens at the last position, written to a store

A figure is the median over rounds of the ratio of times within a round; A/A is bare against itself. The
last column is the ratio of the fastest times, which other work on the machine disturbs least.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from layercache.extract import batching, model, select, structure
from layercache.extract.checkpoint import Checkpoint
from layercache.extract.forward import inputs
from layercache.extract.loop import Loop
from layercache.extract.publish import ShardLimits
from layercache.extract.tokenize import Sample, sample_id
from layercache.progress import Progress
from layercache.recipe import ExtractSpec
from layercache.store import writer

WIDTH, VOCABULARY, LONGEST = 768, 32_000, 768
STATES = ExtractSpec(pooling=["mean", "last"], lens=[], self_check=False)
LENS = ExtractSpec(pooling=["mean", "last"], lens=["last"], self_check=False)


def make_model(n_layers: int) -> model.Model:
    """A Llama with random weights, as `model.load` returns it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=n_layers,
        num_attention_heads=12,
        max_position_embeddings=LONGEST,
    )
    module = LlamaForCausalLM(config).eval().requires_grad_(False)
    checkpoint = Checkpoint("random-llama", Path(), config, {"architectures": ["LlamaForCausalLM"]}, (), {}, False)
    found = structure.analyse(module, config)
    plan = model.Plan(checkpoint, found, True, torch.device("cpu"), torch.float32, "sdpa", LONGEST, 0)
    return model.Model(plan, module, found)


def make_samples(n: int) -> list[Sample]:
    """Prompts of random tokens and log-normal length, 4 to 768 with a median near 90."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.5, 0.9, n)), 4, LONGEST).astype(int)
    samples = []
    for length in lengths:
        tokens = rng.integers(1, VOCABULARY, length, dtype=np.int32)
        spans = {"prompt": (0, int(length))}
        special = np.zeros(length, dtype=bool)
        samples.append(Sample(sample_id(tokens.tolist(), spans, None), "", tokens, special, spans, {}, None, 0))
    return samples


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 32,000 words, to decode what the lens finds."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")


class Contest:
    """The same prompts through every contender."""

    def __init__(self, n_layers: int, n_prompts: int) -> None:
        self.model = make_model(n_layers)
        self.samples = make_samples(n_prompts)
        self.tokenizer = make_tokenizer()
        self.longest = max(len(sample) for sample in self.samples)
        self.budget = batching.automatic(self.model.plan, self.longest)
        self.tokens = sum(len(sample) for sample in self.samples)
        windows = batching.windows(self.samples, self.budget, seed=0)
        self.sorted = [batch for window in windows for batch in window]
        self.in_order = [self.samples[i : i + 16] for i in range(0, n_prompts, 16)]

    def collate(self, members: list[Sample]) -> batching.Batch:
        return batching.collate(members, torch.device("cpu"), pad_id=0, position_offset=0, left=False)

    @torch.inference_mode()
    def bare(self) -> None:
        for members in self.sorted:
            self.model.structure.base(**inputs(self.model, self.collate(members)))

    @torch.inference_mode()
    def bare_in_order(self) -> None:
        for members in self.in_order:
            self.model.structure.base(**inputs(self.model, self.collate(members)))

    @torch.inference_mode()
    def hidden_states_loop(self) -> None:
        kept = []
        for members in self.in_order:
            batch = self.collate(members)
            out = self.model.module(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            )
            mask = batch.attention_mask[:, :, None]
            for state in out.hidden_states:
                kept.append((state * mask).sum(1) / mask.sum(1))
                kept.append(state[torch.arange(len(members)), batch.lengths - 1])
        torch.cat(kept).numpy()

    @torch.inference_mode()
    def lens_limit(self) -> None:
        weight = self.model.module.lm_head.weight
        for members in self.sorted:
            out = self.model.structure.base(**inputs(self.model, self.collate(members)))
            # All layers in one product, which is faster than one after the other.
            functional.linear(out.last_hidden_state[:, -1].repeat(self.model.structure.n_layers + 1, 1), weight)

    def layercache(self, spec: ExtractSpec) -> None:
        found = self.model.structure
        selection, _ = select.select(spec, self.model.plan)
        with tempfile.TemporaryDirectory() as folder:
            run = writer.open_run(
                Path(folder) / "store",
                {"benchmark": 1},
                model="random-llama",
                layers=found.layers,
                width=found.width,
                final_layer=found.n_layers,
            )
            loop = Loop(self.model, self.tokenizer, spec, self.longest, Progress())
            loop.run(run, selection, [(select.named(selection), self.samples)], "benchmark", ShardLimits())


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(contest: Contest, rounds: int) -> dict[str, list[float]]:
    """Time every contender in every round, in an order that turns."""
    contenders: dict[str, Callable[[], None]] = {
        "bare, sorted": contest.bare,
        "layercache states": lambda: contest.layercache(STATES),
        "bare, sorted again": contest.bare,
        "layercache lens": lambda: contest.layercache(LENS),
        "limit for the lens": contest.lens_limit,
        "bare, data order": contest.bare_in_order,
        "output_hidden_states": contest.hidden_states_loop,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    contest.bare()
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(contenders[name]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return times


FIGURES = {
    "states_over_bare": ("bare, sorted", "layercache states"),
    "lens_over_limit": ("limit for the lens", "layercache lens"),
    "over_hidden_states": ("output_hidden_states", "layercache states"),
    "over_data_order": ("bare, data order", "layercache states"),
    "a_over_a": ("bare, sorted", "bare, sorted again"),
}


def report(times: dict[str, list[float]], tokens: int) -> dict[str, float]:
    """Print the table; return the ratios (speed of the second against the first)."""
    print(f"{'':24}{'tokens/s':>10}")
    for name, seconds_ in times.items():
        print(f"{name:24}{tokens / statistics.median(seconds_):>10,.0f}")
    print(f"\n{'ratio':24}{'median':>10}{'from':>8}{'to':>8}{'fastest':>10}")
    figures = {}
    for name, (slow, fast) in FIGURES.items():
        ratios = sorted(a / b for a, b in zip(times[slow], times[fast], strict=True))
        figures[name] = round(statistics.median(ratios), 3)
        fastest = min(times[slow]) / min(times[fast])
        print(f"{name:24}{figures[name]:>10.3f}{ratios[0]:>8.3f}{ratios[-1]:>8.3f}{fastest:>10.3f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer layers, prompts and rounds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of figures")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    n_layers, n_prompts, rounds = (4, 40, 4) if options.quick else (12, 192, 7)
    contest = Contest(n_layers, n_prompts)
    print(
        f"{n_layers} layers of width {WIDTH}, {n_prompts} prompts, {contest.tokens:,} tokens, {rounds} rounds;"
        f" torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()},"
        f" {torch.get_num_threads()} threads\n"
    )
    figures = report(measure(contest, rounds), contest.tokens)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
