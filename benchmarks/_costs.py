"""What one sample, row, value and shard of a store costs, measured on small generated stores.

Of what grows with the number of samples the cost of one is the slope between two sizes, so that what is paid once
drops out. `scaling.py` multiplies.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from layercache.recipe import Label
from layercache.store import holdings, reader
from layercache.store.layout import Run
from layercache.store.precision import round_mantissa
from layercache.store.rows import put_rows
from layercache.store.schema import TABLES
from layercache.store.writer import Shard, open_run

WIDTH, LAYERS, TOP = 512, 9, 10
STATES, LENS = "hidden:resid:mean@prompt", f"lens:last@prompt:top{TOP}"
TABLE_NAMES = [*TABLES]


def make_run(store: Path) -> Run:
    layers = [(layer, f"model.layers.{layer}") for layer in range(LAYERS)]
    return open_run(store, {"benchmark": 1}, model="generated", layers=layers, width=WIDTH, final_layer=LAYERS - 1)


def ids_of(first: int, n: int) -> list[str]:
    return [f"{(first + number) * 2654435761 % 2**96:024x}" for number in range(n)]


def samples(ids: list[str]) -> dict[str, object]:
    """Rows of the table `samples`, with prompts of 400 letters."""
    rng, n = np.random.default_rng(len(ids)), len(ids)
    return {
        "sample_id": ids,
        "prompt": [f"{name} {rng.bytes(188).hex()}" for name in ids],
        "n_tokens": rng.integers(20, 200, n),
        "n_special": np.full(n, 1),
        "n_truncated": np.zeros(n, np.int32),
        "spans": [[{"name": "prompt", "start": 1, "end": 90}]] * n,
        "absent": [[]] * n,
    }


def put(run: Run, first: int, n: int, bits: int = 10) -> None:
    """Publish a shard of n samples: states and a lens of every layer."""
    ids, layers = ids_of(first, n), list(range(LAYERS))
    shard = Shard(run, {STATES: layers, LENS: layers}, provenance={"host": "benchmark", "device": "cpu"})
    rng = np.random.default_rng(first)
    shard.add("samples", samples(ids))
    for layer in layers:
        states = round_mantissa(rng.standard_normal((n, WIDTH), dtype=np.float32), bits)
        columns = {"sample_id": ids, "site": ["resid"] * n, "layer": np.full(n, layer), "pooling": ["mean@prompt"] * n}
        shard.add("hidden", {**columns, "vector": states})
        numbers = {
            name: rng.random(n, dtype=np.float32) for name in ("entropy", "logsumexp", "kl_to_final", "js_to_final")
        }
        tokens = rng.integers(0, 50_000, (n, TOP))
        shard.add(
            "lens",
            {
                "sample_id": ids,
                "output": [LENS] * n,
                "layer": np.full(n, layer),
                "position": rng.integers(20, 200, n),
                "position_name": ["last@prompt"] * n,
                **numbers,
                "top_ids": tokens.tolist(),
                "top_tokens": [[f"t{token}" for token in row] for row in tokens],
                "top_logprobs": rng.random((n, TOP), dtype=np.float32).tolist(),
                "agrees_with_final": rng.random(n) > 0.5,
            },
        )
    shard.publish()


def table_bytes(store: Path) -> dict[str, int]:
    """Bytes of every table's files, and of the manifests."""
    found = {table: sum(path.stat().st_size for path in store.rglob(f"{table}.parquet")) for table in TABLE_NAMES}
    return {**found, "manifest": sum(path.stat().st_size for path in store.rglob("shard=*/manifest.json"))}


