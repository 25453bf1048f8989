"""Where things are in a store, what they are called, and the records that describe them.

<store>/run=<id>/run.json, head-<sha16>.safetensors
<store>/run=<id>/rows/<data>-<seq>-<sha16>.parquet
<store>/run=<id>/condition=<name>/shard=<name>/manifest.json, samples.parquet, …
<store>/recipes/<name>-<seq>-<sha16>.json
<store>/results/<analysis>-<hash8>/manifest.json, results.parquet, …
<store>/.tmp/…                       never read
<store>/.quarantine/…                never read; what `verify --repair` moved out of the way
<store>/FROZEN                       writers refuse the store; its text says what to do instead
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from layercache.errors import StoreError
from layercache.recipe import Label
from layercache.store.schema import FORMAT
from layercache.store.told import Told

RUN, CONDITION, SHARD = "run=", "condition=", "shard="
RUN_FILE, MANIFEST = "run.json", "manifest.json"
ROWS, RECIPES, RESULTS, TEMPORARY, FROZEN = "rows", "recipes", "results", ".tmp", "FROZEN"
QUARANTINE = ".quarantine"
CLEAN = "clean"
BESIDE_RUN = re.compile(r"head-(?P<sha>[0-9a-f]{16})\.safetensors")
"""Files that may stand beside a `run.json`: written once, named by their content's sha256."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class LayerName(NamedTuple):
    """A layer's number and what the model calls the module whose output it is."""

    layer: int
    name: str


@dataclass(frozen=True)
class Run(Told):
    """One model fed one way: the content of `run.json`, and where it is."""

    store: Path
    id: str
    path: Path
    hash: str
    """sha256 of the canonical JSON of `spec`."""
    model: str
    """The model's name as the user knows it; not part of the run's identity."""
    spec: dict[str, Any]
    """Everything that changes a captured number."""
    layers: list[LayerName]
    width: int
    """Elements of a state."""
    final_layer: int
    """The layer after the last block, before the final norm (L)."""

    def layer_name(self, layer: int) -> str:
        """Return what the model calls a layer.

        Raises:
            StoreError: the run has no such layer.
        """
        for known in self.layers:
            if known.layer == layer:
                return known.name
        raise StoreError(f"run {self.id} has no layer {layer}: it has 0 to {max(known.layer for known in self.layers)}")


class FileInfo(NamedTuple):
    """What a manifest says of one file of a shard."""

    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo:
    """A published shard: the content of its manifest, and where it is."""

    name: str
    path: Path
    condition: str
    outputs: dict[str, list[int] | None]
    """The layers held of every output; None for an output without layers (`tokens`)."""
    n_samples: int
    samples_sha256: str
    files: dict[str, FileInfo]
    provenance: dict[str, Any]
    allow_nonfinite: bool
    replaces: list[str]
    run_sha256: str
    """sha256 of the run's `run.json` when the shard was written."""
    sha256: str

    def file(self, table: str) -> Path | None:
        """Return the Parquet file of a table, or None where the shard has no row of it."""
        name = f"{table}.parquet"
        return self.path / name if name in self.files else None


class RowsInfo(NamedTuple):
    """A data set's newest rows file, and what its metadata says."""

    name: str
    labels: list[Label]
    split: str | None
    group_by: str | None
    target: str | None
    source: str
    path: Path
    reference: tuple[str, ...] = ()
    """Columns with the texts that generated text is compared with."""
    answers: tuple[str, ...] = ()
    """Columns with the accepted answers that generated answers are labelled by."""


class Place(NamedTuple):
    """The rows that an output is: those of `table` where every column of `where` has the value given."""

    table: str
    where: dict[str, str]


def place(output: str) -> Place | None:
    """Say where an output's rows are; None for an output that this version does not know.

    `tokens` is all of the table `tokens`; `hidden:resid:mean@prompt` the rows of `hidden` with that site
    and pooling; `lens:…` and `generation:…` name themselves in a column; `stats:curvature` is a metric.
    """
    kind, _, rest = output.partition(":")
    if output == "tokens":
        return Place("tokens", {})
    if kind == "hidden":
        site, _, pooling = rest.partition(":")
        return Place("hidden", {"site": site, "pooling": pooling})
    if kind == "stats":
        return Place("token_stats", {"metric": rest})
    table = {"lens": "lens", "generation": "generations"}.get(kind)
    return None if table is None else Place(table, {"output": output})


def table_of(output: str) -> str | None:
    """Return the table that an output's rows are in; None for an output that this version does not know."""
    where = place(output)
    return None if where is None else where.table


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value that hashes are taken over: UTF-8, keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def ids_digest(sample_ids: Iterable[str]) -> str:
    """Return the sha256 over sample ids in sorted order, each followed by a newline."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(sample_ids)).encode()).hexdigest()


def shard_name(sample_ids_sha256: str, outputs: dict[str, list[int] | None], replaces: list[str]) -> str:
    """Return a shard's name: `s` and 16 hex digits over its sample ids and outputs.

    The letter keeps query engines that guess the types of `key=value` folders from reading a name of
    digits only as a number.
    """
    return "s" + digest({"outputs": outputs, "replaces": replaces, "samples": sample_ids_sha256})[:16]


def run_id(model: str, spec_hash: str, length: int = 8) -> str:
    """Return a run's id: the last part of the model's name, made safe for a path, and the hash's first digits."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:64]
    return f"{safe or 'model'}-{spec_hash[:length]}"


