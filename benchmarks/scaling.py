"""How far a store goes, from 10^5 to 10^9 samples: bytes, files, requests, seconds, memory and money.

    python benchmarks/scaling.py [--quick] [--json] [--save FILE]       measure this machine, then print the tables
    python benchmarks/scaling.py --constants FILE [--storage … --put … --get … --egress … --as-of DATE]

What a sample, a row, a value and a shard cost is measured on small generated stores, as slopes between two sizes, so that
what is paid once drops out. The tables multiply: they are sums, not measurements at 10^9. `--save` keeps the constants
and `--constants` prints the tables from kept ones, which is how the tables of docs/scaling.md were made. Prices are
whatever is given on the command line; where none are, no money is shown. `--page docs/scaling.md` puts the tables into the page.
"""

import argparse
import io
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
SIZES = [10**5, 10**6, 10**7, 10**8, 10**9]
LISTED = 1000
"""Keys that one request for a listing returns (Amazon S3's ListObjectsV2)."""
TABLE_NAMES = [*TABLES]


class Study(NamedTuple):
    """What is extracted: layers of a width, so many poolings, a lens or none, mantissa bits, and when a shard is closed."""

    layers: int = 33
    width: int = 4096
    poolings: int = 1
    lens: bool = True
    bits: int = 10
    shard_mb: int = 256
    """MiB of rows in memory at which a shard is closed."""


# Measuring


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


# Computing


def amount(value: float, unit: str = "") -> str:
    """Three digits: `12.3 GB`, `4.56 M`."""
    if value <= 0:
        return f"0 {unit}".strip()
    for power, name in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, "")):
        if value >= 0.9995 * 10**power or power == 0:
            return f"{value / 10**power:.3g} {name}{unit}".strip()
    raise AssertionError


def span(value: float) -> str:
    """Seconds in the unit one would say them in."""
    for size, name in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if value >= 2 * size or name == "s":
            return f"{value / size:.3g} {name}"
    raise AssertionError


class Store(NamedTuple):
    """What a study of so many samples comes to."""

    samples: int
    hidden: float
    lens: float
    rest: float
    shards: int
    files: int
    manifests: float
    puts: int
    opening: int
    layer_gets: int
    layer: float

    @property
    def bytes(self) -> float:
        return self.hidden + self.lens + self.rest + self.manifests


def store_of(samples: int, study: Study, cost: dict[str, float]) -> Store:
    values = study.layers * study.width * study.poolings
    hidden = samples * values * cost[f"bytes_per_value_{study.bits}"]
    lens = samples * study.layers * cost["lens_row_bytes"] if study.lens else 0.0
    rest = samples * (cost["sample_bytes"] + cost["row_bytes"])
    # A shard is closed by what its rows take in memory, where a value takes four bytes.
    shards = max(1, math.ceil(samples * values * 4 / (study.shard_mb * 2**20)))
    hidden += shards * study.layers * study.poolings * cost["row_group_bytes"]
    tables = 2 + study.lens
    files = shards * (tables + 1) + 2
    return Store(
        samples,
        hidden,
        lens,
        rest,
        shards,
        files,
        shards * cost["manifest_bytes"],
        puts=files,
        opening=math.ceil(files / LISTED) + shards,
        layer_gets=2 * shards,
        layer=hidden / (study.layers * study.poolings),
    )


def print_stores(study: Study, cost: dict[str, float]) -> None:
    titles = (
        "samples",
        "states",
        "lens",
        "all",
        "shards",
        "files",
        "manifests",
        "PUTs",
        "to open",
        "GETs, a layer",
        "a layer",
    )
    print("".join(f"{title:>14}" if index else f"{title:>9}" for index, title in enumerate(titles)))
    for samples in SIZES:
        one = store_of(samples, study, cost)
        cells = [
            *(amount(value, "B") for value in (one.hidden, one.lens, one.bytes)),
            *(amount(value) for value in (one.shards, one.files)),
            amount(one.manifests, "B"),
            *(amount(value) for value in (one.puts, one.opening, one.layer_gets)),
            amount(one.layer, "B"),
        ]
        print(f"{f'10^{round(math.log10(samples))}':>9}" + "".join(f"{cell:>14}" for cell in cells))


