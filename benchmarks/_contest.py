"""What the extraction benchmarks share: a random Llama, ragged prompts, and every contender that reads them.

All contenders get the same model and the same prompts. Rivals are called as their own documentation shows,
with sixteen prompts at a time in data order, and once more with our batches, so that what comes from
batching can be told from the rest. All but the bare passes return the same: mean and last of every layer,
and the lens (entropy and ten best tokens) of every layer at the last position.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
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

Found = TypeVar("Found")

STATES = ExtractSpec(pooling=["mean", "last"], lens=[], self_check=False)
LENS = ExtractSpec(pooling=["mean", "last"], lens=["last"], self_check=False)
IN_ORDER = 16
"""Prompts a batch for whoever does not sort."""


class Shape(NamedTuple):
    """The size of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    longest: int


def make_model(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> model.Model:
    """A Llama with random weights, as `model.load` returns it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.longest,
        dtype=dtype,
    )
    with torch.device(device):
        module = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    checkpoint = Checkpoint("random-llama", Path(), config, {"architectures": ["LlamaForCausalLM"]}, (), {}, False)
    found = structure.analyse(module, config)
    plan = model.Plan(checkpoint, found, True, torch.device(device), dtype, "sdpa", shape.longest, 0)
    return model.Model(plan, module, found)


def make_samples(n: int, shape: Shape, longest: int | None = None) -> list[Sample]:
    """Prompts of random tokens and log-normal length, 4 to `longest` with a median near 90."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.5, 0.9, n)), 4, longest or shape.longest).astype(int)
    samples = []
    for length in lengths:
        tokens = rng.integers(1, shape.vocabulary, length, dtype=np.int32)
        spans = {"prompt": (0, int(length))}
        special = np.zeros(length, dtype=bool)
        samples.append(Sample(sample_id(tokens.tolist(), spans, None), "", tokens, special, spans, {}, None, 0))
    return samples


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words, to decode what the lens finds."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")


class Contest:
    """The same prompts through every contender."""

    def __init__(self, loaded: model.Model, samples: list[Sample]) -> None:
        self.model, self.samples = loaded, samples
        self.device = loaded.plan.device
        self.tokenizer = make_tokenizer(loaded.plan.checkpoint.config.vocab_size)
        self.longest = max(len(sample) for sample in samples)
        self.tokens = sum(len(sample) for sample in samples)
        budget = batching.automatic(loaded.plan, self.longest)
        self.sorted = [batch for window in batching.windows(samples, budget, seed=0) for batch in window]
        self.in_order = [samples[i : i + IN_ORDER] for i in range(0, len(samples), IN_ORDER)]
        self._rivals: dict[str, Any] = {}

    def collate(self, members: list[Sample]) -> batching.Batch:
        return batching.collate(members, self.device, pad_id=0, position_offset=0, left=False)

    @torch.inference_mode()
    def bare(self, batches: Iterable[list[Sample]]) -> None:
        """The blocks alone."""
        for members in batches:
            self.model.structure.base(**inputs(self.model, self.collate(members)))

    @torch.inference_mode()
    def lens_limit(self, batches: Iterable[list[Sample]]) -> None:
        """The blocks, and one unembedding product of every layer at one position."""
        weight = self.model.module.lm_head.weight
        for members in batches:
            out = self.model.structure.base(**inputs(self.model, self.collate(members)))
            # All layers in one product, which is faster than one after the other.
            functional.linear(out.last_hidden_state[:, -1].repeat(self.model.structure.n_layers + 1, 1), weight)

    @torch.inference_mode()
    def hidden_states_loop(self, batches: Iterable[list[Sample]]) -> None:
        """The loop everyone writes first."""
        for members in batches:
            batch = self.collate(members)
            out = self.model.module(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            )
            self._reduce(out.hidden_states, batch, self.model.module)

    @torch.inference_mode()
    def nnsight(self, batches: Iterable[list[Sample]]) -> None:
        """A trace that saves the output of every block."""
        import nnsight

        tracer = self._rival("nnsight")
        for members in batches:
            batch = self.collate(members)
            with tracer.trace({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}):
                states = [tracer.model.embed_tokens.output]
                for layer in tracer.model.layers:
                    states.append(layer.output)
                states = nnsight.save(states)
            self._reduce(states, batch, self.model.module)

    @torch.inference_mode()
    def transformer_lens(self, batches: Iterable[list[Sample]]) -> None:
        """`run_with_cache` with a filter that leaves out all but the residual stream."""
        bridge = self._rival("transformer_lens")
        layers = self.model.structure.n_layers
        names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(layers))]
        for members in batches:
            batch = self.collate(members)
            _, cache = bridge.run_with_cache(
                batch.input_ids, attention_mask=batch.attention_mask, names_filter=lambda name: name in names
            )
            self._reduce([cache[name] for name in names], batch, self.model.module)

    def _rival(self, name: str) -> Any:
        """Wrap a copy of the model, since a rival may change the modules it wraps."""
        if name not in self._rivals:
            module = copy.deepcopy(self.model.module)
            if name == "nnsight":
                from nnsight import TransformersModel

                self._rivals[name] = TransformersModel(module, tokenizer=self.tokenizer, dispatch=True)
            else:
                from transformer_lens import TransformerBridge

                self._rivals[name] = TransformerBridge.boot_transformers(
                    "llama", hf_model=module, tokenizer=self.tokenizer, device=str(self.device)
                )
        return self._rivals[name]

    def _reduce(self, states: Iterable[torch.Tensor], batch: batching.Batch, module: Any) -> None:
        """What a notebook does with the states of every layer."""
        mask = batch.attention_mask[:, :, None]
        rows = torch.arange(len(batch.samples), device=self.device)
        ends = torch.from_numpy(batch.lengths - 1).to(self.device)
        kept = []
        for state in states:
            last = state[rows, ends]
            logp = torch.log_softmax(module.lm_head(module.model.norm(last)).float(), dim=-1)
            top = logp.topk(10)
            mean = (state * mask).sum(1) / mask.sum(1)
            entropy = -(logp.exp() * logp).sum(-1)
            kept += [part.float().cpu().numpy() for part in (mean, last, entropy, top.values, top.indices)]

    def layercache(self, spec: ExtractSpec) -> None:
        """The product: into a store."""
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
            groups = [(select.named(selection), self.samples)]
            loop.run(run, selection, groups, "benchmark", ShardLimits(), loop.check(self.samples))

    def contenders(self, rivals: Iterable[str]) -> dict[str, Callable[[], None]]:
        """Every contender by name, in the order of a first round."""
        found: dict[str, Callable[[], None]] = {
            "bare, sorted": lambda: self.bare(self.sorted),
            "layercache states": lambda: self.layercache(STATES),
            "bare, sorted again": lambda: self.bare(self.sorted),
            "layercache lens": lambda: self.layercache(LENS),
            "limit for the lens": lambda: self.lens_limit(self.sorted),
            "bare, data order": lambda: self.bare(self.in_order),
            "output_hidden_states": lambda: self.hidden_states_loop(self.in_order),
            "output_hidden_states, our batches": lambda: self.hidden_states_loop(self.sorted),
        }
        for name in rivals:
            read = getattr(self, name)
            found[name] = lambda read=read: read(self.in_order)  # type: ignore[misc]
            found[f"{name}, our batches"] = lambda read=read: read(self.sorted)  # type: ignore[misc]
        return found


