"""Writes a store: opens a run, collects the rows of a shard and publishes it whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from layercache.errors import StoreError
from layercache.store import manifest, mirror
from layercache.store.blocks import Collected, Values, block
from layercache.store.encode import write_table
from layercache.store.layout import (
    CLEAN,
    CONDITION,
    MANIFEST,
    RUN,
    RUN_FILE,
    SHARD,
    FileInfo,
    LayerName,
    Run,
    ShardInfo,
    canonical_json,
    check_condition,
    check_path,
    digest,
    ids_digest,
    is_store,
    place,
    read_json,
    read_run,
    run_id,
    run_paths,
    shard_name,
)
from layercache.store.publish import (
    check_not_frozen,
    make_folder,
    one_line_errors,
    publish_file,
    publish_folder,
    staging,
    write_file,
)
from layercache.store.rows import put_rows
from layercache.store.schema import FORMAT, READER
from layercache.store.shard_checks import shard_problems, table_problems

__all__ = ["Shard", "check_writable", "open_run", "put_rows"]


def check_writable(store: Path) -> None:
    """Refuse a store that could not be written, before any work is done. Creates nothing.

    Raises:
        StoreError: frozen, in a newer format, not a directory, a directory of something else, or without
            permission to write.
    """
    check_path(store)
    if mirror.of(store) is not None:
        mirror.refresh(store)
        check_not_frozen(store)
        mirror.check_writable(store)
    check_not_frozen(store)
    with one_line_errors(store):
        if store.exists():
            if not store.is_dir():
                raise StoreError(f"{store} is a file, not a store: choose another --store")
            if not is_store(store):
                raise StoreError(
                    f"{store} holds other things and is not a store: choose another --store or an empty folder"
                )
            for path in run_paths(store):
                read_run(path)
        folder = store
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise StoreError(f"cannot write {store}: {folder} is a file: choose another --store")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write {store}: permission denied in {folder}: choose another --store")


def open_run(
    store: Path, spec: dict[str, Any], *, model: str, layers: list[tuple[int, str]], width: int, final_layer: int
) -> Run:
    """Find the run with this spec in a store, or create it (and the store).

    Args:
        store: the store's directory.
        spec: everything that changes a captured number; JSON values only. Its hash is the run's identity.
        model: the model's name; its last part opens the id of a new run.
        layers: every layer's number and module name.
        width: elements of a state.
        final_layer: the layer after the last block, before the final norm.

    Raises:
        StoreError: as `check_writable`; or the run is there with other layers or another width.
    """
    check_writable(store)
    spec_hash = digest(spec)
    with one_line_errors(store):
        found = find_run(store, spec_hash)
        while found is None:
            found = _create_run(store, spec, spec_hash, model, layers, width, final_layer)
    if (found.width, found.final_layer, len(found.layers)) != (width, final_layer, len(layers)):
        raise StoreError(
            f"run {found.id} is stored with {len(found.layers)} layers of width {found.width}, not {len(layers)} of"
            f" {width}, though its settings are the same: choose another --store"
        )
    return found


def find_run(store: Path, spec_hash: str) -> Run | None:
    """Return the run whose spec has this hash; None where the run, or the store, is not there.

    Raises:
        StoreError: a run's description cannot be read.
    """
    runs = (read_run(path) for path in run_paths(store))
    return next((run for run in runs if run.hash == spec_hash), None)


def _create_run(
    store: Path,
    spec: dict[str, Any],
    spec_hash: str,
    model: str,
    layers: list[tuple[int, str]],
    width: int,
    final_layer: int,
) -> Run | None:
    """Publish a run directory; None when another writer published one of that name at the same moment."""
    value = {
        "format": FORMAT,
        "reader": READER,
        "hash": spec_hash,
        "model": model,
        "spec": spec,
        "layers": [LayerName(layer, name)._asdict() for layer, name in layers],
        "width": width,
        "final_layer": final_layer,
    }
    # Eight digits may, rarely, be taken by another spec of a model of the same name.
    ids = (run_id(model, spec_hash, length) for length in (8, 16, 64))
    path = next(path for path in (store / f"{RUN}{name}" for name in ids) if not (path / RUN_FILE).exists())
    data = json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
    make_folder(store)
    with staging(store) as folder:
        write_file(folder / RUN_FILE, data)
        published = publish_folder(folder, path)
    if not published and not (path / RUN_FILE).exists():
        _restore_run(store, path, data)
        published = True
    return read_run(path) if published else find_run(store, spec_hash)


def _restore_run(store: Path, path: Path, data: bytes) -> None:
    """Put back a `run.json` that was lost or, damaged, moved away, when the run's shards were written for it."""
    wanted = hashlib.sha256(data).hexdigest()
    for file in sorted(path.glob(f"{CONDITION}*/{SHARD}*/{MANIFEST}")):
        if read_json(file).get("run_sha256") != wanted:
            raise StoreError(
                f"{path} has no {RUN_FILE}, and {file.parent} was written for another one than this model and these"
                f" settings give: put the file back, or move {path} away"
            )
    publish_file(store, path / RUN_FILE, data)


