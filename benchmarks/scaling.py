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
import sys
import tempfile
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import _options
import pyarrow as pa
from _costs import QUICK, Sizes, measure

SIZES = [10**5, 10**6, 10**7, 10**8, 10**9]
LISTED = 1000
"""Keys that one request for a listing returns (Amazon S3's ListObjectsV2)."""


class Study(NamedTuple):
    """What is extracted: layers of a width, so many poolings, a lens or none, mantissa bits, and when a shard is closed."""

    layers: int = 33
    width: int = 4096
    poolings: int = 1
    lens: bool = True
    bits: int = 10
    shard_mb: int = 256
    """MiB of rows in memory at which a shard is closed."""


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
    made = _options.parser(__doc__, "measure on smaller stores")
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
