"""What the store's format costs, against what people use instead.

    python benchmarks/store.py [--quick] [--json]

Real pooled states: the embedded model on its films and, where `.venv/all-MiniLM-L6-v2` is there, that encoder on the
same prompts, extracted by the package (10 mantissa bits kept, so that float16 holds them as well). Every format
writes the same states, forces them to the disk, reads one layer and reads everything, in turn in this process, in
paired rounds, with warm page caches; whatever is read is compared with what was written.

    layercache       this package's writer and reader: FLOAT lists in Parquet, bytes split, zstd-1, checksums
    numpy memmap     one .npy, float32 [layers, samples, d]
    parquet float16  lists of float16, zstd-1, a row group a layer, as many pipelines write
    safetensors      a float32 tensor a layer
    lance            pylance, a row a (layer, sample); left out where it is not installed

A ratio is the median over rounds of a format's time divided by layercache's in the same round; A/A is layercache
against itself. Of a few megabytes, opening files is most of the time. In the second table SQL (DuckDB on the bare
files), a file cut short and one flipped byte are tried out; the other columns say what the formats are made for.
"""

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import _options
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from layercache import dataset
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec
from layercache.store import reader, verify, writer

try:
    import lance
except ImportError:
    lance = None

ENCODER = Path(__file__).parents[1] / ".venv" / "all-MiniLM-L6-v2"
MEAN = "mean@prompt"
OURS = "layercache"


class Format(NamedTuple):
    """A way to keep states float32 [layers, n, d]."""

    write: Callable[[Path, np.ndarray], None]
    layer: Callable[[Path, int], np.ndarray]
    whole: Callable[[Path, int], np.ndarray]
    appends: str
    resumes: str


def store_write(folder: Path, states: np.ndarray) -> None:
    layers, n, width = states.shape
    numbers = list(range(layers))
    run = writer.open_run(
        folder, {"b": 1}, model="b", layers=[(k, str(k)) for k in numbers], width=width, final_layer=layers - 1
    )
    shard = writer.Shard(run, {f"hidden:resid:{MEAN}": numbers}, provenance={})
    ids = [f"{k:024x}" for k in range(n)]
    zeros = [0] * n
    counts = {"n_tokens": zeros, "n_special": zeros, "n_truncated": zeros}
    shard.add("samples", {"sample_id": ids, "prompt": ids, **counts, "spans": [[]] * n, "absent": [[]] * n})
    for k in numbers:
        names = {"sample_id": ids, "site": ["resid"] * n, "layer": [k] * n, "pooling": [MEAN] * n}
        shard.add("hidden", {**names, "vector": states[k]})
    shard.publish()


def store_layer(folder: Path, layer: int) -> np.ndarray:
    return reader.open(folder).matrix("b", layer).values


def store_whole(folder: Path, layers: int) -> np.ndarray:
    store = reader.open(folder)
    return np.stack([store.matrix("b", layer).values for layer in range(layers)])


def rows(states: np.ndarray, kind: pa.DataType, layer: int) -> pa.Table:
    """One layer as a table: layer, sample, vector."""
    _, n, width = states.shape
    values = pa.array(states[layer].reshape(-1).astype(kind.to_pandas_dtype()))
    vectors = pa.FixedSizeListArray.from_arrays(values, width)
    return pa.table({"layer": np.full(n, layer, np.int32), "sample": np.arange(n), "vector": vectors})


def vectors(table: pa.Table) -> np.ndarray:
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().astype(np.float32).reshape(len(column), -1)


def parquet_write(folder: Path, states: np.ndarray) -> None:
    first = rows(states, pa.float16(), 0)
    with pq.ParquetWriter(folder / "a.parquet", first.schema, compression="zstd", compression_level=1) as file:
        for layer in range(len(states)):
            file.write_table(rows(states, pa.float16(), layer))


def parquet_layer(folder: Path, layer: int) -> np.ndarray:
    return vectors(pq.read_table(folder / "a.parquet", columns=["vector"], filters=[("layer", "=", layer)]))


def parquet_whole(folder: Path, layers: int) -> np.ndarray:
    found = vectors(pq.read_table(folder / "a.parquet", columns=["vector"]))
    return found.reshape(layers, -1, found.shape[1])


def tensors_layer(folder: Path, layer: int) -> np.ndarray:
    with safe_open(folder / "a.safetensors", framework="np") as file:
        return file.get_tensor(str(layer))


def lance_write(folder: Path, states: np.ndarray) -> None:
    parts = [rows(states, pa.float32(), layer) for layer in range(len(states))]
    lance.write_dataset(pa.concat_tables(parts), str(folder / "a.lance"))


def lance_layer(folder: Path, layer: int) -> np.ndarray:
    return vectors(lance.dataset(str(folder / "a.lance")).to_table(columns=["vector"], filter=f"layer = {layer}"))


def lance_whole(folder: Path, layers: int) -> np.ndarray:
    found = vectors(lance.dataset(str(folder / "a.lance")).to_table(columns=["vector"]))
    return found.reshape(layers, -1, found.shape[1])


FORMATS = {
    OURS: Format(store_write, store_layer, store_whole, "yes", "yes"),
    "numpy memmap": Format(
        lambda folder, states: np.save(folder / "a.npy", states),
        lambda folder, layer: np.array(np.load(folder / "a.npy", mmap_mode="r")[layer]),
        lambda folder, layers: np.array(np.load(folder / "a.npy", mmap_mode="r")),
        "no",
        "no",
    ),
    "parquet float16": Format(parquet_write, parquet_layer, parquet_whole, "new files", "no"),
    "safetensors": Format(
        lambda folder, states: save_file({str(k): one for k, one in enumerate(states)}, folder / "a.safetensors"),
        tensors_layer,
        lambda folder, layers: np.stack([tensors_layer(folder, layer) for layer in range(layers)]),
        "no",
        "no",
    ),
    **({"lance": Format(lance_write, lance_layer, lance_whole, "yes", "no")} if lance else {}),
}


