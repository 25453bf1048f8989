"""How the store holds up as it grows: `python benchmarks/scale.py [--quick] [--json]`.

Stores of generated states (17 layers of width 2,048, mean-pooled, and a lens of the same layers) of 1,000 to
100,000 samples in shards of 500, and one of the same kind in shards of ten samples, ten times as many as anyone should have.
Of each: the time to write, to open and answer a first query, to list, to read one layer, the entropy of every layer
in SQL, medians of five, and the most memory this process held while reading, beyond what it held before. Of the small shards: opening
and the first query (also as `layercache sql` does it, in a fenced process), before and after they are compacted, and
how long that takes.

A sample takes about 62 kB of disk. --quick has 200 to 2,000 samples, and 300 small shards.
"""

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _options
import numpy as np

from layercache import listing
from layercache.store import cleanup, compact, reader, sql
from layercache.store.layout import Run
from layercache.store.precision import round_mantissa
from layercache.store.reader import Store
from layercache.store.writer import Shard, open_run

WIDTH, LAYERS = 2048, 17
ROUNDS = 5
OUTPUT, LENS = "hidden:resid:mean@prompt", "lens:last@prompt:top2"
ENTROPY = "SELECT layer, avg(entropy) FROM lens GROUP BY layer ORDER BY layer"
BASE = np.random.default_rng(0).standard_normal((4096, WIDTH), dtype=np.float32)


def states(first: int, n: int) -> np.ndarray:
    """Rows of one block of normal numbers, float32 [n, d]: drawing every number anew would take longer than writing it."""
    return round_mantissa(BASE[np.arange(first, first + n) % len(BASE)], 10)


def put(run: Run, first: int, n: int) -> None:
    """Publish a shard of n samples."""
    ids = [f"{(first + number) * 2654435761 % 2**96:024x}" for number in range(n)]
    layers = list(range(LAYERS))
    shard = Shard(run, {OUTPUT: layers, LENS: layers}, provenance={"host": "benchmark"})
    shard.add(
        "samples",
        {
            "sample_id": ids,
            "prompt": [f"prompt {name}" for name in ids],
            "n_tokens": np.full(n, 90),
            "n_special": np.full(n, 1),
            "n_truncated": np.zeros(n, np.int32),
            "spans": [[{"name": "prompt", "start": 1, "end": 90}]] * n,
            "absent": [[]] * n,
        },
    )
    for layer in layers:
        columns = {"sample_id": ids, "site": ["resid"] * n, "layer": np.full(n, layer), "pooling": ["mean@prompt"] * n}
        shard.add("hidden", {**columns, "vector": states(first + 31 * layer, n)})
        shard.add("lens", {**lens(ids, layer), "output": [LENS] * n})
    shard.publish()


def lens(ids: list[str], layer: int) -> dict[str, object]:
    n = len(ids)
    numbers = np.linspace(0, 10, n, dtype=np.float32) / (layer + 1)
    return {
        "sample_id": ids,
        "layer": np.full(n, layer),
        "position": np.full(n, 89),
        "position_name": ["last@prompt"] * n,
        **dict.fromkeys(("entropy", "logsumexp", "kl_to_final", "js_to_final"), numbers),
        "top_ids": [[5, 6]] * n,
        "top_tokens": [["five", "six"]] * n,
        "top_logprobs": [[-0.1, -2.5]] * n,
        "agrees_with_final": np.full(n, True),
    }


def write(store: Path, n_samples: int, per_shard: int) -> Run:
    layers = [(layer, f"layers.{layer}") for layer in range(LAYERS)]
    run = open_run(store, {"benchmark": 1}, model="generated", layers=layers, width=WIDTH, final_layer=LAYERS - 1)
    for first in range(0, n_samples, per_shard):
        put(run, first, min(per_shard, n_samples - first))
    return run


