"""What is fetched from a bucket, against copying the whole store.

    python benchmarks/bucket.py [--quick] [--json]

An S3 server on loopback (moto's) counts the bodies of its answers and the requests. Three stores: the sample store of
this repository, the demo recipe's (extracted here from the embedded model), and one of random states of the width of
GPT-2 with lens rows, so that footers are as small a part as they are in practice. Each task begins with an empty cache.

    open       `layercache.open`: one listing, then the small files
    matrix     one layer of one pooling, without what `open` fetched
    again      the same matrix once more, from the cache
    lens       SQL in the fence: mean entropy by layer
    states     SQL in the fence: the mean norm of one layer's states
    whole      every byte of the store, as a copy of it takes

`of the layer` is the bytes fetched over the bytes that the layer's row groups take in the files; the other bytes are
footers, and the sample ids of every shard, by which is known what counts where shards overlap. `of the store` is the
bytes fetched over those of the whole store. Nothing is timed: loopback is no network.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import _options
import numpy as np

import layercache
from layercache import study
from layercache.progress import Progress
from layercache.recipe import load
from layercache.store import files, merge, mirror, sql, writer

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE / "tests" / "bucket"))
from served import Server, served  # noqa: E402

WIDTH = 768
LENS = "SELECT layer, avg(entropy) FROM lens GROUP BY layer"
STATES = "SELECT avg(norm(vector)) FROM hidden WHERE run = '{run}' AND layer = {layer} AND pooling = '{pooling}'"


class Fetched(NamedTuple):
    """What a task took."""

    requests: int
    bytes: int


class Row(NamedTuple):
    """One store."""

    name: str
    whole: int
    layer: int
    tasks: dict[str, Fetched]


def random_store(path: Path, shards: int, samples: int, layers: int) -> None:
    """Random states, and lens rows of the same samples, in several shards."""
    every = list(range(layers))
    run = writer.open_run(
        path,
        {"weights": "random"},
        model="random",
        layers=[(one, f"block {one}") for one in every],
        width=WIDTH,
        final_layer=layers - 1,
    )
    rng = np.random.default_rng(0)
    for number in range(shards):
        ids = [f"{number * samples + one:024x}" for one in range(samples)]
        outputs: dict[str, list[int] | None] = {"hidden:resid:mean@prompt": every, "lens:last@prompt:top10": every}
        shard = writer.Shard(run, outputs, provenance={})
        shard.add("samples", _samples(ids))
        for layer in every:
            # Ten bits of mantissa, as they are stored by default.
            states = rng.standard_normal((samples, WIDTH), dtype=np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
            columns = {"sample_id": ids, "layer": [layer] * samples}
            hidden = {"site": ["resid"] * samples, "pooling": ["mean@prompt"] * samples}
            shard.add("hidden", {**columns, **hidden, "vector": states.view(np.float32)})
            shard.add("lens", {**columns, **_lens(rng, samples)})
        shard.publish()


def _samples(ids: list[str]) -> dict[str, list[object]]:
    n = len(ids)
    numbers = {"n_tokens": 90, "n_special": 1, "n_truncated": 0}
    spans: list[object] = [[{"name": "prompt", "start": 1, "end": 90}]] * n
    prompts: list[object] = [f"A prompt of some words, number {one}." for one in ids]
    return {"sample_id": [*ids], "prompt": prompts, "spans": spans, "absent": [[]] * n} | {
        name: [value] * n for name, value in numbers.items()
    }


def _lens(rng: np.random.Generator, n: int) -> dict[str, object]:
    ids = rng.integers(0, 50_000, (n, 10))
    floats = ("entropy", "logsumexp", "kl_to_final", "js_to_final")
    return {
        "output": ["lens:last@prompt:top10"] * n,
        "position": [89] * n,
        "position_name": ["last@prompt"] * n,
        "top_ids": ids.tolist(),
        "top_tokens": [[f" word{one}" for one in line] for line in ids],
        "top_logprobs": np.sort(rng.standard_normal((n, 10)).astype(np.float32)).tolist(),
        "agrees_with_final": [True] * n,
        **{name: rng.random(n, dtype=np.float32) for name in floats},
    }


def demo_store(path: Path, quick: bool) -> None:
    """The demo recipe's states and lens, of one model when `quick`."""
    recipe = load("demo", ('models=["demo"]',) if quick else ())
    study.extract(recipe, path, Progress())


