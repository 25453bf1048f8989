"""How far the lens of stored states is from the one read while the model ran, and what it costs.

    python benchmarks/lens.py [--quick] [--json]

The embedded model reads film cards once for every number of mantissa bits that states are stored with, and keeps
its head; the lens is read from the model and again, with NumPy, from what was stored. The distance is over
every layer before the last and every prompt: of the entropy, of the log-probabilities of tokens that both have among
their ten most probable (nats), and the shares of tokens that left the ten and of most probable tokens that differ.
At the last layer, where the distribution is sharp, the same in a line of its own.

The time is that of `Store.lens` over all layers and prompts against `extract` of the same lens into an empty store,
with the weights' files in memory, in paired rounds; A/A is `Store.lens` against itself. Last, made-up numbers in the
shape of a larger head (32,000 tokens, width 2,048, bfloat16), where the product takes the time.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _options
import numpy as np
import polars as pl
import pyarrow as pa
import torch

from layercache import dataset
from layercache.analyze.distributions import distributions, top
from layercache.extract.run import extract
from layercache.head import Head, Linear, Norm
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec
from layercache.store import head, reader

KEYS = ["layer", "sample_id"]
COLUMNS = ("entropy", "log-probability", "left the ten", "other best")


def frame(table: pa.Table) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found.sort(KEYS)


def stored(folder: Path, data: dataset.Dataset, bits: int) -> reader.Store:
    """The embedded model on the data, states in `bits` mantissa bits, with its head."""
    spec = ExtractSpec(pooling=["last"], lens=["last"], precision=bits, save_head=True)
    extract(ModelSpec(model="demo"), data, spec, folder, Progress())
    return reader.open(folder)


def distances(here: pl.DataFrame, there: pl.DataFrame) -> dict[str, np.ndarray]:
    """What a reader would see differ, a value a row, or a common token."""
    pairs = list(zip(here["top_ids"].to_list(), there["top_ids"].to_list()))
    ours = [dict(zip(*row)) for row in zip(here["top_ids"].to_list(), here["top_logprobs"].to_list())]
    theirs = [dict(zip(*row)) for row in zip(there["top_ids"].to_list(), there["top_logprobs"].to_list())]
    return {
        "entropy": (here["entropy"] - there["entropy"]).abs().to_numpy(),
        "log-probability": np.array([abs(a[t] - b[t]) for a, b in zip(ours, theirs) for t in a.keys() & b.keys()]),
        "left the ten": np.array([len(set(b) - set(a)) / len(b) for a, b in pairs]),
        "other best": np.array([a[0] != b[0] for a, b in pairs], dtype=float),
    }


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def large_head() -> Head:
    """Made-up numbers in the shape of a head of 32,000 tokens and width 2,048, in bfloat16."""
    weight = np.random.default_rng(0).standard_normal((32_000, 2_048), dtype=np.float32)
    texts = pa.array([""] * len(weight))
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    return Head(Norm("rms", 1e-5, None, None, False), None, Linear(bits, None), None, 1.0, texts, texts)


def question(made: Head, states: np.ndarray) -> None:
    """What `Store.lens` does with states once they are read, 512 at a time."""
    for start in range(0, len(states), 512):
        top(distributions(made.logits(states[start : start + 512])), 10)


def precision(data: dataset.Dataset, folder: Path) -> dict[str, float]:
    """Print the table of distances."""
    figures = {}
    print(f"{'layers':8}{'bits':>6}" + "".join(f"{name:>26}" for name in COLUMNS))
    print(f"{'':14}" + f"{'median':>13}{'largest':>13}" * 2 + f"{'share':>26}" * 2)
    for bits in (7, 10, 23):
        store = stored(folder / str(bits), data, bits)
        here, there = frame(store.lens("demo")), frame(store.sql("SELECT * FROM lens"))
        last = here["layer"].max()
        for name, which in (("before", pl.col("layer") < last), ("last", pl.col("layer") == last)):
            found = distances(here.filter(which), there.filter(which))
            cells = [f"{np.median(found[c]):>13.1e}{found[c].max():>13.1e}" for c in COLUMNS[:2]]
            cells += [f"{found[c].mean():>26.4f}" for c in COLUMNS[2:]]
            print(f"{name:8}{bits:>6}" + "".join(cells))
            figures[f"largest_logprob_{name}_{bits}"] = float(f"{found['log-probability'].max():.2g}")
    return figures


def speed(data: dataset.Dataset, folder: Path, rounds: int) -> dict[str, float]:
    """Print what 1,000 vectors take."""
    store = reader.open(folder / "10")
    vectors = len(store.lens("demo"))
    spec = ExtractSpec(pooling=[], lens=["last"])

    def rerun() -> None:
        with tempfile.TemporaryDirectory() as empty:
            extract(ModelSpec(model="demo"), data, spec, Path(empty) / "s", Progress())

    def laptop() -> None:
        store.lens("demo")

    rerun()
    times = [(seconds(laptop), seconds(rerun), seconds(laptop)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b, _ in times)
    figures = {
        "rerun_over_lens": round(statistics.median(ratios), 2),
        "a_over_a": round(statistics.median(c / a for a, _, c in times), 2),
    }
    per = 1000 / vectors
    made, states = large_head(), np.random.default_rng(1).standard_normal((512, 2_048), dtype=np.float32)
    question(made, states[:8])
    large = statistics.median(seconds(lambda: question(made, states)) for _ in range(rounds)) * 1000 / len(states)
    print(f"\n{'1,000 vectors':44}{'seconds':>9}")
    print(f"{'Store.lens, embedded model (1,280 tokens)':44}{statistics.median(t[0] for t in times) * per:>9.3f}")
    print(f"{'extract again, embedded model':44}{statistics.median(t[1] for t in times) * per:>9.3f}")
    print(f"{'a head of 32,000 tokens, width 2,048':44}{large:>9.2f}")
    print(
        f"\nrerun_over_lens {figures['rerun_over_lens']} ({ratios[0]:.2f} to {ratios[-1]:.2f}), A/A {figures['a_over_a']}"
    )
    size = head.find(store.runs()[0])
    assert size is not None
    held = sum(file.bytes for shard in store.shards("demo") for file in shard.files.values())
    print(f"head {size.stat().st_size / 1000:,.0f} kB beside {held / 1000:,.0f} kB of shards (last token only)")
    return figures


def main() -> None:
    options = _options.parser(__doc__, "fewer prompts and rounds").parse_args()
    n, rounds = (150, 3) if options.quick else (600, 5)
    data = dataset.load(DataSpec(source="demo:movies", target="certificate", limit=n))
    print(f"{n:,} prompts; torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        figures = precision(data, Path(folder)) | speed(data, Path(folder), rounds)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
