"""A store with something of everything, and what a subset of it must hold."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from store_builder import LAST, LAYERS, LENS, MEAN, WIDTH, add_samples, make_head, make_run, put_shard, sample_id, state

from layercache.recipe import Label
from layercache.store import head, reader, recipes, results
from layercache.store.layout import Run
from layercache.store.precision import round_mantissa
from layercache.store.reader import Store
from layercache.store.rows import put_rows
from layercache.store.writer import Shard, open_run

ALL = {MEAN: LAYERS, LAST: LAYERS, LENS: LAYERS, "tokens": None}


def put_films(run: Run, numbers: list[int], *, data: str = "films") -> None:
    frame = pl.DataFrame(
        {"row": range(len(numbers)), "sample_id": [sample_id(n) for n in numbers], "rating": [n / 2 for n in numbers]}
    )
    put_rows(run, frame, data=data, source=f"{data}.csv", labels=[Label("rating", "number")])


def put_gaps(run: Run, numbers: list[int]) -> str:
    """A shard in which the first sample has no state at layers 2 and 3, and the second none of the last token at all."""
    ids = [sample_id(number) for number in numbers]
    outputs = {MEAN: LAYERS, LAST: LAYERS}
    shard = Shard(run, outputs, provenance={"host": "gaps"})
    add_samples(shard, ids, {ids[0]: [(MEAN, "all tokens are sinks")], ids[1]: [(LAST, "empty span")]})
    for output, without in ((MEAN, {(ids[0], 2), (ids[0], 3)}), (LAST, {(ids[1], layer) for layer in LAYERS})):
        _, site, pooling = output.split(":")
        for layer in LAYERS:
            names = [name for name in ids if (name, layer) not in without]
            n = len(names)
            vectors = np.array([state(name, site, pooling, layer) for name in names], dtype=np.float32)
            columns = {"sample_id": names, "site": [site] * n, "layer": [layer] * n, "pooling": [pooling] * n}
            shard.add("hidden", {**columns, "vector": vectors.reshape(n, WIDTH)})
    name = shard.publish()
    assert name is not None
    return name


def make(store: Path) -> Run:
    """Two runs; of the first two conditions, shards apart, shards that share samples, and one with gaps."""
    run = make_run(store, "org/tiny")
    put_shard(run, range(6), ALL)
    put_shard(run, range(6, 12), ALL)
    # Samples 20 to 24 in two shards with other numbers in each: the shard with the smaller name counts.
    put_shard(run, range(20, 25), {MEAN: LAYERS, LAST: LAYERS}, salt=1)
    put_shard(run, range(20, 28), {MEAN: [1, 2, 3]}, salt=2)
    put_gaps(run, [30, 31, 32])
    put_shard(run, range(4), {MEAN: LAYERS}, condition="knockout-question")
    other = make_run(store, "org/other", weights="v")
    put_shard(other, range(3), {MEAN: [0, 1], "tokens": None})
    put_films(run, [0, 1, 2, 7, 7])
    put_films(run, [20, 21], data="a b/ü")
    head.write(run, make_head())
    recipes.save(store, {"name": "movies", "models": ["org/tiny"]})
    for one in (run, other):
        table = pa.table({"run": [one.id], "data": ["films"], "analysis": ["probe"], "metric": ["r2"], "value": [0.5]})
        names = reader.open(store).input_names(one)
        results.save(store, "probe", {"of": one.id}, names, results.Outcome(table))
    return run


def hidden(store: Store, run: str, layers: list[int], poolings: list[str], condition: str = "clean") -> list[object]:
    """The rows of `hidden` that count, as SQL shows them, in order."""
    table = store.sql(
        "SELECT sample_id, pooling, layer, position, vector FROM hidden WHERE run = $run AND condition = $condition"
        " AND list_contains($layers, layer) AND list_contains($poolings, pooling) ORDER BY ALL",
        {"run": run, "condition": condition, "layers": layers, "poolings": poolings},
    )
    return table.to_pylist()


def wide_store(path: Path, *, layers: int, samples: int, width: int) -> Run:
    """A store of one shard whose every layer is many times larger than all that describes it."""
    numbers, n = list(range(layers)), samples
    run = open_run(
        path, {"w": 1}, model="m", layers=[(k, f"l{k}") for k in numbers], width=width, final_layer=layers - 1
    )
    ids = [sample_id(number) for number in range(n)]
    shard = Shard(run, {MEAN: numbers}, provenance={})
    add_samples(shard, ids)
    for layer in numbers:
        vectors = round_mantissa(np.random.default_rng(layer).standard_normal((n, width), dtype=np.float32), 10)
        columns = {"sample_id": ids, "site": ["resid"] * n, "layer": [layer] * n, "pooling": ["mean@prompt"] * n}
        shard.add("hidden", {**columns, "vector": vectors})
    shard.publish()
    return run


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }


def check_layers(store: Path, target: Path, run: Run, layers: list[int], pooling: str = "mean@prompt") -> None:
    """What the target holds of some layers is what the source does, by matrix and by SQL, and there is nothing else."""
    one, other = reader.open(store), reader.open(target)
    for layer in layers:
        mine, theirs = one.matrix(run.id, layer, pooling), other.matrix(run.id, layer, pooling)
        assert mine.sample_ids.tolist() == theirs.sample_ids.tolist()
        assert mine.values.tobytes() == theirs.values.tobytes()
    assert hidden(one, run.id, layers, [pooling]) == hidden(other, run.id, layers, [pooling])