def print_times(study: Study, cost: dict[str, float]) -> None:
    titles = ("samples", "open", "overlaps", "ids held", "resume", "ids held", "labels", "held", "a layer", "held")
    print("".join(f"{title:>12}" if index else f"{title:>9}" for index, title in enumerate(titles)))
    for samples in SIZES:
        one = store_of(samples, study, cost)
        matrix = samples * study.width * 4
        cells = [
            span(one.shards * cost["open_s_per_shard"]),
            span(samples * cost["overlap_s_per_sample"]),
            amount(samples * cost["overlap_bytes_per_sample"], "B"),
            span(samples * cost["resume_s_per_sample"]),
            amount(samples * cost["resume_bytes_per_sample"], "B"),
            span(samples * cost["labels_s_per_row"]),
            amount(samples * cost["labels_bytes_per_row"], "B"),
            span(matrix / cost["layer_read_bytes_per_s"]),
            amount(matrix, "B"),
        ]
        print(f"{f'10^{round(math.log10(samples))}':>9}" + "".join(f"{cell:>12}" for cell in cells))


def print_money(study: Study, cost: dict[str, float], prices: argparse.Namespace) -> None:
    print(
        f"assumed on {prices.as_of}: {prices.storage:g} a GB and month, {prices.put:g} a thousand PUTs and LISTs,"
        f" {prices.get:g} a thousand GETs, {prices.egress:g} a GB out"
    )
    titles = ("samples", "a month", "to write", "to open", "a layer", "all of it out")
    print("".join(f"{title:>15}" if index else f"{title:>9}" for index, title in enumerate(titles)))
    for samples in SIZES:
        one = store_of(samples, study, cost)
        lists = math.ceil(one.files / LISTED)
        opening = lists * prices.put / 1e3 + one.shards * prices.get / 1e3 + one.manifests / 1e9 * prices.egress
        layer = one.layer_gets * prices.get / 1e3 + one.layer / 1e9 * prices.egress
        out = one.files * prices.get / 1e3 + one.bytes / 1e9 * prices.egress
        values = (one.bytes / 1e9 * prices.storage, one.puts * prices.put / 1e3, opening, layer, out)
        print(f"{f'10^{round(math.log10(samples))}':>9}" + "".join(f"{value:>15,.2f}" for value in values))


def print_limits(study: Study, cost: dict[str, float], memory: float, disk: float) -> None:
    """Say at how many samples something gives way, in order."""
    one = store_of(10**9, study, cost)
    a_shard, files = 10**9 / one.shards, one.files / one.shards
    held = f"fill{{}} {memory:g} GB of memory"
    found = [
        (10 / cost["open_s_per_shard"] * a_shard, "opening the store takes 10 s"),
        (1e4 * a_shard, "10,000 entries in a folder, a shard each, where the Hub advises against more"),
        (1e5 / files * a_shard, "100,000 files in a repository, where the Hub advises against more"),
        (memory * 1e9 / (study.width * 4), f"one layer's matrix {held.format('s')}"),
        (memory * 1e9 / cost["labels_bytes_per_row"], f"two labels, read, {held.format('')}"),
        (memory * 1e9 / cost["resume_bytes_per_sample"], f"ids held to see what is missing {held.format('')}"),
        (memory * 1e9 / cost["overlap_bytes_per_sample"], f"ids held to see what is held twice {held.format('')}"),
        (disk * 1e12 / (one.bytes / 1e9), f"the store fills {disk:g} TB of disk"),
    ]
    print(f"{'at samples':>12}   what gives way")
    for samples, what in sorted(found):
        print(f"{amount(samples):>12}   {what}")


REMEDIES = (
    ("as above", {}),
    ("shards of 2 GiB", {"shard_mb": 2048}),
    ("every fourth layer", {"layers": 9}),
    ("7 mantissa bits", {"bits": 7}),
    ("no lens", {"lens": False}),
    ("every fourth layer, 7 bits, no lens, 2 GiB", {"layers": 9, "bits": 7, "lens": False, "shard_mb": 2048}),
    ("small shards of 4 MiB", {"shard_mb": 4}),
)