def resident() -> int:
    """Bytes of memory this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Peak:
    """The most memory held while the block ran, in bytes, beyond what was held at its start."""

    def __enter__(self) -> "Peak":
        self._start, self.bytes, self._done = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, resident() - self._start)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def first_query(store: Path) -> float:
    """Seconds from a path to the first answer."""
    return seconds(lambda: reader.open(store).sql("SELECT count(*) FROM samples"))


def fenced_query(store: Path) -> float:
    """The same through the process that runs queries from elsewhere."""
    return seconds(lambda: sql.run_query(store, "SELECT count(*) FROM samples", timeout=600))


def listing_time(store: Path) -> float:
    """Seconds that `layercache ls` takes, the start of Python aside."""
    return seconds(lambda: listing.runs(reader.open(store)))


def layer_time(store: Store, run: Run) -> float:
    return seconds(lambda: store.matrix(run, 8))


def entropy_time(store: Store) -> float:
    return seconds(lambda: store.sql(ENTROPY))


def grow(folder: Path, sizes: list[int]) -> Iterator[tuple[str, float]]:
    """Measure stores of several sizes; the largest is the last."""
    names = ("samples", "write MB/s", "open s", "ls s", "layer s", "entropy s", "peak MB", "layer MB")
    print("".join(f"{name:>12}" for name in names))
    for n in sizes:
        store = folder / f"of-{n}"
        start = time.perf_counter()
        run = write(store, n, 500)
        wrote = time.perf_counter() - start
        opening = statistics.median(first_query(store) for _ in range(ROUNDS))
        listed = statistics.median(listing_time(store) for _ in range(ROUNDS))
        with Peak() as peak:
            opened = reader.open(store)
            layer = statistics.median(layer_time(opened, run) for _ in range(ROUNDS))
            entropy = statistics.median(entropy_time(opened) for _ in range(ROUNDS))
        raw = n * WIDTH * 4 / 1e6
        row = (n, raw * LAYERS / wrote, opening, listed, layer, entropy, peak.bytes / 1e6, raw)
        print("".join(f"{value:>12,.6g}" if index == 0 else f"{value:>12.3g}" for index, value in enumerate(row)))
        yield f"open_{n}_s", opening
        yield f"ls_{n}_s", listed
        yield f"layer_{n}_s", layer
        yield f"entropy_{n}_s", entropy
        yield f"peak_over_layer_{n}", peak.bytes / 1e6 / raw
        shutil.rmtree(store)


def small_shards(folder: Path, n_shards: int) -> Iterator[tuple[str, float]]:
    """Measure a store of many small shards, before and after it is compacted."""
    store = folder / "small"
    print(f"\n{n_shards:,} shards of ten samples{'seconds':>30}")
    yield line("write", seconds(lambda: write(store, 10 * n_shards, 10)))
    yield line("open and first query", first_query(store))
    yield line("the same, fenced", fenced_query(store))
    yield line("ls", listing_time(store))
    yield line("entropy by layer", entropy_time(reader.open(store)))
    opened = reader.open(store)
    with Peak() as peak:
        yield line("compact", seconds(lambda: compact.compact(opened, opened.runs()[0], "clean")))
    yield line("compact, peak memory in MB", peak.bytes / 1e6)
    yield line("gc", seconds(lambda: cleanup.collect(store, older_than=0)))
    yield line("compacted: open and first query", first_query(store))
    yield line("compacted: ls", listing_time(store))
    yield line("compacted: entropy by layer", entropy_time(reader.open(store)))
    shutil.rmtree(store)


def line(name: str, value: float) -> tuple[str, float]:
    print(f"{name:36}{value:>20.2f}", flush=True)
    return name.replace(":", "").replace(",", "").replace(" ", "_"), value


def main() -> None:
    parser = _options.parser(__doc__, "fewer samples and shards")
    parser.add_argument("--only", choices=("growing", "small"), help="one of the two tables")
    parser.add_argument("--folder", type=Path, help="where the stores are made (100,000 samples take 7 GB)")
    options = parser.parse_args()
    sizes, n_shards = ([200, 2000], 300) if options.quick else ([1000, 10_000, 100_000], 10_000)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{LAYERS} layers of width {WIDTH} in {folder}", file=sys.stderr)
        figures = dict(grow(Path(folder), sizes)) if options.only != "small" else {}
        figures |= dict(small_shards(Path(folder), n_shards)) if options.only != "growing" else {}
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
