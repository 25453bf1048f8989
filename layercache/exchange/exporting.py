"""States, labels and rows of a run as a folder of files that other tools read.

    export.json                              the run, its layers, the data set and its labels
    rows.parquet (or .csv)                   line i: row, sample_id, split, prompt, the user's own columns
    states.npz | <name>.npy | states.safetensors | states.csv
                                             every array is float32 [n, d] and its line i is line i of the rows
    data/<split>.parquet, README.md          the Hugging Face form: rows and states side by side

An array is called `<site>.<pooling>.layer<k>`: `resid.last@prompt.layer4`.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from layercache import __version__
from layercache.errors import DataError, StoreError
from layercache.exchange import datasets, tensors
from layercache.exchange.names import Place, plain
from layercache.progress import Patient, Progress
from layercache.store.layout import CLEAN, RowsInfo, Run, first_line
from layercache.store.reader import Store

FORMATS = ("npz", "npy", "safetensors", "csv", "hf")
ABOUT = "export.json"


@dataclass(frozen=True)
class Export:
    """What is exported: line i of `rows` belongs to line i of every array."""

    store: Store
    run: Run
    condition: str
    places: list[Place]
    rows: pl.DataFrame
    prompt: str
    """The column of `rows` with the prompts."""
    info: RowsInfo | None
    left_out: int
    """Rows without a sample, or that lack one of the arrays."""
    done: Callable[[], None] = lambda: None
    """Called when an array has been written."""

    def states(self) -> Iterator[np.ndarray]:
        """Yield every array, float32 [n, d], in the order of `places`; one is in memory at a time."""
        ids = self.rows["sample_id"].to_numpy().astype(str)
        for place in self.places:
            found = self.store.matrix(self.run, place.layer, place.pooling, site=place.site, condition=self.condition)
            yield found.values[np.searchsorted(found.sample_ids, ids)]
            self.done()


def export_run(
    store: Store,
    run_name: str,
    out: Path,
    form: str,
    *,
    poolings: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    site: str = "resid",
    condition: str = CLEAN,
    data: str | None = None,
    progress: Progress | None = None,
) -> Export:
    """Write states of a run, its rows and labels into a new folder.

    Args:
        run_name: the run's id, a prefix of it, or its model's name.
        out: the folder; it appears whole or not at all.
        form: one of `FORMATS`. All but `hf` hold one layer in memory at a time, `hf` all that is chosen.
        poolings, layers: what to export; all that is stored when not given.
        data: the data set whose rows are the lines; not needed where there is one. Of a run without rows the
            lines are its samples.
        progress: where to report.

    Raises:
        StoreError: nothing of the kind is stored, or there are several data sets.
        DataError: an unknown form; the folder is there already, or cannot be written.
    """
    if form not in FORMATS:
        raise DataError(f"unknown format {form!r} of a run: use one of {', '.join(FORMATS)}")
    run = store.run(run_name)
    places = _places(store, run, poolings, layers, site, condition)
    info = _data(store, run, data)
    rows, prompt = _rows(store, run, info, condition)
    kept = rows.filter(pl.col("sample_id").is_in(_complete(store, run, places, condition).implode()))
    if not len(kept):
        raise StoreError(f"no row of run {run.id} has all of {len(places)} arrays: export poolings one by one")
    export = Export(store, run, condition, places, kept, prompt, info, len(rows) - len(kept))
    task = Patient(progress or Progress()).task(f"export {run.id}", len(places), "arrays")
    with new_folder(out) as folder, task as bar:
        (folder / ABOUT).write_text(json.dumps(_about(export, form), indent=1, ensure_ascii=False) + "\n", "utf-8")
        _WRITERS[form](replace(export, done=bar.advance), folder)
    return export


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `out` when all went well, and is gone otherwise.

    Raises:
        DataError: something is there, or the disk fails.
    """
    if out.exists():
        raise DataError(f"{out} exists: choose another -o, or remove it")
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as error:
        # NumPy says how many bytes were not written, and not why.
        why = "" if error.errno or "os error" in str(error) else ": is the disk full?"
        raise DataError(f"cannot write {out}: {first_line(error)}{why}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(
    store: Store, run: Run, poolings: Sequence[str] | None, layers: Sequence[int] | None, site: str, condition: str
) -> list[Place]:
    features = [feature for feature in store.features(run, condition) if feature.site == site]
    stored = {feature.pooling: feature.layers for feature in features}
    # States of single tokens have many lines a sample, and so no place beside the rows.
    whole = [name for name in stored if not name.startswith("token@")]
    wanted = whole if poolings is None else [name if "@" in name else f"{name}@prompt" for name in poolings]
    for name in wanted:
        if name.startswith("token@"):
            raise StoreError(f"{name} is a state a token, not a row: export it with --sql 'SELECT … FROM hidden'")
        lacking = sorted(set(layers or ()) - set(stored.get(name, ())))
        if name not in stored or lacking:
            what = f"states {name}" if name not in stored else f"layer {lacking[0]} of {name}"
            known = "; ".join(f"{one.pooling} at {len(one.layers)} layers" for one in features) or "none"
            raise StoreError(f"run {run.id} holds no {site} {what} under condition {condition}: it holds {known}")
    places = [
        Place(site, name, layer) for name in wanted for layer in stored[name] if layers is None or layer in layers
    ]
    if not places:
        raise StoreError(f"run {run.id} holds no {site} states under condition {condition}: see `layercache show`")
    return places


