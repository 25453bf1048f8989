"""How fast states and lens are stored, against the bare forward pass that no tool can beat.

    python benchmarks/extract.py [--quick] [--json]

A Llama of 12 layers and width 768 with random weights and a vocabulary of 32,000 reads prompts of
log-normal length (4 to 768 tokens). Everything compared runs in turn in this process, in paired rounds:

    bare, sorted          the blocks alone, in our batches: the limit for states
    bare, data order      the same, sixteen prompts at a time as they come
    limit for the lens    bare, sorted, and one unembedding product of every layer at one position
    layercache states     mean and last of every layer, written to a store
    layercache lens       the same and the lens at the last position
    output_hidden_states, nnsight, transformer_lens
                          the same outputs as `layercache lens`, as each one's documentation shows, kept in
                          memory only; and once more in our batches

A figure is the median over rounds of the ratio of times within a round; `a_over_a` is bare against itself,
and `aa_spread` half its interquartile range. The last column is the ratio of the fastest times, which other
work on the machine disturbs least.

Then, each in a process of its own, the peak memory of the bare pass and of layercache at 200 and at 2,000
prompts (of at most 64 tokens); and, without any forward pass, the padded tokens of windows of batches
against one global sort.
"""

import argparse
import json
import platform
import subprocess
import sys

import _options
import torch
import transformers
from _contest import LENS, Contest, Shape, installed, make_model, make_samples, measure, report

from layercache.extract import batching, estimate

SHAPE = Shape(layers=12, width=768, inner=2048, heads=12, kv_heads=12, vocabulary=32_000, longest=768)
QUICK = SHAPE._replace(layers=4)
RIVALS = ("nnsight", "transformer_lens")


def padding() -> float:
    """Padded tokens of our windows over those of one global sort, on prompts that span many windows."""
    samples = make_samples(20_000, SHAPE)
    budget = batching.Budget(1024)
    windows = list(batching.windows(samples, budget, seed=0))
    assert len(windows) >= 5, f"only {len(windows)} windows"
    ours = sum(_padded(batch) for window in windows for batch in window)
    best = sum(_padded(batch) for batch in batching.split(samples, budget))
    print(f"\npadded tokens over {len(windows)} windows against a global sort: {ours / best:.3f}")
    return round(ours / best, 3)


def _padded(batch: list[batching.Sample]) -> int:
    return len(batch) * max(len(sample) for sample in batch)


def peak(what: str, n: int, layers: int) -> float:
    """Peak memory, MB, of one pass in a process of its own."""
    command = [sys.executable, __file__, "--peak", what, str(n), str(layers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_peak(what: str, n: int, layers: int) -> None:
    """Print the peak resident memory, MB, after reading `n` short prompts."""
    shape = SHAPE._replace(layers=layers)
    contest = Contest(make_model(shape), make_samples(n, shape, longest=64))
    if what == "bare":
        contest.bare(contest.sorted)
    else:
        contest.layercache(LENS)
    print(estimate.peak_bytes(contest.device) / 2**20)


def memory(layers: int, sizes: tuple[int, int]) -> dict[str, float]:
    """Print and return peak memory of the bare pass and of layercache."""
    figures: dict[str, float] = {}
    print(f"\n{'peak memory, MB':24}{'bare':>10}{'layercache':>12}{'more':>8}{'states buffered':>18}")
    for n in sizes:
        bare, ours = peak("bare", n, layers), peak("layercache", n, layers)
        buffered = min(256.0, n * (layers + 2) * 2 * SHAPE.width * 4 / 2**20)
        print(f"{f'{n:,} prompts':24}{bare:>10,.0f}{ours:>12,.0f}{ours - bare:>8,.0f}{buffered:>18,.0f}")
        figures[f"memory_over_bare_mb_{n}"] = round(ours - bare)
        figures[f"memory_over_bare_and_buffer_mb_{n}"] = round(ours - bare - buffered)
    return figures


def main() -> None:
    parser = _options.parser(__doc__, "fewer layers, prompts and rounds")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if options.peak:
        what, n, layers = options.peak
        run_peak(what, int(n), int(layers))
        return
    shape, n_prompts, rounds, rival_rounds = (QUICK, 40, 4, 2) if options.quick else (SHAPE, 192, 5, 2)
    contest = Contest(make_model(shape), make_samples(n_prompts, shape))
    print(
        f"{shape.layers} layers of width {shape.width}, {n_prompts} prompts, {contest.tokens:,} tokens, {rounds}"
        f" rounds ({rival_rounds} with rivals); torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()},"
        f" {torch.get_num_threads()} threads\n"
    )
    contenders = contest.contenders(installed(RIVALS))
    figures = report(measure(contest, contenders, rounds, rival_rounds), contest.tokens)
    figures |= memory(shape.layers, (50, 200) if options.quick else (200, 2000))
    figures["padding_over_global_sort"] = padding()
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
