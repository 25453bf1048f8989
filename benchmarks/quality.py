"""What statistics over tokens cost, against the forward pass that they are taken from.

    python benchmarks/quality.py [--quick] [--json]

A Llama in the shape of a 1B model (width 2,048, MLP 8,192, 32 heads of which 8 are for keys and values) with 2 blocks
of its 16 and random weights, and the embedded model, read prompts of random tokens, all of 128 or all of 512. Each
statistic is taken of one state a block, in our batches, its rows collected after the next batch as an extraction does;
`bare` is the blocks alone. All run in turn in this process, in paired rounds.

A figure is the share of the bare pass that a statistic adds: the median over rounds of the ratio within a round, less
1, times the states that the whole model has to a block (18 states to 16 blocks, 8 to 6 in the embedded model: layers
0 to L+1). `a_over_a` is bare against itself. `fastest` is the same share by the fastest times, which other work on the
machine disturbs least, and `processor` by the median of the processor time that all threads took.

    without a spectrum    norm, max_norm, sinks, mean_cosine, curvature and prompt_entropy2 (the Frobenius norm of a
                          float32 Gram matrix) together
    a spectrum            prompt_entropy and effective_rank, of one float64 Gram matrix and its eigenvalues
    a quarter of them     the same, of every fourth prompt
    two spectra           a spectrum, and first_pc_share, of centred tokens
    everything            all of these
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import _options
import numpy as np
import torch
import transformers
from _contest import Contest, Shape, make_model, turned

from layercache.extract import checkpoint, model
from layercache.extract.forward import Collect, Forward
from layercache.extract.token_stats import TokenStatsReducer
from layercache.extract.tokenize import Sample, sample_id
from layercache.outputs import Stats

SHAPE = Shape(layers=2, width=2048, inner=8192, heads=32, kv_heads=8, vocabulary=8000, longest=512)
BLOCKS = 16
BATCH_TOKENS = 1024
LENGTHS = (128, 512)
CHEAP = ("norm", "max_norm", "sinks", "mean_cosine", "curvature", "prompt_entropy2")
ONE = ("prompt_entropy", "effective_rank")
TWO = (*ONE, "first_pc_share")
ASKED: dict[str, tuple[str, ...]] = {
    "norm": ("norm",),
    "max_norm": ("max_norm",),
    "sinks": ("sinks",),
    "mean_cosine": ("mean_cosine",),
    "curvature": ("curvature",),
    "prompt_entropy2": ("prompt_entropy2",),
    "prompt_entropy2+centre+unit": ("prompt_entropy2+centre+unit",),
    "without a spectrum": CHEAP,
    "a spectrum": ONE,
    "a quarter of them": ONE,
    "two spectra": TWO,
    "everything": (*CHEAP, *TWO),
}
LIMITS = {"without a spectrum": 0.03, "a spectrum": 0.25}
"""What is aimed at, at the 1B shape."""


class Times(NamedTuple):
    """Seconds of one pass over the prompts: by the clock, and of all threads together."""

    wall: float
    processor: float


def prompts(n: int, length: int, vocabulary: int) -> list[Sample]:
    """Prompts of random tokens, none of them special."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        tokens = rng.integers(5, vocabulary, length, dtype=np.int32)
        spans = {"prompt": (0, length)}
        special = np.zeros(length, dtype=bool)
        found.append(Sample(sample_id(tokens.tolist(), spans, None), "", tokens, special, spans, {}, None, 0))
    return found


def read(contest: Contest, batches: list[list[Sample]], stats: tuple[str, ...]) -> None:
    """Take statistics of every block's state, as an extraction does."""
    layers = list(range(1, contest.model.structure.n_layers + 1))
    forward = Forward(contest.model, [TokenStatsReducer({Stats(name): layers for name in stats})])
    waiting: list[tuple[str, Collect]] = []
    for members in batches:
        started = forward.run(contest.collate(members))
        for _, collect in waiting:
            collect()
        waiting = started
    for _, collect in waiting:
        collect()