def check_condition(name: str) -> str:
    """Return a condition's name when it is safe as part of a path.

    Raises:
        StoreError: it is not.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise StoreError(f"condition {name!r} cannot be stored: use letters, digits, '.', '_' and '-' (at most 100)")
    return name


def refuse_link(path: Path | str) -> None:
    """Refuse a symbolic link inside a store: one from someone else must not make a reader open other files.

    Nor anything else that is neither a file nor a folder: opening a pipe that nobody writes to takes forever.

    Raises:
        StoreError: it is one.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise StoreError(
            f"{path} is a symbolic link, which a store must not hold: put the file or folder itself there, or run"
            " `layercache verify --repair`"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StoreError(f"{path} is neither a file nor a folder: run `layercache verify --repair`")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object of the store.

    Raises:
        StoreError: unreadable, a link, not a JSON object, or in a newer format.
    """
    refuse_link(path)
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}): run `layercache verify`") from error
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise StoreError(f"{path} is not a file of a layercache store: run `layercache verify`")
    check_format(path, value)
    return value


def check_format(path: Path | str, value: dict[str, Any]) -> None:
    """Refuse what a file in a newer format says.

    Raises:
        StoreError: names the version that reads it.
    """
    if value["format"] > FORMAT:
        reader = value.get("reader")
        which = f"layercache {reader} or newer" if isinstance(reader, str) else "a newer layercache"
        raise StoreError(f"{path} is in store format {value['format']}, this version reads {FORMAT}: install {which}")


def read_run(path: Path) -> Run:
    """Read the `run.json` of a run directory.

    Raises:
        StoreError: as `read_json`, or a field is missing, of the wrong type, or contradicts the hash.
    """
    refuse_link(path)
    value = read_json(path / RUN_FILE)
    try:
        layers = [LayerName(int(entry["layer"]), str(entry["name"])) for entry in value["layers"]]
        run = Run(
            store=path.parent,
            id=path.name.removeprefix(RUN),
            path=path,
            hash=str(value["hash"]),
            model=str(value["model"]),
            spec=dict(value["spec"]),
            layers=layers,
            width=int(value["width"]),
            final_layer=int(value["final_layer"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path / RUN_FILE} is malformed ({error!r}): run `layercache verify`") from error
    if digest(run.spec) != run.hash:
        raise StoreError(f"{path / RUN_FILE}: the hash is not that of the spec: run `layercache verify`")
    return run


def run_paths(store: Path) -> list[Path]:
    """List the run directories of a store, sorted; one without a `run.json` does not exist."""
    paths = [store / name for name in listed(store, RUN)]
    return [path for path in paths if not is_gone(path / RUN_FILE)]


def listed(folder: Path, opening: str = "") -> list[str]:
    """List the names in a directory that begin with `opening`, sorted; none where there is no directory.

    Plain names: of ten thousand, making and sorting paths would take longer than listing them. Not `glob`, which
    finds nothing in a directory that may not be looked into, as if nothing were there.

    Raises:
        StoreError: the directory cannot be looked into.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(opening))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read ({first_line(error)}): run `layercache verify`") from error


def is_gone(path: Path) -> bool:
    """Tell whether nothing is there; what may not be looked at is there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def beside_run(run: Run) -> list[Path]:
    """List the known files beside a run's `run.json`, sorted."""
    return [run.path / name for name in listed(run.path) if BESIDE_RUN.fullmatch(name)]


def is_store(path: Path) -> bool:
    """Tell whether a directory is a store, perhaps an empty one."""
    known = {RECIPES, RESULTS, TEMPORARY, QUARANTINE, FROZEN}
    names = [entry.name for entry in path.iterdir()]
    return any(name in known or name.startswith(RUN) for name in names) or all(name[0] == "." for name in names)


def check_path(path: Path) -> None:
    """Refuse a path of bytes that are no text, which readers of Parquet cannot open.

    Raises:
        StoreError: it is one.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise StoreError(f"the path {str(path.absolute())!r} is not UTF-8: rename the folder") from None


def frozen_hint(store: Path) -> str | None:
    """Return the text of a store's `FROZEN` file, or None where writing is allowed."""
    refuse_link(store / FROZEN)
    try:
        return " ".join((store / FROZEN).read_text(encoding="utf-8", errors="replace").split())
    except (FileNotFoundError, NotADirectoryError):
        return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for a message of one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.splitlines()[0]
    return (str(error).splitlines() or [type(error).__name__])[0]
