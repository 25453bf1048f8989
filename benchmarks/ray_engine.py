"""What `extract --engine ray` costs beside plain `extract`, and what a second worker gains.

    python benchmarks/ray_engine.py [--quick] [--json]

Not called ray.py: a script of that name would be what `import ray` finds.

A 12-layer, 768-wide Llama with random weights and prompts of log-normal length, from a folder, into a new store each time: mean and
last of every layer, and the lens. In turn, in paired rounds: plain extraction with all cores, the same on a local Ray with one
worker that has all cores, with two that share them, and plain once more (A/A). Ray itself is started before; its actors are
started anew each time, as a command does it: a process that imports torch, loads the model and checks it. What that costs is
measured apart, with a few prompts, and taken off the time of the whole in `work_over_plain`: what Ray adds to the work itself.
Two workers on the cores of one machine share its memory and its cores: `two_over_one` above 1 is only what one process leaves
idle between its products. On two machines the model is not loaded in turn, and nothing is shared but the store.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import _options
import numpy as np
import torch
from _contest import Shape, make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from layercache import engine, study
from layercache.progress import Progress
from layercache.recipe import Recipe, build

SHAPE = Shape(layers=12, width=768, inner=2048, heads=12, kv_heads=12, vocabulary=32_000, longest=512)
FEW = 16


def make_folder(folder: Path, layers: int) -> None:
    """Save the model, with a tokenizer of words."""
    made = make_model(SHAPE._replace(layers=layers))
    made.module.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(SHAPE.vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(folder)


def make_prompts(path: Path, n: int) -> int:
    """Write n prompts of random words, 4 to 512 with a median near 90; return their tokens."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.5, 0.9, n)), 4, SHAPE.longest).astype(int)
    texts = [" ".join(f"w{i}" for i in rng.integers(1, SHAPE.vocabulary, length)) for length in lengths]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return int(lengths.sum())


def recipe(folder: Path, prompts: Path, limit: int | None = None) -> Recipe:
    data = {"source": str(prompts), "template": "{text}", "limit": limit}
    settings = {
        "name": "ray",
        "models": [str(folder / "model")],
        "data": data,
        "extract": {"pooling": ["mean", "last"]},
    }
    return build(settings)


def timed(asked: Recipe, folder: Path, workers: int | None) -> float:
    """Seconds into a new store: in this process, or with workers of the Ray that is there."""
    with tempfile.TemporaryDirectory(dir=folder) as where:
        start = time.perf_counter()
        with engine.on("ray") if workers else contextlib.nullcontext():
            (done,) = study.extract(asked, Path(where) / "store", Progress(), workers=workers)
        assert done.forward_passes == done.samples
        return time.perf_counter() - start


def main() -> None:
    options = _options.parser(__doc__, "fewer layers, prompts and rounds").parse_args()
    layers, n, rounds = (4, 96, 2) if options.quick else (SHAPE.layers, 512, 5)
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_folder(folder / "model", layers)
        tokens = make_prompts(folder / "prompts.jsonl", n)
        whole = recipe(folder, folder / "prompts.jsonl")
        few = recipe(folder, folder / "prompts.jsonl", FEW)
        before = time.perf_counter()
        # In a context of its own: what is plain stays in this process.
        context, ours = copy_context(), engine.on("ray", "local", cpus=cores)
        context.run(ours.__enter__)
        stack.callback(context.run, ours.__exit__, None, None, None)
        started = time.perf_counter() - before
        contenders: dict[str, Callable[[], float]] = {
            "plain": lambda: timed(whole, folder, None),
            "ray, 1 worker": lambda: timed(whole, folder, 1),
            "ray, 2 workers": lambda: timed(whole, folder, 2),
            f"plain, {FEW} prompts": lambda: timed(few, folder, None),
            f"ray, 1 worker, {FEW} prompts": lambda: timed(few, folder, 1),
            "plain again": lambda: timed(whole, folder, None),
        }
        times: dict[str, list[float]] = {one: [] for one in contenders}
        for number in range(rounds):
            names = list(contenders)
            for one in names[number % len(names) :] + names[: number % len(names)]:
                times[one].append(contenders[one]())
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    report(times, tokens, started, cores, layers, n, as_json=options.json)


def report(
    times: dict[str, list[float]], tokens: int, started: float, cores: int, layers: int, n: int, *, as_json: bool
) -> None:
    """Print the table of seconds and the ratios, which are taken within rounds."""
    seconds = {one: np.array(found) for one, found in times.items()}
    plain, one, two = (seconds[name] for name in ("plain", "ray, 1 worker", "ray, 2 workers"))
    fixed = seconds[f"ray, 1 worker, {FEW} prompts"] - seconds[f"plain, {FEW} prompts"]
    ratios = {
        "one_over_plain": one / plain,
        "work_over_plain": (one - fixed) / plain,
        "two_over_one": one / two,
        "two_over_plain": plain / two,
        "a_over_a": plain / seconds["plain again"],
    }
    print(f"{n:,} prompts, {tokens:,} tokens, {layers} layers, {SHAPE.width} wide, {cores} cores, {len(plain)} rounds")
    print(f"{'':32}{'s':>8}{'tokens/s':>10}")
    for name, found in seconds.items():
        rate = "" if "prompts" in name else f"{tokens / statistics.median(found):,.0f}"
        print(f"{name:32}{statistics.median(found):>8.1f}{rate:>10}")
    print(f"\n{'':32}{'median':>8}{'from':>8}{'to':>8}")
    for name, found in ratios.items():
        print(f"{name:32}{np.median(found):>8.2f}{found.min():>8.2f}{found.max():>8.2f}")
    print(f"{'worker ready after, s':32}{np.median(fixed):>8.1f}{fixed.min():>8.1f}{fixed.max():>8.1f}")
    print(f"{'Ray started in, s':32}{started:>8.1f}")
    if as_json:
        figures = {name: round(float(np.median(found)), 3) for name, found in ratios.items()}
        print(
            json.dumps({**figures, "worker_ready_s": round(float(np.median(fixed)), 1), "start_s": round(started, 1)})
        )


if __name__ == "__main__":
    main()