def contenders(contest: Contest, length: int) -> dict[str, Callable[[], None]]:
    """The bare pass, itself again, and the bare pass with every selection of statistics."""
    rows = max(1, BATCH_TOKENS // length)
    samples = contest.samples
    batches = [samples[i : i + rows] for i in range(0, len(samples), rows)]
    quarter = len(samples) // 4
    chosen = [samples[i : min(i + rows, quarter)] for i in range(0, quarter, rows)]
    others = [samples[i : i + rows] for i in range(quarter, len(samples), rows)]

    def partly() -> None:
        read(contest, chosen, ONE)
        contest.bare(others)

    found: dict[str, Callable[[], None]] = {
        "bare": lambda: contest.bare(batches),
        "bare again": lambda: contest.bare(batches),
    }
    for name, stats in ASKED.items():
        found[name] = lambda stats=stats: read(contest, batches, stats)  # type: ignore[misc]
    # In the batches that the sample leaves, which may be smaller.
    found["bare in parts"] = lambda: (contest.bare(chosen), contest.bare(others))[0]
    found["a quarter of them"] = partly
    return found


def timed(work: Callable[[], None]) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def measure(found: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[Times]]:
    """Time every contender in every round, in an order that turns; the first round warms up and does not count."""
    times: dict[str, list[Times]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name in turned(found, number):
            one = timed(found[name])
            if number:
                times[name].append(one)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return times


def report(title: str, key: str, times: dict[str, list[Times]], states: float) -> dict[str, float]:
    """Print the table of one model and length; return its figures."""
    seconds = statistics.median(one.wall for one in times["bare"])
    print(f"\n{title}; the bare pass takes {seconds:.2f} s")
    print(f"{'share of the bare pass':32}{'median':>10}{'from':>9}{'to':>9}{'fastest':>10}{'processor':>11}{'aim':>8}")
    figures = {}
    for name in (*ASKED, "bare again"):
        against = times["bare in parts" if name == "a quarter of them" else "bare"]
        ratios = np.array([one.wall / bare.wall for one, bare in zip(times[name], against, strict=True)])
        works = np.array([one.processor / bare.processor for one, bare in zip(times[name], against, strict=True)])
        fastest = min(one.wall for one in times[name]) / min(one.wall for one in against)
        factor = 1.0 if name == "bare again" else states
        share, work = factor * (np.median(ratios) - 1), factor * (np.median(works) - 1)
        aim = f"{LIMITS[name]:.0%}" if key.startswith("1b") and name in LIMITS else ""
        print(
            f"{name:32}{share:>10.1%}{factor * (ratios.min() - 1):>9.1%}{factor * (ratios.max() - 1):>9.1%}"
            f"{factor * (fastest - 1):>10.1%}{work:>11.1%}{aim:>8}"
        )
        label = name.replace(" ", "_")
        if name == "bare again":
            figures[f"{key}_a_over_a"] = round(float(np.median(ratios)), 3)
            figures[f"{key}_a_over_a_processor"] = round(float(np.median(works)), 3)
        else:
            figures[f"{key}_{label}"] = round(float(share), 4)
            figures[f"{key}_{label}_fastest"] = round(factor * (fastest - 1), 4)
            figures[f"{key}_{label}_processor"] = round(float(work), 4)
    return figures


def embedded() -> model.Model:
    """The demo model, on the CPU in float32."""
    found = checkpoint.find("demo", None, adapter=None, trust_remote_code=False)
    return model.load(model.plan(found, device="cpu", dtype="float32", attn="auto"))


def reducers(rounds: int, tokens: int) -> dict[str, float]:
    """Print what statistics over tokens cost, at both shapes and lengths."""
    figures: dict[str, float] = {}
    kinds = [("1B shape", "1b", make_model(SHAPE), BLOCKS, tokens), ("demo", "demo", embedded(), 6, 8 * tokens)]
    for title, key, loaded, blocks, amount in kinds:
        for length in LENGTHS:
            vocabulary = loaded.plan.checkpoint.config.vocab_size
            contest = Contest(loaded, prompts(amount // length, length, vocabulary))
            times = measure(contenders(contest, length), rounds)
            name = f"{title}, {amount // length} prompts of {length} tokens"
            figures |= report(name, f"{key}_{length}", times, (blocks + 2) / blocks)
    return figures


def main() -> None:
    parser = _options.parser(__doc__, "fewer prompts and rounds")
    parser.add_argument("--threads", type=int, help="threads of torch; with 1, processor time waits for nobody")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    transformers.utils.logging.set_verbosity_error()
    rounds, tokens = (2, 2048) if options.quick else (5, 2048)
    print(
        f"{SHAPE.layers} blocks of width {SHAPE.width} and the embedded model, {rounds} rounds; torch"
        f" {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"
    )
    figures = reducers(rounds, tokens)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
