"""Results of analyses: derived from what a store holds, found again by what they were computed from.

A result may be deleted at any time; its directory is published whole, as a shard is.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from layercache.errors import StoreError
from layercache.store import mirror
from layercache.store.files import sha256 as file_sha256
from layercache.store.layout import MANIFEST, RESULTS, digest, first_line, frozen_hint, listed, read_json, refuse_link
from layercache.store.manifest import own_hash_is_right, seal
from layercache.store.publish import READ_ONLY, one_line_errors, publish_file, publish_folder, staging, write_file
from layercache.store.schema import FORMAT, READER, SAMPLE_SCORES, Column, arrow_schema
from layercache.store.schema import RESULTS as RESULT_COLUMNS

_PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,199}")
_UNSEALED = {"format", "reader", "analysis", "spec", "inputs", "hash", "created", "files"}
"""Fields of the manifests written before they had a hash of their own."""
_TABLES = ("results.parquet", "sample_scores.parquet")
_MANNER = {"bootstrap", "seed", "folds", "min_class", "group_by", "kind_by"} | {
    *("popularity", "anchor", "anchor_layer", "noise", "p_true", "repeats")
}
"""What a specification says of how a number is computed, not of what: of two that differ in these alone the newer result counts."""


@dataclass
class Outcome:
    """What an analysis gives."""

    results: pa.Table
    """One number a row, the columns of `schema.RESULTS`; nullable ones may be left out."""
    sample_scores: pa.Table | None = None
    """One row a sample, the columns of `schema.SAMPLE_SCORES`; nullable ones may be left out."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Further files to keep beside the tables, by plain file name."""


class ResultInfo(NamedTuple):
    """A stored result: where it is, what was asked and what it was computed from."""

    path: Path
    analysis: str
    spec: dict[str, Any]
    inputs: list[str]
    created: str

    def file(self, name: str) -> Path | None:
        """Return a file of the result (`results.parquet`), or None where it has none of that name."""
        path = self.path / name
        return path if path.exists() else None


def save(store: Path, analysis: str, spec: dict[str, Any], inputs: Iterable[str], outcome: Outcome) -> Path | None:
    """Keep the outcome of an analysis in the store.

    Args:
        store: the store's directory.
        analysis: the kind's name.
        spec: what was asked; JSON values only.
        inputs: what it was computed from, as `Store.input_names` gives.
        outcome: the tables and files.

    Returns:
        The result's directory, which may have been there before; None when the store is frozen or read-only.

    Raises:
        StoreError: the disk is full or fails.
        ValueError: a table lacks a column, or a file name is not a plain one.
    """
    identity = {"analysis": analysis, "spec": spec, "inputs": sorted(inputs)}
    files = _encoded(outcome)
    final = _path(store, analysis, digest(identity))
    with one_line_errors(final):
        if final.exists():
            return final
        if frozen_hint(store) is not None:
            return None
        try:
            with staging(store) as folder:
                for name, data in files.items():
                    write_file(folder / name, data)
                write_file(folder / MANIFEST, _manifest(identity, files))
                publish_folder(folder, final)
        except OSError as error:
            if error.errno in READ_ONLY:
                return None
            raise
    return final


def find(store: Path, analysis: str, spec: dict[str, Any], inputs: Iterable[str]) -> Path | None:
    """Return the directory of the result of the same analysis, specification and inputs, if there is one."""
    path = _path(store, analysis, digest({"analysis": analysis, "spec": spec, "inputs": sorted(inputs)}))
    return path if path.exists() else None


def renew(store: Path, path: Path) -> None:
    """Let a result that is asked for again be the newest: it then counts before what was asked otherwise meanwhile.

    Nothing happens where it is that already, and in a store that cannot be written or whose files, in a bucket, never change.

    Raises:
        StoreError: the disk is full or fails.
    """
    value = _intact(path)
    if value is None or frozen_hint(store) is not None or mirror.of(store) is not None:
        return
    of_kind = [info for info in listing(store, newest=False) if info.analysis == value["analysis"]]
    if max(of_kind, key=lambda info: (info.created, info.path)).path != path:
        data = seal(value | {"created": datetime.now(UTC).isoformat(timespec="microseconds"), "sha256": ""})
        with one_line_errors(path):
            try:
                publish_file(store, path / MANIFEST, data)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise


def load(path: Path) -> pa.Table:
    """Read the table `results` of a result's directory: the columns of `schema.RESULTS`.

    Raises:
        StoreError: it cannot be read.
    """
    file = path / "results.parquet"
    try:
        return pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{file} cannot be read ({first_line(error)}): delete {path}, it can be made again") from error