class Shard:
    """Collects the rows of one shard in memory and publishes them.

    Args:
        run: the run the shard belongs to.
        outputs: the layers held of every output; None for an output without layers.
        condition: how the forward pass was run.
        provenance: JSON values to keep in the manifest (versions, host, device, time).
        allow_nonfinite: keep states with infinities or NaN instead of refusing the shard.
        replaces: names of shards of the condition that do not count any more once this one is there.

    Raises:
        StoreError: the condition's name is not safe in a path.
        ValueError: an output's name is not known, or the provenance is not JSON.
    """

    def __init__(
        self,
        run: Run,
        outputs: dict[str, list[int] | None],
        *,
        condition: str = CLEAN,
        provenance: dict[str, Any],
        allow_nonfinite: bool = False,
        replaces: Sequence[str] = (),
    ) -> None:
        unknown = [name for name in outputs if place(name) is None]
        if unknown:
            raise ValueError(f"unknown outputs: {', '.join(unknown)}")
        canonical_json(provenance)  # what is not JSON fails here, not when the work is done
        self.run = run
        self.outputs = {name: layers if layers is None else sorted(set(layers)) for name, layers in outputs.items()}
        self.condition = check_condition(condition)
        self.provenance = provenance
        self.allow_nonfinite = allow_nonfinite
        self.replaces = sorted(replaces)
        self.nbytes = 0
        self.n_samples = 0
        self._rows: dict[str, Collected] = {}

    def add(self, table: str, columns: Mapping[str, Values]) -> None:
        """Add rows of a table: columns by name, all of one length; nullable ones may be left out.

        `samples` takes every sample of the shard once. States are a float32 array [n, d], already rounded
        to the precision wanted, and are copied.

        Raises:
            ValueError: the columns do not fit the table.
        """
        added = block(table, columns, self.run.width)
        if len(added.columns) == 0:
            return
        self._rows.setdefault(table, Collected()).add(added)
        self.nbytes += added.nbytes
        if table == "samples":
            self.n_samples += len(added.columns)

    def publish(self, *, check: bool = False) -> str | None:
        """Write the shard; it appears whole or not at all. Tables are encoded on several threads.

        Args:
            check: read back every byte and row before the shard appears, as `verify --deep` would.

        Returns:
            The shard's name; None when no sample was added. When a shard of the same samples and outputs
            is there already, that one is checked and kept.

        Raises:
            StoreError: a state is not finite, the store is frozen, the disk is full or cannot be written, or
                the shard that is there already is damaged.
            ValueError: a sample was added twice, or rows without samples.
        """
        ids = self._sample_ids()
        if not ids:
            return None
        check_not_frozen(self.run.store)
        sha256 = ids_digest(ids)
        name = shard_name(sha256, self.outputs, self.replaces)
        final = self.run.path / f"{CONDITION}{self.condition}" / f"{SHARD}{name}"
        with one_line_errors(final):
            if not (final / MANIFEST).exists():
                with staging(self.run.store) as folder:
                    info = self._write(folder, name, final, sha256)
                    if check:
                        self._check_staged(replace(info, path=folder))
                    write_file(folder / MANIFEST, manifest.encode(self.run, info))
                    if publish_folder(folder, final):
                        return name
        self._check_there(final)
        return name

    def _sample_ids(self) -> list[str]:
        samples = self._rows["samples"].columns if "samples" in self._rows else []
        if not samples and self._rows:
            raise ValueError(f"rows of {', '.join(self._rows)} without rows of samples")
        ids = [name for part in samples for name in part["sample_id"].to_pylist()]
        if len(set(ids)) != len(ids):
            raise ValueError("a sample was added to the shard twice")
        return ids

    def _write(self, folder: Path, name: str, final: Path, samples_sha256: str) -> ShardInfo:
        """Write every table's file; return what the manifest is to say."""

        def write(table: str) -> FileInfo:
            path = folder / f"{table}.parquet"
            return write_table(path, table, self._rows[table], self.run.width, allow_nonfinite=self.allow_nonfinite)

        with ThreadPoolExecutor(max_workers=min(len(self._rows), os.cpu_count() or 1)) as pool:
            infos = list(pool.map(write, self._rows))
        return ShardInfo(
            name=name,
            path=final,
            condition=self.condition,
            outputs=self.outputs,
            n_samples=self.n_samples,
            samples_sha256=samples_sha256,
            files={f"{table}.parquet": info for table, info in sorted(zip(self._rows, infos, strict=True))},
            provenance=self.provenance,
            allow_nonfinite=self.allow_nonfinite,
            replaces=self.replaces,
            run_sha256=hashlib.sha256((self.run.path / RUN_FILE).read_bytes()).hexdigest(),
            sha256="",
        )

    def _check_staged(self, info: ShardInfo) -> None:
        problems = table_problems(info, self.run, deep=True)
        if problems:
            raise StoreError(f"{problems[0].path.name} of shard {info.name} {problems[0].what}: it was not published")

    def _check_there(self, final: Path) -> None:
        """Check the shard that another writer published before this one."""
        problems = shard_problems(final, self.run, deep=True)
        if problems:
            raise StoreError(
                f"{final} is in the way and damaged ({problems[0].what}): run `layercache verify --deep --repair`, then"
                " this command again"
            )