def slope(small: float, large: float, n: int) -> float:
    return (large - small) / n


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """The median time of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Sizes(NamedTuple):
    """How much is measured: samples of a shard, of a layer, in memory; shards; rows."""

    shard: int = 2000
    layer: int = 10_000
    memory: int = 1_000_000
    shards: int = 400
    rows: int = 200_000


QUICK = Sizes(400, 1000, 200_000, 60, 20_000)


def measure(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Measure what one of everything costs."""
    found: dict[str, float] = {}
    n = sizes.shard
    for bits in (7, 10, 23):
        parts = {}
        for number in (n, 2 * n):
            store = folder / f"{bits}-{number}"
            run = make_run(store)
            start = time.perf_counter()
            put(run, 0, number, bits)
            parts[number] = table_bytes(store), time.perf_counter() - start
        per = {table: slope(parts[n][0][table], parts[2 * n][0][table], n) for table in parts[n][0]}
        found[f"bytes_per_value_{bits}"] = per["hidden"] / (LAYERS * WIDTH)
        if bits == 10:
            found["sample_bytes"] = per["samples"]
            found["lens_row_bytes"] = per["lens"] / LAYERS
            (path,) = (folder / f"10-{n}").rglob("hidden.parquet")
            found["row_group_bytes"] = beside_rows(path)
            found["manifest_bytes"] = parts[n][0]["manifest"]
    found["layer_read_bytes_per_s"] = layer_speed(folder, sizes.layer)
    found |= shards(folder, sizes.shards)
    found |= samples_in_memory(sizes.memory)
    found |= rows(folder, sizes.rows)
    return found


def beside_rows(path: Path) -> float:
    """Bytes of a file of states that are not rows, a row group: the footer, above all."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = sum(group.column(index).total_compressed_size for group in groups for index in range(group.num_columns))
    return (path.stat().st_size - rows) / len(groups)


def layer_speed(folder: Path, n: int) -> float:
    """Bytes of one layer's matrix that are read a second: what a larger store takes more than a smaller one."""
    times = []
    for number in (n, 3 * n):
        run = make_run(folder / f"layer-{number}")
        ids = ids_of(0, number)
        shard = Shard(run, {STATES: [0]}, provenance={})
        shard.add("samples", samples(ids))
        columns = {"sample_id": ids, "site": ["resid"] * number, "layer": np.zeros(number, np.int32)}
        states = np.random.default_rng(0).standard_normal((number, WIDTH), dtype=np.float32)
        shard.add("hidden", {**columns, "pooling": ["mean@prompt"] * number, "vector": round_mantissa(states, 10)})
        shard.publish()
        times.append(seconds(partial(reader.open(run.store).matrix, run, 0), 5))
    return 2 * n * WIDTH * 4 / max(times[1] - times[0], 1e-9)


def first_query(store: Path) -> object:
    return reader.open(store).sql("SELECT count(*) FROM samples")


def shards(folder: Path, n: int) -> dict[str, float]:
    """Seconds that a shard more takes when a store is opened and asked, by small shards."""
    times = {}
    for number in (n // 4, n):
        run = make_run(folder / f"shards-{number}")
        for index in range(number):
            put(run, index * 2, 2)
        times[number] = seconds(partial(first_query, run.store), 5)
    return {"open_s_per_shard": max(0.0, slope(times[n // 4], times[n], n - n // 4))}


def samples_in_memory(n: int) -> dict[str, float]:
    """What a sample id costs where they are held: by readers of several shards, and by what looks for what is missing."""
    found: dict[str, float] = {}
    ids = ids_of(0, n)
    array = pa.array(ids)
    before, start = resident(), time.perf_counter()
    distinct = pa.chunked_array([array]).unique()
    found["overlap_s_per_sample"] = (time.perf_counter() - start) / n
    found["overlap_bytes_per_sample"] = array.nbytes / n + max(0, resident() - before) / n
    assert len(distinct) == n
    before, start = resident(), time.perf_counter()
    held = holdings.holdings([], [array.to_pylist()])
    found["resume_s_per_sample"] = (time.perf_counter() - start) / n
    found["resume_bytes_per_sample"] = (resident() - before) / n
    assert len(held.holders) == n
    return found


def rows(folder: Path, n: int) -> dict[str, float]:
    """What a row of the user's data costs: on disk, and to read with its labels."""
    run = make_run(folder / "rows")
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "row": range(n),
            "sample_id": ids_of(0, n),
            "text": [rng.bytes(100).hex() for _ in range(n)],
            "rating": rng.random(n),
            "kind": [f"kind {number % 10}" for number in range(n)],
        }
    )
    path = put_rows(
        run, frame, data="d", source="generated", labels=[Label("rating", "number"), Label("kind", "category")]
    )
    before, start = resident(), time.perf_counter()
    labels = reader.open(run.store).labels(run, "d")
    took, held = time.perf_counter() - start, resident() - before
    assert len(labels) == 2 * n
    return {
        "row_bytes": path.stat().st_size / n,
        "labels_s_per_row": took / n,
        "labels_bytes_per_row": max(0, held) / n,
    }