def installed(names: Iterable[str]) -> list[str]:
    """Say which rivals can be imported; the others are named on stderr."""
    found = []
    for name in names:
        try:
            __import__(name)
            found.append(name)
        except ImportError:
            print(f"{name} is not installed and left out (make bench installs it)", file=sys.stderr)
    return found


LIMITS = ("bare, sorted", "layercache states", "bare, sorted again", "layercache lens", "limit for the lens")
"""Those whose ratios are near 1, which takes more rounds to see."""


def measure(
    contest: Contest, contenders: dict[str, Callable[[], None]], rounds: int, rival_rounds: int
) -> dict[str, list[float]]:
    """Time every contender of LIMITS in every round and the others in the first ones, in an order that turns.

    Returns:
        Seconds by round; ratios are taken within rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    contest.bare(contest.sorted)
    for number in range(rounds):
        names = [name for name in contenders if name in LIMITS or number < rival_rounds]
        for name in turned(names, number):
            times[name].append(_seconds(contenders[name], contest.device))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return times


def turned(names: Iterable[str], number: int) -> list[str]:
    """Return the order of a round, in which another contender is the first than in the round before."""
    listed = list(names)
    return listed[number % len(listed) :] + listed[: number % len(listed)]


def paired(
    work: dict[str, Callable[[], Found]], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Found]]:
    """Run every contender in every round, in an order that turns.

    Returns:
        Seconds by round, and what each contender found in the last one.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    found: dict[str, Found] = {}
    for number in range(rounds):
        for name in turned(work, number):
            times[name].append(_seconds(lambda name=name: found.update({name: work[name]()}), device))  # type: ignore[misc]
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return times, found


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


FIGURES = {
    "states_over_bare": ("bare, sorted", "layercache states"),
    "lens_over_limit": ("limit for the lens", "layercache lens"),
    "over_data_order": ("bare, data order", "layercache states"),
    "over_hidden_states": ("output_hidden_states", "layercache lens"),
    "over_nnsight": ("nnsight", "layercache lens"),
    "over_transformer_lens": ("transformer_lens", "layercache lens"),
    "over_hidden_states_our_batches": ("output_hidden_states, our batches", "layercache lens"),
    "over_nnsight_our_batches": ("nnsight, our batches", "layercache lens"),
    "over_transformer_lens_our_batches": ("transformer_lens, our batches", "layercache lens"),
    "a_over_a": ("bare, sorted", "bare, sorted again"),
}
"""Speed of the second against the first."""


def report(times: dict[str, list[float]], tokens: int) -> dict[str, float]:
    """Print the table; return the median ratios and `aa_spread`, half the interquartile range of `a_over_a`."""
    print(f"{'':38}{'tokens/s':>10}")
    for name, seconds in times.items():
        print(f"{name:38}{tokens / statistics.median(seconds):>10,.0f}")
    print(f"\n{'ratio':38}{'median':>10}{'from':>8}{'to':>8}{'fastest':>10}")
    figures = {}
    for name, (slow, fast) in FIGURES.items():
        if slow not in times:
            continue
        ratios = np.array([a / b for a, b in zip(times[slow], times[fast], strict=False)])
        figures[name] = round(float(np.median(ratios)), 3)
        fastest = min(times[slow]) / min(times[fast])
        print(f"{name:38}{figures[name]:>10.3f}{ratios.min():>8.3f}{ratios.max():>8.3f}{fastest:>10.3f}")
    quarter, three = np.percentile(np.array(times["bare, sorted"]) / np.array(times["bare, sorted again"]), [25, 75])
    figures["aa_spread"] = round(float(three - quarter) / 2, 3)
    print(f"{'aa_spread':38}{figures['aa_spread']:>10.3f}")
    return figures
