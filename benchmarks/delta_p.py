"""What a curve of ΔP over all layers costs: two passes a prompt, or one for every layer and one more.

    python benchmarks/delta_p.py [--quick] [--json]

ΔP at layer k compares a prompt as it is with the same prompt when later tokens may not attend to a span in
blocks 1 to k. The state at layer k depends on blocks 1 to k alone, so one pass with the cut in every block
holds all L of them. A Llama of 12 layers and width 768 with random weights reads prompts of log-normal length
(4 to 768 tokens), the second quarter of each cut; every contender keeps the last token's state of every layer,
clean and cut. Everything runs in turn in this process, in paired rounds and the same batches:

    two passes      clean; cut in every block
    1+L, stopped    clean; for every k, cut in blocks 1 to k, ended after block k, which needs layercache's hooks
    1+L, whole      the same, every pass to the end, as with masks handed to a model

`same` is the share of states that equal those of the two passes bit by bit. A figure is the median over rounds
of the ratio of times within a round; `a_over_a` is the two passes against themselves, and `cut_over_clean` a
cut pass over a clean one.
"""

import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace

import _options
import numpy as np
import torch
import transformers
from _contest import Shape, make_model, make_samples, paired

from layercache.extract import batching, knockout
from layercache.extract.forward import Forward
from layercache.extract.reference import LastTokens
from layercache.extract.tokenize import Sample

SHAPE = Shape(layers=12, width=768, inner=2048, heads=12, kv_heads=12, vocabulary=32_000, longest=768)
QUICK = SHAPE._replace(layers=4)

States = dict[tuple[str, int], torch.Tensor]
"""(clean or cut, layer) → float32 [prompts, d]."""


class Contest:
    """The same prompts and batches for every contender."""

    def __init__(self, shape: Shape, prompts: int) -> None:
        self.model = make_model(shape)
        self.samples = make_samples(prompts, shape)
        self.layers = range(1, shape.layers + 1)
        budget = batching.automatic(self.model.plan, max(len(sample) for sample in self.samples))
        self.batches = [batch for window in batching.windows(self.samples, budget, seed=0) for batch in window]
        self.found: dict[str, States] = {}
        knockout.check(self.model, [second_quarter(sample) for sample in self.samples])

    def read(self, layers: range, cut: tuple[int, int] | None) -> dict[int, torch.Tensor]:
        """States of some layers with the second quarter cut in some blocks; with none, as the prompts are."""
        keep = LastTokens(layers)
        forward = Forward(self.model, [keep])
        for batch in self.batches:
            members = batch if cut is None else [second_quarter(sample, cut) for sample in batch]
            forward.run(batching.collate(members, self.model.plan.device, pad_id=0, position_offset=0, left=False))
        return keep.stacked(self.samples)

    def clean(self) -> States:
        return {("clean", layer): state for layer, state in self.read(self.layers, None).items()}

    def cut(self) -> States:
        return {("cut", layer): state for layer, state in self.read(self.layers, (1, self.layers[-1])).items()}

    def two_passes(self) -> States:
        return self.clean() | self.cut()

    def stopped(self) -> States:
        return self.clean() | {("cut", k): self.read(range(k, k + 1), (1, k))[k] for k in self.layers}

    def whole(self) -> States:
        return self.clean() | {("cut", k): self.read(self.layers, (1, k))[k] for k in self.layers}

    def same(self, name: str) -> float:
        """The share of a contender's states that are those of the two passes, bit by bit."""
        ours, theirs = self.found["two passes"], self.found[name]
        equal = [(ours[key] == theirs[key]).all(dim=-1).float().mean() for key in ours]
        return float(torch.stack(equal).mean())

    def largest(self, name: str) -> float:
        """The largest relative difference of a state from that of the two passes."""
        ours, theirs = self.found["two passes"], self.found[name]
        each = [(ours[key] - theirs[key]).norm(dim=-1) / ours[key].norm(dim=-1) for key in ours]
        return float(torch.stack(each).max())


def second_quarter(sample: Sample, layers: tuple[int, int] | None = None) -> Sample:
    places, n = np.arange(len(sample)), len(sample)
    return replace(sample, cut=(places >= n // 4) & (places < n // 2), cut_layers=layers)


def compare(contest: Contest, rounds: int) -> dict[str, float]:
    """Run the contenders in paired rounds; print the table and return its figures."""
    work: dict[str, Callable[[], States]] = {
        "two passes": contest.two_passes,
        "1+L, stopped": contest.stopped,
        "1+L, whole": contest.whole,
        "two passes again": contest.two_passes,
        "clean pass": contest.clean,
        "cut pass": contest.cut,
    }
    contest.clean()
    times, contest.found = paired(work, rounds, contest.model.plan.device)
    pairs = {
        "stopped_over_two": ("1+L, stopped", "two passes"),
        "whole_over_two": ("1+L, whole", "two passes"),
        "a_over_a": ("two passes again", "two passes"),
        "cut_over_clean": ("cut pass", "clean pass"),
    }
    figures: dict[str, float] = {}
    print(f"{'time ratio':24}{'median':>10}{'from':>8}{'to':>8}{'same':>10}{'largest difference':>22}")
    for name, (slow, fast) in pairs.items():
        ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        figures[name] = round(statistics.median(ratios), 3)
        line = f"{name:24}{figures[name]:>10.3f}{min(ratios):>8.3f}{max(ratios):>8.3f}"
        if fast == "two passes":
            figures[f"same_{name.split('_over_')[0]}"] = contest.same(slow)
            line += f"{contest.same(slow):>10.1%}{contest.largest(slow):>22.1e}"
        print(line)
    moved = contest.found["two passes"]
    last = contest.layers[-1]
    change = (moved["cut", last] - moved["clean", last]).norm(dim=-1) / moved["clean", last].norm(dim=-1)
    print(f"\nthe cut moves the last layer's state by {float(change.median()):.2f} of its length (median over prompts)")
    return figures


def main() -> None:
    options = _options.parser(__doc__, "fewer layers").parse_args()
    transformers.utils.logging.set_verbosity_error()
    shape, prompts, rounds = (QUICK, 16, 3) if options.quick else (SHAPE, 16, 3)
    contest = Contest(shape, prompts)
    tokens = sum(len(sample) for sample in contest.samples)
    print(
        f"{shape.layers} layers of width {shape.width}, {prompts} prompts, {tokens:,} tokens, {rounds} rounds; torch"
        f" {torch.__version__}, transformers {transformers.__version__}, {platform.machine()},"
        f" {torch.get_num_threads()} threads\n"
    )
    figures = compare(contest, rounds)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
