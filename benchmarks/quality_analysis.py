"""What each analysis of `analyze quality` costs on the states of a model of 16 blocks, 2,048 wide.

    python benchmarks/quality_analysis.py [--quick] [--json]

Made-up states of 10,000 samples at 17 layers with a spectrum that falls as a power law, written to a store and read back
from it; two views of every prompt, and 16 for LiDAR. Each metric is asked for alone, intervals included (1,000 resamples),
with one thread of linear algebra a core, as the command does it. 16 views are made at 3 layers only. `--quick` takes
2,000 samples at 5 layers of the same width, in two rounds; the full size runs once. Besides: what the command costs with all metrics at once, where a layer is
read once for all of them. Processor seconds, of all threads together, say what it costs on a machine that does other
things too.
"""

import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import _options
import numpy as np
import polars as pl

from layercache.analyze import analyze
from layercache.progress import Progress
from layercache.recipe import QualitySpec
from layercache.store import reader, writer
from layercache.store.layout import Run
from layercache.store.precision import round_mantissa
from layercache.store.reader import Store

WIDTH, POOLING = 2048, "mean@prompt"
OF_STATES = ("dataset_entropy", "dataset_mean_cosine", "dataset_first_pc_share", "intrinsic_dimension")
METRICS = (*OF_STATES, "cka", "mutual_knn", "infonce", "lidar", "dime", "norm")


def states(n: int, layer: int, view: int, rng: np.random.Generator) -> np.ndarray:
    """Power-law directions that turn a little from layer to layer, a mean, and a view's own noise."""
    kept = np.random.default_rng(0).standard_normal((n, WIDTH)).astype(np.float32)
    kept = np.roll(kept, 40 * layer, axis=1) * (1 + np.arange(WIDTH, dtype=np.float32)) ** -0.5
    return kept + np.float32(0.02) * rng.standard_normal((n, WIDTH)).astype(np.float32) + np.float32(0.1 * (view > 0))


def put(run: Run, ids: list[str], condition: str, layers: int, view: int) -> None:
    """Publish a condition, with a statistic over tokens of every layer."""
    outputs = {f"hidden:resid:{POOLING}": list(range(layers)), "stats:norm": list(range(layers))}
    rng, n = np.random.default_rng(view), len(ids)
    shard = writer.Shard(run, outputs, condition=condition, provenance={})
    plain = {"n_tokens": [20] * n, "n_special": [1] * n, "n_truncated": [0] * n, "spans": [[]] * n, "absent": [[]] * n}
    shard.add("samples", {"sample_id": ids, "prompt": ids, **plain})
    for layer in range(layers):
        each = {"sample_id": ids, "layer": [layer] * n}
        vectors = round_mantissa(states(n, layer, view, rng), 10)
        shard.add("hidden", {**each, "site": ["resid"] * n, "pooling": [POOLING] * n, "vector": vectors})
        shard.add("token_stats", {**each, "metric": ["norm"] * n, "value": rng.random(n)})
    shard.publish()


def build(path: Path, n: int, layers: int, views: int) -> Store:
    """Write a store with the clean states and views of every prompt."""
    names = [(layer, f"block.{layer}") for layer in range(layers)]
    run = writer.open_run(path, {}, model="made-up", layers=names, width=WIDTH, final_layer=layers - 1)
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:24] for number in range(n)]
    rows = pl.DataFrame({"row": range(n), "sample_id": ids}, schema={"row": pl.Int64, "sample_id": pl.String})
    writer.put_rows(run, rows, data="made-up", source="made-up", labels=[], split=None, group_by=None, target=None)
    put(run, ids, "clean", layers, 0)
    for view in range(1, views + 1):
        put(run, ids, f"augment-{view}", layers, view)
    return reader.open(path)


def timed(store: Store, metrics: list[str] | None) -> tuple[float, float]:
    """Return seconds on the clock and of processor time, of all threads."""
    start, used = time.perf_counter(), time.process_time()
    analyze(store, QualitySpec(metrics=metrics), Progress())
    return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    options = _options.parser(__doc__, "fewer samples and layers").parse_args()
    n, layers, rounds = (2000, 5, 2) if options.quick else (10_000, 17, 1)
    figures: dict[str, float] = {}
    print(f"{n:,} samples, {layers} layers, {WIDTH} wide, {os.cpu_count()} cores, {rounds} rounds; seconds")
    print(f"{'metric':30} {'all layers':>11} {'a layer':>9} {'processor':>10}")
    with tempfile.TemporaryDirectory() as folder:
        two = build(Path(folder) / "two", n, layers, 2)
        asked: dict[str, tuple[Store, list[str] | None, int]] = {metric: (two, [metric], layers) for metric in METRICS}
        asked["everything, 2 views"] = (two, None, layers)
        if not options.quick:
            asked["lidar, 16 views, 3 layers"] = (build(Path(folder) / "many", n, 3, 16), ["lidar"], 3)
        for name, (store, metrics, of) in asked.items():
            seconds, used = map(statistics.median, zip(*(timed(store, metrics) for _ in range(rounds))))
            print(f"{name:30} {seconds:11.1f} {seconds / of:9.2f} {used:10.1f}", flush=True)
            short = name.replace(", ", "_").replace(" ", "_")
            figures |= {f"{short}_s": round(seconds, 1), f"{short}_cpu_s": round(used, 1)}
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
