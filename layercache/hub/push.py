"""From a store into a dataset repository: the data first, the manifests in the last commits.

A reader of any commit sees whole shards alone. What is there under the same name stays, so a push that was stopped
goes on where it was. A run is known by its hash: where the repository has it under another id, that one is used.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from layercache.errors import StoreError
from layercache.hub import card
from layercache.hub.client import Remote, one_line
from layercache.store import known_paths, manifest, reader, results, sequence
from layercache.store.layout import (
    CONDITION,
    MANIFEST,
    RECIPES,
    RESULTS,
    ROWS,
    RUN,
    RUN_FILE,
    SHARD,
    Run,
    ShardInfo,
    beside_run,
    run_id,
)
from layercache.store.shard_checks import shard_problems

COMMIT_FILES = 250
COMMIT_BYTES = 10**9
"""What one commit adds at most, beside a file that is larger alone."""


class Upload(NamedTuple):
    """A file to add: where, its bytes or the file that has them, and the sha256 it must have, where that is known."""

    path: str
    content: Path | bytes
    size: int
    sha256: str | None = None


@dataclass
class Uploads:
    """What a push adds, in the order it has to."""

    data: list[Upload] = field(default_factory=list)
    """Files that nobody looks at until a manifest names them."""
    last: list[Upload] = field(default_factory=list)
    """`run.json`, manifests and what counts by its name."""
    runs: int = 0
    shards: int = 0
    there: int = 0
    rows: int = 0
    files: int = 0
    results: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in (*self.data, *self.last))


def plan(store: Path, remote: Remote) -> tuple[Uploads, dict[str, dict[str, Any]], set[str]]:
    """List what a store holds and a repository lacks.

    Returns:
        The uploads; of every run that is there then, by id, what its `run.json` says; and the folders of shards that
        another one replaces.

    Raises:
        StoreError: a shard is damaged, a run is there with other layers, or the Hub cannot be reached.
    """
    uploads = Uploads()
    runs = _read_json(remote, [name for name in remote.files if _is(name, RUN_FILE, 2)])
    manifests = _read_json(remote, [name for name in remote.files if _is(name, MANIFEST, 4)])
    replaced = {
        f"{path.rpartition('/')[0].rpartition('/')[0]}/{SHARD}{name}"
        for path, value in manifests.items()
        for name in value.get("replaces", [])
    }
    known = {path.partition("/")[0].removeprefix(RUN): value for path, value in runs.items()}
    opened = reader.open(store)
    renamed = set()
    for run in opened.runs():
        place, run_sha256 = _run(run, known, remote, uploads)
        if place != run.id:
            renamed.add(run.id)
        for condition in opened.conditions(run):
            for shard in sorted(opened.shards(run, condition), key=lambda shard: bool(shard.replaces)):
                folder = f"{RUN}{place}/{CONDITION}{condition}/{SHARD}{shard.name}"
                _shard(shard, run, folder, run_sha256, remote, uploads, replaced)
        for path in beside_run(run):
            _named(path, f"{RUN}{place}/{path.name}", uploads.data, remote, uploads)
        for file in sequence.files(run.path / ROWS, "parquet"):
            _named(file.path, f"{RUN}{place}/{ROWS}/{file.path.name}", uploads.last, remote, uploads)
    for file in sequence.files(store / RECIPES, "json"):
        _named(file.path, f"{RECIPES}/{file.path.name}", uploads.last, remote, uploads)
    _results(store, renamed, remote, uploads)
    return uploads, known, replaced


def carry_out(uploads: Uploads, remote: Remote, page: bytes | None, moved: Callable[[int], None]) -> int:
    """Commit what was planned; the page of the repository comes with the last manifests.

    Returns:
        The number of commits.

    Raises:
        StoreError: a file is not what its manifest says, or the Hub refuses or cannot be reached.
    """
    # The card speaks of what the manifests beside it name.
    last = [*uploads.last, *([] if page is None else [Upload("README.md", page, len(page))])]
    parts = [*_commits(uploads.data), *_commits(last)]
    parent = remote.commit
    for number, part in enumerate(parts):
        title = f"Add {len(part)} files of a layercache store ({number + 1} of {len(parts)})"
        parent = _commit(remote, part, parent, title)
        moved(sum(one.size for one in part))
    return len(parts)


def _commit(remote: Remote, part: list[Upload], parent: str, title: str) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = []
    for one in part:
        operation = CommitOperationAdd(one.path, one.content if isinstance(one.content, bytes) else str(one.content))
        if one.sha256 is not None and operation.upload_info.sha256.hex() != one.sha256:
            raise StoreError(f"{one.path}: its sha256 is not the manifest's: run `layercache verify --deep --repair`")
        operations.append(operation)
    with one_line(remote.address), warnings.catch_warnings():
        # The Hub would like to see a licence in the card; that is the user's to choose.
        warnings.simplefilter("ignore")
        done = remote.api.create_commit(
            remote.address.repository,
            operations,
            commit_message=title,
            repo_type="dataset",
            revision=remote.address.revision,
            parent_commit=parent,
        )
    return str(done.oid)


def _commits(files: list[Upload]) -> Iterator[list[Upload]]:
    part: list[Upload] = []
    for one in files:
        if part and (len(part) == COMMIT_FILES or sum(other.size for other in part) + one.size > COMMIT_BYTES):
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _is(name: str, last: str, parts: int) -> bool:
    return (
        known_paths.is_known(name)
        and name.startswith(RUN)
        and name.endswith(f"/{last}")
        and name.count("/") == parts - 1
    )


def _read_json(remote: Remote, paths: list[str]) -> dict[str, dict[str, Any]]:
    """Read JSON objects of the repository; what is none says nothing."""
    found: dict[str, dict[str, Any]] = {}
    for path, content in remote.read_all(paths).items():
        with suppress(ValueError, RecursionError):
            value = json.loads(content)
            if isinstance(value, dict):
                found[path] = value
    return found


def _run(run: Run, known: dict[str, dict[str, Any]], remote: Remote, uploads: Uploads) -> tuple[str, str]:
    """Find the run in the repository, or add it; return its id there and the sha256 of its `run.json`."""
    mine = (run.path / RUN_FILE).read_bytes()
    for place, value in known.items():
        if value.get("hash") == run.hash:
            own = json.loads(mine)
            for name in ("width", "final_layer", "layers"):
                if value.get(name) != own.get(name):
                    raise StoreError(f"{run.path} and {remote.address} have the same settings but another {name}")
            there = remote.read(f"{RUN}{place}/{RUN_FILE}")
            return place, hashlib.sha256(there).hexdigest()
    ids = [run.id, *(run_id(run.model, run.hash, length) for length in (8, 16, 64))]
    place = next(one for one in ids if one not in known)
    known[place] = json.loads(mine)
    uploads.last.append(Upload(f"{RUN}{place}/{RUN_FILE}", mine, len(mine)))
    uploads.runs += 1
    return place, hashlib.sha256(mine).hexdigest()


def _shard(
    shard: ShardInfo, run: Run, folder: str, run_sha256: str, remote: Remote, uploads: Uploads, replaced: set[str]
) -> None:
    parent = folder.rpartition("/")[0]
    if f"{folder}/{MANIFEST}" in remote.files or folder in replaced:
        uploads.there += 1
        return
    problems = shard_problems(shard.path, run, deep=False)
    if problems:
        raise StoreError(f"{problems[0]}: run `layercache verify --deep --repair`, then push again")
    for name, info in shard.files.items():
        there = remote.files.get(f"{folder}/{name}")
        if there is None or (there.size, there.sha256) != (info.bytes, info.sha256):
            uploads.data.append(Upload(f"{folder}/{name}", shard.path / name, info.bytes, info.sha256))
        uploads.rows += info.rows
    content = manifest.of_run(shard, run_sha256)
    uploads.last.append(Upload(f"{folder}/{MANIFEST}", content, len(content)))
    uploads.shards += 1
    replaced.update(f"{parent}/{SHARD}{name}" for name in shard.replaces)


def _named(path: Path, name: str, where: list[Upload], remote: Remote, uploads: Uploads) -> None:
    """Add a file whose name says its content."""
    if name not in remote.files:
        where.append(Upload(name, path, path.stat().st_size))
        uploads.files += 1


def _results(store: Path, renamed: set[str], remote: Remote, uploads: Uploads) -> None:
    for info in results.listing(store):
        if renamed & {name.partition("/")[0] for name in info.inputs}:
            uploads.notes.append(f"{info.path.name} left out: its run is called otherwise there")
            continue
        folder = f"{RESULTS}/{info.path.name}"
        if f"{folder}/{MANIFEST}" not in remote.files:
            # The manifest last, should a commit end in between.
            paths = sorted(info.path.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
            uploads.last += [Upload(f"{folder}/{path.name}", path, path.stat().st_size) for path in paths]
            uploads.results += 1


def page(remote: Remote, uploads: Uploads, known: dict[str, dict[str, Any]], replaced: set[str]) -> bytes | None:
    """Return the repository's README.md as it is to be; None where it is so already."""
    there = remote.read("README.md") if "README.md" in remote.files else b""
    paths = {*filter(known_paths.is_known, remote.files), *(one.path for one in (*uploads.data, *uploads.last))}
    wanted = card.write(there.decode("utf-8", "replace"), remote.address, paths, known, replaced).encode()
    return None if wanted == there else wanted