def _data(store: Store, run: Run, name: str | None) -> RowsInfo | None:
    known = store.data(run)
    if name is None and len(known) <= 1:
        return known[0] if known else None
    found = next((info for info in known if info.name == name), None)
    if found is None:
        names = ", ".join(info.name for info in known) or "none"
        asked = "several data sets" if name is None else f"no data set {name!r}"
        raise StoreError(f"run {run.id} has {asked}: choose one of {names} with --data")
    return found


def _rows(store: Store, run: Run, info: RowsInfo | None, condition: str) -> tuple[pl.DataFrame, str]:
    """Return the lines, with the prompt of each, and what the prompt's column is called."""
    samples = store.samples(run, condition).select("sample_id", "prompt")
    if info is None:
        frame = samples.with_row_index("row").select(pl.col("row").cast(pl.Int64), "sample_id", "prompt")
        return frame.insert_column(2, pl.Series("split", [None] * len(frame), pl.String)), "prompt"
    rows = store.rows(run, info.name)
    prompt = "prompt"
    while prompt in rows.columns:
        prompt = f"layercache_{prompt}"
    joined = rows.join(samples.rename({"prompt": prompt}), on="sample_id", how="left", maintain_order="left")
    return joined.select("row", "sample_id", "split", prompt, pl.exclude("row", "sample_id", "split", prompt)), prompt


def _complete(store: Store, run: Run, places: list[Place], condition: str) -> pl.Series:
    """Return the samples that have every array; reads no states."""
    wanted = pl.DataFrame(places, schema=["site", "pooling", "layer"], orient="row")
    held = store.scan("hidden", run, condition).select("sample_id", "site", "pooling", pl.col("layer").cast(pl.Int64))
    counts = held.join(wanted.lazy(), on=wanted.columns, how="semi").group_by("sample_id").len().collect()
    return counts.filter(pl.col("len") == len(places))["sample_id"]


def _about(export: Export, form: str) -> dict[str, Any]:
    run, info = export.run, export.info
    return {
        "layercache": __version__,
        "format": form,
        "run": run.id,
        "hash": run.hash,
        "model": run.model,
        "condition": export.condition,
        "spec": run.spec,
        "layers": [layer._asdict() for layer in run.layers],
        "width": run.width,
        "final_layer": run.final_layer,
        "arrays": [str(place) for place in export.places],
        "rows": len(export.rows),
        "left_out": export.left_out,
        "prompt": export.prompt,
        "data": None
        if info is None
        else {
            "name": info.name,
            "source": info.source,
            "labels": [label._asdict() for label in info.labels],
            "split": info.split,
            "group_by": info.group_by,
            "target": info.target,
        },
    }


