"""A shard's manifest: what is written when the shard is published, and what is believed when it is read."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from layercache.errors import StoreError
from layercache.store.layout import CONDITION, MANIFEST, SHARD, FileInfo, Run, ShardInfo, read_json, refuse_link
from layercache.store.schema import FORMAT, READER

_PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\.parquet")
MEND = "`layercache verify --repair` moves the shard aside and the next `extract` makes it again"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def encode(run: Run, shard: ShardInfo) -> bytes:
    """Return the bytes of a manifest; its last field is the sha256 of these bytes with that field empty."""
    value = {
        "format": FORMAT,
        "reader": READER,
        "run": run.hash,
        "condition": shard.condition,
        "outputs": shard.outputs,
        "samples": {"count": shard.n_samples, "sha256": shard.samples_sha256},
        "files": {name: info._asdict() for name, info in shard.files.items()},
        "allow_nonfinite": shard.allow_nonfinite,
        "provenance": shard.provenance,
        "replaces": shard.replaces,
        "run_sha256": shard.run_sha256,
        "sha256": "",
    }
    return seal(value)


def seal(value: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest whose last field is the empty `sha256`, with the hash in it."""
    empty = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    head, field, tail = empty.rpartition(b'"sha256": ""')
    return head + field[:-1] + hashlib.sha256(empty).hexdigest().encode() + field[-1:] + tail


def of_run(shard: ShardInfo, run_sha256: str) -> bytes:
    """Return the bytes of a shard's manifest beside a `run.json` of that sha256: its own, where it is that one."""
    if shard.run_sha256 == run_sha256:
        return (shard.path / MANIFEST).read_bytes()
    # The model goes by another name there, and so its `run.json` has other bytes.
    value = {**read_json(shard.path / MANIFEST), "run_sha256": run_sha256}
    value.pop("sha256")
    return seal({**value, "sha256": ""})


def own_hash_is_right(data: bytes) -> bool:
    """Tell whether the last `sha256` of a manifest is that of its bytes with that field empty."""
    head, found, tail = data.rpartition(b'"sha256": "')
    stated, _, rest = tail.partition(b'"')
    return bool(found) and hashlib.sha256(head + found + b'"' + rest).hexdigest().encode() == stated


def read(path: Path, run: Run) -> ShardInfo:
    """Read and check the manifest of the shard directory `path`.

    Raises:
        StoreError: unreadable, of a newer format, of another run, malformed, or naming a
            file that is not a plain Parquet file beside it (an absolute path, `..`, a folder, a link).
    """
    # Strings, not paths: a store may have ten thousand shards, and a path costs more to make than to look at.
    folder = os.fspath(path)
    refuse_link(os.path.dirname(folder))
    refuse_link(folder)
    file = f"{folder}/{MANIFEST}"
    value = read_json(file)
    if value.get("run") != run.hash:
        raise StoreError(f"{file} belongs to another run than {run.id}: run `layercache verify`")
    try:
        shard = _shard(path, value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{file} is malformed ({error!r}): run `layercache verify`") from error
    for name in shard.files:
        refuse_link(f"{folder}/{name}")
    return shard


def check_sizes(shard: ShardInfo) -> None:
    """Refuse a shard of which a file is missing, cut short, or a link to somewhere else.

    Raises:
        StoreError: names the file and says what to do.
    """
    folder = os.fspath(shard.path)
    for name, info in shard.files.items():
        path = f"{folder}/{name}"
        try:
            found = os.lstat(path)
        except OSError as error:
            raise StoreError(f"{path} is missing: {MEND}") from error
        if stat.S_ISLNK(found.st_mode):
            raise StoreError(f"{path} is a symbolic link, which a store may not hold: {MEND}")
        if found.st_size != info.bytes:
            raise StoreError(f"{path} is damaged ({found.st_size} bytes, not {info.bytes}): {MEND}")


def _shard(path: Path, value: dict[str, Any]) -> ShardInfo:
    condition = path.parent.name.removeprefix(CONDITION)
    if value["condition"] != condition:
        raise ValueError(f"condition {value['condition']!r} in the folder of {condition!r}")
    return ShardInfo(
        name=path.name.removeprefix(SHARD),
        path=path,
        condition=condition,
        outputs={str(name): _layers(layers) for name, layers in value["outputs"].items()},
        n_samples=_count(value["samples"]["count"]),
        samples_sha256=_hash(value["samples"]["sha256"]),
        files=_files(value["files"]),
        provenance=dict(value["provenance"]),
        allow_nonfinite=bool(value["allow_nonfinite"]),
        replaces=[str(name) for name in value["replaces"]],
        run_sha256=_hash(value["run_sha256"]),
        sha256=_hash(value["sha256"]),
    )


def _files(value: dict[str, Any]) -> dict[str, FileInfo]:
    for name in value:
        if not _PLAIN_FILE.fullmatch(name):
            raise ValueError(f"file name {name!r}")
    if "samples.parquet" not in value:
        raise ValueError("no samples.parquet")
    return {name: FileInfo(_count(f["bytes"]), _count(f["rows"]), _hash(f["sha256"])) for name, f in value.items()}


def _layers(value: Any) -> list[int] | None:
    if value is None:
        return None
    # What is usual in one go; else one by one, for the message.
    usual = isinstance(value, list) and {type(layer) for layer in value} <= {int} and min(value, default=0) >= 0
    return value if usual else [_count(layer) for layer in value]


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is not a sha256")
    return value