def listing(store: Path, *, newest: bool = True) -> list[ResultInfo]:
    """List the newest result of everything that was asked (or all), sorted by path; damaged ones are left out.

    What was asked of two versions of the data, or in two ways (seeds, folds, the layer a ΔP is anchored at), is one
    thing: the result computed last counts.

    Raises:
        StoreError: the folder of results cannot be looked into.
    """
    found: dict[str, ResultInfo] = {}
    for name in listed(store / RESULTS):
        path = store / RESULTS / name
        value = _intact(path)
        if value is not None:
            info = ResultInfo(path, *(value[name] for name in ResultInfo._fields[1:]))
            asked = {name: setting for name, setting in info.spec.items() if name not in _MANNER}
            key = digest([info.analysis, asked]) if newest else str(info.path)
            if key not in found or (found[key].created, found[key].path) < (info.created, info.path):
                found[key] = info
    return sorted(found.values())


def problems(store: Path, *, deep: bool) -> Iterator[tuple[Path, str]]:
    """Yield what is wrong with the stored results: the path, and what."""
    for folder in (store / RESULTS / name for name in listed(store / RESULTS)):
        if not folder.is_dir():
            continue
        value = _intact(folder)
        if value is None:
            yield folder, "is damaged: delete it, the analysis can be run again"
        elif deep:
            data = (folder / MANIFEST).read_bytes()
            if set(value) != _UNSEALED and not own_hash_is_right(data):
                yield folder / MANIFEST, "its own sha256 is wrong"
            for name, stated in value["files"].items():
                if file_sha256(folder / name) != stated["sha256"]:
                    yield folder / name, "its sha256 is not the manifest's"


def _path(store: Path, analysis: str, identity: str) -> Path:
    """Return where a result is or is to be: the first name that nothing else, or a damaged one, has taken."""
    if not _PLAIN_FILE.fullmatch(analysis):
        raise ValueError(f"analysis {analysis!r} is not a plain name")
    for length in (8, 16, 32):
        path = store / RESULTS / f"{analysis}-{identity[:length]}"
        if not path.exists():
            break
        value = _intact(path)
        if value is not None and value["hash"] == identity:
            break
    return path


def _intact(folder: Path) -> dict[str, Any] | None:
    """Return a result's manifest when its files are all there in the sizes it states."""
    try:
        refuse_link(folder.parent)
        refuse_link(folder)
        value = read_json(folder / MANIFEST)
        for name, stated in value["files"].items():
            refuse_link(folder / name)
            if not _PLAIN_FILE.fullmatch(name) or (folder / name).stat().st_size != stated["bytes"]:
                return None
        identity = {name: value[name] for name in ("analysis", "spec", "inputs")}
        return value if digest(identity) == value["hash"] and isinstance(value["created"], str) else None
    except (StoreError, OSError, KeyError, TypeError, AttributeError):
        return None


def _manifest(identity: dict[str, Any], files: dict[str, bytes]) -> bytes:
    value = {
        "format": FORMAT,
        "reader": READER,
        **identity,
        "hash": digest(identity),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
        "sha256": "",
    }
    return seal(value)


def _encoded(outcome: Outcome) -> dict[str, bytes]:
    """Return the files of a result and their bytes."""
    files = dict(outcome.files)
    for name in files:
        if not _PLAIN_FILE.fullmatch(name) or name in _TABLES or name == MANIFEST:
            raise ValueError(f"file name {name!r}: give a plain one that is not a table's")
    files["results.parquet"] = _parquet(outcome.results, RESULT_COLUMNS)
    if outcome.sample_scores is not None:
        files["sample_scores.parquet"] = _parquet(outcome.sample_scores, SAMPLE_SCORES)
    return files


def _parquet(table: pa.Table, columns: tuple[Column, ...]) -> bytes:
    """Return a table as the bytes of a Parquet file with exactly the declared columns."""
    schema = arrow_schema(columns)
    unknown = sorted(set(table.column_names) - set(schema.names))
    if unknown:
        raise ValueError(f"columns {', '.join(unknown)} are not declared in the schema")
    for field_ in schema:
        if field_.name not in table.column_names:
            table = table.append_column(field_.name, pa.nulls(len(table), field_.type))
        if not field_.nullable and table[field_.name].null_count:
            raise ValueError(f"column {field_.name} is missing or holds a NULL")
    sink = pa.BufferOutputStream()
    pq.write_table(table.select(schema.names).cast(schema), sink, compression="zstd", compression_level=1)
    content: bytes = sink.getvalue().to_pybytes()
    return content