def print_remedies(study: Study, cost: dict[str, float], samples: int) -> None:
    print(f"{'':44}{'all':>12}{'shards':>12}{'files':>12}{'open':>12}")
    for name, changes in REMEDIES:
        one = store_of(samples, study._replace(**changes), cost)  # type: ignore[arg-type]
        cells = (
            amount(one.bytes, "B"),
            amount(one.shards),
            amount(one.files),
            span(one.shards * cost["open_s_per_shard"]),
        )
        print(f"{name:44}" + "".join(f"{cell:>12}" for cell in cells))


def print_all(kept: dict[str, Any], options: argparse.Namespace) -> None:
    cost, study = kept["constants"], Study(options.layers, options.width, options.poolings)
    tables = {
        "stores": lambda: print_stores(study, cost),
        "times": lambda: print_times(study, cost),
        "limits": lambda: print_limits(study, cost, options.memory, options.disk),
        "remedies": lambda: print_remedies(study, cost, 10**8),
    }
    if options.storage is not None:
        tables["money"] = lambda: print_money(study, cost, options)
    if options.only == "constants" or options.only is None:
        print(f"measured {kept['date']} on {kept['machine']}")
        for name, value in cost.items():
            print(f"{name:28}{value:>16.6g}")
    for name, show in tables.items():
        if options.only is None:
            print(
                f"\n{name}: {study.layers} layers of width {study.width}, {study.poolings} pooling{'s' * (study.poolings > 1)}"
            )
        if options.only in (None, name):
            show()


_BLOCK = re.compile(r"```\n\$ python benchmarks/scaling\.py ([^\n]*)\n(.*?)```", re.DOTALL)


def filled(page: str) -> str:
    """Return a page with what its commands print below each of them."""

    def block(match: re.Match[str]) -> str:
        with redirect_stdout(io.StringIO()) as out:
            main(shlex.split(match[1]))
        return f"```\n$ python benchmarks/scaling.py {match[1]}\n{out.getvalue()}```"

    return _BLOCK.sub(block, page)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="measure on smaller stores")
    made.add_argument("--json", action="store_true", help="close with one JSON object")
    made.add_argument("--save", type=Path, help="keep what was measured")
    made.add_argument("--constants", type=Path, help="measure nothing: take these")
    made.add_argument("--page", type=Path, help="print nothing: put the tables below the commands of this page")
    made.add_argument("--only", choices=("constants", "stores", "times", "limits", "remedies", "money"))
    made.add_argument("--layers", type=int, default=Study().layers)
    made.add_argument("--width", type=int, default=Study().width)
    made.add_argument("--poolings", type=int, default=1)
    made.add_argument("--memory", type=float, default=16, help="GB of memory to read with")
    made.add_argument("--disk", type=float, default=2, help="TB of disk")
    for name, what in (
        ("storage", "a GB and month"),
        ("put", "a thousand PUTs"),
        ("get", "a thousand GETs"),
        ("egress", "a GB out"),
    ):
        made.add_argument(f"--{name}", type=float, help=f"price of {what}")
    made.add_argument("--as-of", help="when these prices were assumed")
    return made


def main(arguments: list[str] | None = None) -> None:
    made = parser()
    options = made.parse_args(arguments)
    if options.page is not None:
        options.page.write_text(filled(options.page.read_text()))
        return
    prices = [options.storage, options.put, options.get, options.egress, options.as_of]
    if any(price is not None for price in prices) and None in prices:
        made.error("prices go together: --storage, --put, --get, --egress and --as-of")
    if options.constants is not None:
        kept = json.loads(options.constants.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            constants = measure(Path(folder), QUICK if options.quick else Sizes())
        machine = f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}, pyarrow {pa.__version__}"
        kept = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, "constants": constants}
        if options.save is not None:
            options.save.write_text(json.dumps(kept, indent=1) + "\n")
    print_all(kept, options)
    if options.json:
        print(json.dumps({name: float(f"{value:.6g}") for name, value in kept["constants"].items()}))


if __name__ == "__main__":
    sys.exit(main())