def _shapes(export: Export) -> dict[str, tuple[int, ...]]:
    return {str(place): (len(export.rows), export.run.width) for place in export.places}


def _write_npz(export: Export, folder: Path) -> None:
    """Write the arrays, and beside them the rows' numbers, samples and labels."""
    with zipfile.ZipFile(folder / "states.npz", "w", zipfile.ZIP_STORED) as archive:
        for place, values in zip(export.places, export.states(), strict=True):
            _into_zip(archive, str(place), values)
        for name, values in _columns(export).items():
            _into_zip(archive, name, values)
    export.rows.write_parquet(folder / "rows.parquet")


def _into_zip(archive: zipfile.ZipFile, name: str, values: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, values, allow_pickle=False)


def _columns(export: Export) -> dict[str, np.ndarray]:
    labels = [] if export.info is None else [label.name for label in export.info.labels]
    chosen = export.rows.select("row", "sample_id", *(pl.col(name).alias(f"label.{plain(name)}") for name in labels))
    return {name: datasets.as_array(column) for name, column in zip(chosen.columns, chosen.to_arrow().columns)}


def _write_npy(export: Export, folder: Path) -> None:
    for place, values in zip(export.places, export.states(), strict=True):
        np.save(folder / f"{place}.npy", values, allow_pickle=False)
    export.rows.write_parquet(folder / "rows.parquet")


def _write_safetensors(export: Export, folder: Path) -> None:
    with (folder / "states.safetensors").open("wb") as file:
        metadata = {"run": export.run.id, "model": export.run.model, "condition": export.condition}
        tensors.write_safetensors(file, _shapes(export), export.states(), metadata)
    export.rows.write_parquet(folder / "rows.parquet")


def _write_csv(export: Export, folder: Path) -> None:
    """Write a line a row and array: what it is, then the state's elements x0, x1, …"""
    from layercache import table

    elements = [f"x{index}" for index in range(export.run.width)]
    with (folder / "states.csv").open("wb") as file:
        for number, (place, values) in enumerate(zip(export.places, export.states(), strict=True)):
            names = {"site": place.site, "pooling": place.pooling, "layer": place.layer}
            keys = export.rows.select("row", "sample_id", *(pl.lit(value).alias(name) for name, value in names.items()))
            frame = pl.concat([keys, pl.DataFrame(values, schema=elements)], how="horizontal")
            frame.write_csv(file, include_header=number == 0)
    with (folder / "rows.csv").open("wb") as file:
        table.write(export.rows.to_arrow(), "csv", file)


def _write_hf(export: Export, folder: Path) -> None:
    columns = dict(zip(export.rows.columns, export.rows.to_arrow().columns))
    for place, values in zip(export.places, export.states(), strict=True):
        columns[str(place)] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), export.run.width)
    arrays = ", ".join(f"`{place}`" for place in export.places)
    datasets.write(
        folder,
        pa.table(columns),
        title=f"States of {export.run.model}",
        text=f"{len(export.rows):,} rows of {export.info.name if export.info else 'samples'}, with what the layers of"
        f" `{export.run.model}` said of each, {export.run.width} float32 a state: {arrays}. Layer 0 is the embedding"
        f" output, layer k the residual stream after block k. Rows with the same `sample_id` are the same prompt.",
    )


_WRITERS: dict[str, Callable[[Export, Path], None]] = {
    "npz": _write_npz,
    "npy": _write_npy,
    "safetensors": _write_safetensors,
    "csv": _write_csv,
    "hf": _write_hf,
}
