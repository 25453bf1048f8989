"""The head kept beside a run: its final norm, projection, unembedding and vocabulary, in one safetensors file.

The file's name ends in its sha256. It is written once; should two writers have written different ones, the
smaller name counts.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layercache.errors import StoreError
from layercache.head import Head, Linear, Norm
from layercache.store import tensors
from layercache.store.files import sha256 as file_sha256
from layercache.store.layout import BESIDE_RUN, Run, canonical_json, check_format, first_line
from layercache.store.publish import check_not_frozen, one_line_errors, place_file, staging, sync
from layercache.store.schema import FORMAT, READER
from layercache.store.shard_checks import Problem
from layercache.store.tensors import Tensors

_METADATA = "layercache"

_KINDS = ("rms", "layer")


def find(run: Run) -> Path | None:
    """Return the file of a run's head, or None where it has none."""
    return min((path for path in run.path.glob("head-*.safetensors") if BESIDE_RUN.fullmatch(path.name)), default=None)


def write(run: Run, head: Head) -> Path:
    """Keep a head beside a run, unless there is one already.

    Returns:
        The file.

    Raises:
        StoreError: the store is frozen or cannot be written.
    """
    there = find(run)
    if there is not None:
        return there
    check_not_frozen(run.store)
    numbers = _parts(head) | _of_strings("texts", head.texts) | _of_strings("pieces", head.pieces)
    with one_line_errors(run.path), staging(run.store) as folder:
        sha256 = tensors.write(folder / "head", numbers, {_METADATA: _metadata(run, head).decode()})
        sync(folder / "head")
        final = run.path / f"head-{sha256[:16]}.safetensors"
        place_file(folder / "head", final)
    return final


def read(run: Run) -> Head:
    """Read a run's head; the unembedding stays in the file and is read where it is used.

    Raises:
        StoreError: the run has none, or the file is damaged, of another run, or in a newer format.
    """
    path = find(run)
    if path is None:
        raise StoreError(
            f"run {run.id} is stored without its head: give the same extract command again with --save-head"
            " (a recipe: --set extract.save_head=true), which runs no forward pass"
        )
    return _read(path, run)


def describe(run: Run) -> dict[str, Any] | None:
    """Return what is worth saying of a run's head, or None where it has none."""
    path = find(run)
    if path is None:
        return None
    head = _read(path, run)
    norm = None if head.norm is None else f"{head.norm.kind}, eps {head.norm.eps:g}"
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "norm": norm,
        "vocabulary": head.vocabulary,
        "softcap": head.softcap,
        "scale": head.scale,
    }


def problems(run: Run, *, deep: bool) -> Iterator[Problem]:
    """Check a run's head; `deep` also every byte."""
    for path in sorted(run.path.glob("head-*")):
        try:
            if not BESIDE_RUN.fullmatch(path.name):
                yield Problem(path, "is not the name of a head: delete it")
            elif deep and not path.stem.endswith(file_sha256(path)[:16]):
                yield Problem(path, "its sha256 is not the one in its name: delete it and save the head again")
            else:
                _read(path, run)
        except (StoreError, OSError) as error:
            yield Problem(path, first_line(error))


def _metadata(run: Run, head: Head) -> bytes:
    norm = head.norm
    said = None if norm is None else {"kind": norm.kind, "eps": norm.eps, "add_one": norm.add_one}
    value = {
        "format": FORMAT,
        "reader": READER,
        "run": run.hash,
        "norm": said,
        "softcap": head.softcap,
        "scale": head.scale,
    }
    return canonical_json(value)


def _parts(head: Head) -> Tensors:
    """Return the numbers that there are, by name."""
    parts: dict[str, np.ndarray | None] = {}
    if head.norm is not None:
        parts |= {"norm.weight": head.norm.weight, "norm.bias": head.norm.bias}
    if head.projection is not None:
        parts |= {"projection.weight": head.projection.weight, "projection.bias": head.projection.bias}
    parts |= {"unembedding.weight": head.unembedding.weight, "unembedding.bias": head.unembedding.bias}
    return {name: values for name, values in parts.items() if values is not None}


def _of_strings(name: str, strings: pa.Array) -> Tensors:
    encoded = [text.encode() for text in strings.to_pylist()]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return {f"{name}.utf8": np.frombuffer(b"".join(encoded), np.uint8), f"{name}.offsets": offsets}


def _strings(found: Tensors, name: str) -> pa.Array:
    offsets, utf8 = found[f"{name}.offsets"], found[f"{name}.utf8"]
    strings = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(utf8))
    strings.validate(full=True)
    return strings


def _read(path: Path, run: Run) -> Head:
    found, metadata = tensors.read(path)
    try:
        value = json.loads(metadata[_METADATA])
        check_format(path, value)
        if value["run"] != run.hash:
            raise StoreError(f"{path} belongs to another run than {run.id}: delete it and save the head again")
        head = Head(
            norm=_norm(found, value["norm"]),
            projection=_linear(found, "projection") if "projection.weight" in found else None,
            unembedding=_linear(found, "unembedding"),
            softcap=None if value["softcap"] is None else float(value["softcap"]),
            scale=float(value["scale"]),
            texts=_strings(found, "texts"),
            pieces=_strings(found, "pieces"),
        )
        _check(head, run)
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise StoreError(f"{path} is malformed ({error!r}): delete it and save the head again") from error
    return head


def _norm(found: Tensors, said: dict[str, Any] | None) -> Norm | None:
    if said is None:
        return None
    if said["kind"] not in _KINDS:
        raise ValueError(f"norm {said['kind']!r}")
    return Norm(
        said["kind"], float(said["eps"]), found.get("norm.weight"), found.get("norm.bias"), bool(said["add_one"])
    )


def _linear(found: Tensors, name: str) -> Linear:
    return Linear(found[f"{name}.weight"], found.get(f"{name}.bias"))


def _check(head: Head, run: Run) -> None:
    """Refuse parts that do not fit each other or the run."""
    inner = head.width if head.projection is None else len(head.projection.weight)
    expected = {
        "norm.weight": (run.width,),
        "norm.bias": (run.width,),
        "projection.weight": (inner, run.width),
        "projection.bias": (inner,),
        "unembedding.weight": (head.vocabulary, inner),
        "unembedding.bias": (head.vocabulary,),
    }
    wrong = [name for name, values in _parts(head).items() if values.shape != expected[name]]
    if wrong or head.width != run.width:
        raise ValueError(f"{', '.join(wrong) or 'width'} does not fit the rest")
    if len(head.texts) != head.vocabulary or len(head.pieces) != head.vocabulary:
        raise ValueError("its vocabulary is not that of its unembedding")