def real_states(model: str, n: int) -> np.ndarray:
    """What the layers of a model say of the demo's films, mean over the prompt, float32 [layers, n, d]."""
    data = dataset.load(DataSpec(source="demo:movies", limit=n))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        extract(ModelSpec(model=model), data, ExtractSpec(pooling=["mean"], lens=[]), path, Progress())
        store = reader.open(path)
        (run,) = store.runs()
        return np.stack([store.matrix(run, layer.layer).values for layer in run.layers])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def once(form: Format, folder: Path, states: np.ndarray) -> tuple[float, float, float]:
    """Write, read a layer, read everything; seconds of each."""

    def write() -> None:
        form.write(folder, states)
        for path in files(folder):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    folder.mkdir()
    middle = len(states) // 2
    written, _ = timed(write)
    one, layer = timed(lambda: form.layer(folder, middle))
    every, whole = timed(lambda: form.whole(folder, len(states)))
    # Half of float16's last place; the other formats keep every bit.
    np.testing.assert_allclose(layer, states[middle], rtol=2**-11, atol=2**-24)
    np.testing.assert_allclose(whole, states, rtol=2**-11, atol=2**-24)
    return written, one, every


def notices(form: Format, folder: Path, states: np.ndarray, spoil: Callable[[Path], None], name: str) -> bool:
    """Tell whether reading (or, of the store, `verify --deep`) says that its largest file is spoilt."""
    spoil(max(files(folder), key=lambda path: path.stat().st_size))
    try:
        if name == OURS:
            return bool(verify.verify(folder, deep=True))
        return not np.isfinite(form.whole(folder, len(states)).sum())
    except Exception:
        return True


def flip(path: Path) -> None:
    """Flip a low bit of a byte in the middle: the number stays finite."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 9 // 10)


def speaks_sql(folder: Path) -> bool:
    largest = max(files(folder), key=lambda path: path.stat().st_size)
    try:
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
            query = f"SELECT layer, avg(list_sum(vector)) FROM '{largest}' GROUP BY layer"
            return bool(connection.execute(query).fetchall())
    except duckdb.Error:
        return False


def compare(title: str, states: np.ndarray, rounds: int) -> dict[str, float]:
    """Print the table of one set of states; return its figures."""
    layers, n, width = states.shape
    print(f"\n{title}: {layers} layers x {n:,} samples x {width}, {states.nbytes / 1e6:.0f} MB as float32")
    contenders = {**FORMATS, f"{OURS} again": FORMATS[OURS]}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                place = Path(folder) / "one"
                seconds = once(contenders[name], place, states)
                sizes[name] = sum(path.stat().st_size for path in files(place)) / states.size
                shutil.rmtree(place)
                if number:  # the first round warms up
                    times[name].append(seconds)
    print(
        f"{'':18}{'bytes/value':>12}{'write MB/s':>12}{'ratio':>7}{'layer ms':>10}{'ratio':>7}{'all ms':>9}{'ratio':>7}"
    )
    figures = {}
    for name, measured in times.items():
        middle = [statistics.median(one[k] for one in measured) for k in range(3)]
        ratio = [statistics.median(a[k] / b[k] for a, b in zip(measured, times[OURS])) for k in range(3)]
        print(
            f"{name:18}{sizes[name]:>12.2f}{states.nbytes / 1e6 / middle[0]:>12.0f}{ratio[0]:>7.2f}"
            f"{1000 * middle[1]:>10.1f}{ratio[1]:>7.2f}{1000 * middle[2]:>9.1f}{ratio[2]:>7.2f}"
        )
        if name != OURS:
            key = "a_over_a" if name.endswith("again") else name.replace(" ", "_")
            figures |= {f"{title}_{key}_{what}": round(one, 3) for what, one in zip(("write", "layer", "all"), ratio)}
    return {**figures, f"{title}_bytes_per_value": round(sizes[OURS], 3)}


def abilities(states: np.ndarray) -> None:
    """Print what each format can do."""
    columns = ("SQL", "one layer alone", "append", "resume", "cut noticed", "flip noticed")
    print(f"\n{'':18}" + "".join(f"{name:>17}" for name in columns))
    for name, form in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            seen = []
            for spoil in (cut, flip):
                place = Path(folder) / spoil.__name__
                place.mkdir()
                form.write(place, states)
                sql = speaks_sql(place)
                seen.append(notices(form, place, states, spoil, name))
        cells = [sql, True, form.appends, form.resumes, *seen]
        words = [cell if isinstance(cell, str) else ("yes" if cell else "no") for cell in cells]
        print(f"{name:18}" + "".join(f"{word:>17}" for word in words))


def main() -> None:
    options = _options.parser(__doc__, "fewer samples and rounds").parse_args()
    n, rounds = (300, 3) if options.quick else (1200, 9)
    models = {"demo": "demo", **({"minilm": str(ENCODER)} if ENCODER.exists() else {})}
    print(
        f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}, numpy {np.__version__}, {platform.machine()}, {rounds} rounds"
    )
    for name, there in (("lance (pip install pylance)", lance), (str(ENCODER), ENCODER.exists())):
        if not there:
            print(f"left out, not installed: {name}")
    figures: dict[str, float] = {}
    for title, model in models.items():
        print(f"extracting {n} prompts with {title}", file=sys.stderr, flush=True)
        states = real_states(model, n)
        figures |= compare(title, states, rounds)
    abilities(states)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