def layer_bytes(store: Path, run: str, layer: int, pooling: str) -> int:
    """Bytes of the row groups of a run's layer in a store on the disk."""
    total = 0
    for path in (store / f"run={run}").rglob("hidden.parquet"):
        with files.open_parquet(path) as file:
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
                bounds = [(columns[name].statistics.min, columns[name].statistics.max) for name in ("layer", "pooling")]
                if bounds == [(layer, layer), (pooling, pooling)]:
                    total += sum(column.total_compressed_size for column in columns.values())
    return total


@contextmanager
def empty_cache() -> Iterator[None]:
    """A machine that has fetched nothing."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LAYERCACHE_CACHE"] = folder
        yield


def measure(server: Server, name: str, local: Path) -> Row:
    """Put a store into a bucket and count what each task takes."""
    url = f"s3://{server.bucket()}/{name}"
    opened = layercache.open(local)
    run = opened.runs()[0]
    site, pooling, layers = opened.features(run)[0]
    layer = layers[len(layers) // 2]
    with empty_cache():
        merge.merge(local, mirror.attach(url))

    def took(task: Callable[[], object]) -> Fetched:
        server.requests.clear()
        task()
        return Fetched(len(server.requests), server.fetched)

    tasks = {}
    with empty_cache():
        tasks["open"] = took(lambda: layercache.open(url))
        remote = layercache.open(url)
        tasks["matrix"] = took(lambda: remote.matrix(run.id, layer, pooling, site=site))
        tasks["again"] = took(lambda: remote.matrix(run.id, layer, pooling, site=site))
    states = STATES.format(run=run.id, layer=layer, pooling=pooling)
    for task, query in (("lens", LENS), ("states", states)):
        with empty_cache():
            layercache.open(url)
            root = mirror.attach(url)
            tasks[task] = took(lambda query=query, root=root: sql.run_query(root, query))
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        tasks["whole"] = took(lambda: merge.merge(mirror.attach(url), Path(folder) / "copy"))
    stored = sum(path.stat().st_size for path in local.rglob("*") if path.is_file() and ".tmp" not in path.parts)
    return Row(name, stored, layer_bytes(local, run.id, layer, pooling), tasks)


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| store | task | requests | bytes fetched | of the store | of the layer |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        for task, (requests, size) in row.tasks.items():
            of_layer = f"{size / row.layer:.2f}" if task in {"matrix", "states"} else ""
            yield f"| {row.name} | {task} | {requests} | {size:,} | {size / row.whole:.3f} | {of_layer} |"


def main() -> None:
    arguments = _options.parser(__doc__, "a minute or two: fewer samples and layers").parse_args()
    shards, samples, layers = (2, 1000, 5) if arguments.quick else (8, 2000, 13)
    with tempfile.TemporaryDirectory() as folder, served() as server:
        os.environ.update(server.environment)
        random_store(Path(folder) / "random", shards, samples, layers)
        demo_store(Path(folder) / "demo", arguments.quick)
        places = {"sample": HERE / "store", "demo": Path(folder) / "demo", "random": Path(folder) / "random"}
        rows = [measure(server, name, path) for name, path in places.items()]
    print(f"layercache {layercache.__version__}, obstore, moto on loopback; {platform.machine()}")
    print(f"random: {shards} shards of {samples:,} samples, {layers} layers of width {WIDTH}")
    print("\n".join(table(rows)))
    if arguments.json:
        figures: dict[str, float] = {}
        for row in rows:
            figures[f"{row.name}_matrix_over_layer"] = round(row.tasks["matrix"].bytes / row.layer, 4)
            for task, (requests, size) in row.tasks.items():
                figures[f"{row.name}_{task}_over_store"] = round(size / row.whole, 4)
                figures[f"{row.name}_{task}_requests"] = requests
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
