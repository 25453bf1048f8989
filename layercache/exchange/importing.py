"""States that somebody already has, as a run of a store: probes, SQL and the report read it like any other.

    import_states([Path("states.npy")], store, Source(model="llama", data=DataSpec(...)), Asked(layers=[0, 4], ...))

The run's identity is the content of the files and which line is which prompt, so the same import again writes
nothing, and a new label is a new rows file.
"""

import hashlib
import platform
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from layercache import __version__, dataset
from layercache.errors import DataError, RecipeError
from layercache.exchange import found as finding
from layercache.exchange.found import Asked, Found
from layercache.outputs import WHOLE_PROMPT
from layercache.progress import Patient, Progress, in_bytes
from layercache.recipe import DataSpec, Label
from layercache.rows import row_frame
from layercache.store import reader, writer
from layercache.store.layout import Run, digest
from layercache.store.precision import MANTISSA_BITS, round_mantissa
from layercache.store.schema import CAPTURE_SCHEMA

SHARD_BYTES = 256 * 2**20
"""States of a shard that is written, about."""
_CHUNK = 16 * 2**20
_SAME = 0.01
"""Largest relative difference of two states of one prompt: what re-batching in bfloat16 makes."""


@dataclass(frozen=True)
class Source:
    """Where the states come from: whose they are, and of which prompts."""

    model: str | None = None
    """The model's name; an export of ours knows it."""
    data: DataSpec | None = None
    """Prompts and labels, aligned by row order or by `id_column`."""
    id_column: str | None = None
    final_layer: int | None = None
    """The layer after the last block, where it is not the last one imported."""
    precision: int = MANTISSA_BITS
    """Mantissa bits kept; all by default."""
    allow_nonfinite: bool = False


@dataclass
class Imported:
    """What an import did."""

    run: str
    rows: int
    samples: int
    new_samples: int
    arrays: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = f"{self.new_samples:,} written" if self.new_samples else "nothing new"
        head = f"{self.run}: {self.samples:,} samples, {len(self.arrays)} arrays of states, {done}"
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Lines:
    """Which sample every line of states is, and the rows that refer to them."""

    ids: list[str]
    prompts: list[str]
    frame: pl.DataFrame | None
    rows: dict[str, Any]
    """Keyword arguments of `put_rows`."""
    template: str | None
    notes: list[str]


def import_states(
    paths: Sequence[Path], store: Path, source: Source, asked: Asked, progress: Progress | None = None
) -> Imported:
    """Store the states of files as a run.

    Args:
        paths: `.npy`, `.npz` or `.safetensors` files, or a folder: of them, of vLLM's, or an export of ours.
        store: the store's directory.
        source: whose states they are, and of which prompts.
        asked: what the files hold, where they do not say it themselves.
        progress: where to report.

    Raises:
        DataError: the files are damaged or unclear, or do not fit the data.
        StoreError: the store cannot be written, or a state is not finite.
        RecipeError: the model has no name.
    """
    writer.check_writable(store)
    found = finding.find(paths, asked)
    model = source.model or (found.about or {}).get("model")
    if not model:
        raise RecipeError("say whose states they are: --model NAME")
    lines = _lines(found, source)
    first = _first_lines(found, lines)
    progress = progress or Progress()
    run = _run(store, str(model), found, lines, source, progress)
    if lines.frame is not None:
        try:
            writer.put_rows(run, lines.frame, **lines.rows)
        except ValueError as error:
            raise DataError(f"the rows cannot be stored ({error}): export them again") from error
    missing = {one for _, ids in reader.open(store).held(run).missing(first, _outputs(found)) for one in ids}
    with progress.task("import", len(missing)) as task:
        for start, stop in _chunks(found):
            wanted = [line for one, line in first.items() if start <= line < stop and one in missing]
            if wanted:
                _publish(run, found, lines, source, start, stop, wanted)
                task.advance(len(wanted))
    rows = found.n if lines.frame is None else len(lines.frame)
    return Imported(run.id, rows, len(first), len(missing), [str(place) for place in found.places], lines.notes)


def _lines(found: Found, source: Source) -> _Lines:
    if found.about is not None and found.rows is not None:
        if source.data is not None or source.id_column is not None:
            raise DataError("an export brings its own rows: leave out --data and --id")
        return _exported_lines(found.about, found.rows)
    if source.data is None:
        if source.id_column is not None:
            raise DataError("--id names a column of --data: give the data, too")
        return _Lines(_sample_ids(found, [""] * found.n), [""] * found.n, None, {}, None, [])
    data = dataset.load(source.data)
    of_row = _aligned(found, data, source.id_column)
    prompts = [""] * found.n
    for row, line in enumerate(of_row):
        if line is not None:
            prompts[line] = data.prompts[row].text
    ids = _sample_ids(found, prompts)
    frame, columns = row_frame(data, [None if line is None else ids[line] for line in of_row])
    lost = of_row.count(None)
    notes = [*data.notes, *([f"{lost:,} of {len(of_row):,} rows have no state"] if lost else [])]
    unused = found.n - len({line for line in of_row if line is not None})
    notes += [f"{unused:,} of {found.n:,} states belong to no row"] if unused else []
    return _Lines(ids, prompts, frame, {**columns, "data": data.name, "source": data.source}, data.template, notes)


def _exported_lines(about: dict[str, Any], rows: pl.DataFrame) -> _Lines:
    try:
        prompts = rows[about["prompt"]].fill_null("").to_list()
        ids = rows["sample_id"].cast(pl.String, strict=True).to_list()
        if None in ids:
            raise TypeError("a row without a sample")
        kept = about["data"]
        if kept is None:
            return _Lines(ids, prompts, None, {}, about["spec"].get("template"), [])
        labels = [Label(str(one["name"]), str(one["kind"])) for one in kept["labels"]]
        named = {key: kept[key] for key in ("source", "split", "group_by", "target")}
        frame = rows.drop(about["prompt"])
        return _Lines(
            ids, prompts, frame, {"data": kept["name"], "labels": labels, **named}, about["spec"].get("template"), []
        )
    except (KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the export's description is damaged ({error!r}): export it again") from error


def _aligned(found: Found, data: dataset.Dataset, id_column: str | None) -> list[int | None]:
    """Return every row's line of states: by order, or by what the row and the line are called."""
    n = len(data.prompts)
    if id_column is None:
        if n != found.n:
            raise DataError(
                f"{data.source} has {n:,} rows, the files hold {found.n:,} states: align them by a column with --id"
            )
        return list(range(n))
    if id_column not in data.frame.columns:
        raise DataError(
            f"--id names a column {id_column!r} that is not there: there are {', '.join(data.frame.columns)}"
        )
    if found.ids is None:
        raise DataError("the files do not name their lines (an array called ids): leave out --id to align by row order")
    line = {name: index for index, name in enumerate(found.ids)}
    if len(line) < found.n:
        raise DataError("two lines of the files have the same id")
    wanted = [None if value is None else line.get(str(value)) for value in data.frame[id_column].to_list()]
    if not any(one is not None for one in wanted):
        raise DataError(f"no value of {id_column!r} names a line of the files, such as {found.ids[0]!r}")
    return wanted


def _sample_ids(found: Found, prompts: Sequence[str]) -> list[str]:
    """Return the samples' ids: of the tokens, as in any run, where they are known, else of the prompt or the line."""
    if found.tokens is not None:
        spans = [[[WHOLE_PROMPT, 0, len(tokens)]] for tokens in found.tokens]
        values: list[Any] = [{"tokens": t, "spans": s, "target": None} for t, s in zip(found.tokens, spans)]
    else:
        values = [{"prompt": text} if text else {"line": line} for line, text in enumerate(prompts)]
    return [digest(value)[:24] for value in values]


def _first_lines(found: Found, lines: _Lines) -> dict[str, int]:
    """Return every sample's first line; a prompt that comes again must have the same states.

    Raises:
        DataError: it has others.
    """
    first: dict[str, int] = {}
    for line, one in enumerate(lines.ids):
        if first.setdefault(one, line) != line:
            before = first[one]
            for a, b in zip(found.read(before, before + 1), found.read(line, line + 1)):
                # Written so that NaN passes: whether it may be there is the writer's question.
                if np.linalg.norm(a - b) > _SAME * np.linalg.norm(a):
                    raise DataError(
                        f"lines {before + 1} and {line + 1} have the same prompt and different states:"
                        " name a further field in --prompt, so that the prompts differ"
                    )
    return first


def _run(store: Path, model: str, found: Found, lines: _Lines, source: Source, progress: Progress) -> Run:
    about = found.about or {}
    numbers = sorted({place.layer for place in found.places})
    layers = [(int(one["layer"]), str(one["name"])) for one in about.get("layers", [])]
    spec = {
        "capture_schema": CAPTURE_SCHEMA,
        "imported": {
            "files": digest(sorted(_hashes(found.files, progress))),
            "lines": digest(lines.ids),
            "arrays": [str(place) for place in found.places],
            "precision": source.precision,
            "from_run": about.get("hash"),
        },
        "template": lines.template,
    }
    final = source.final_layer if source.final_layer is not None else int(about.get("final_layer", numbers[-1]))
    return writer.open_run(
        store,
        spec,
        model=model,
        layers=layers or [(number, f"layer{number}") for number in numbers],
        width=found.width,
        final_layer=final,
    )


def _hashes(files: Sequence[Path], progress: Progress) -> list[str]:
    """Return the sha256 of each file, in hex."""
    hashes = []
    with in_bytes(Patient(progress), "read", sum(path.stat().st_size for path in files)) as read:
        for path in files:
            sha256 = hashlib.sha256()
            with path.open("rb") as file:
                while data := file.read(_CHUNK):
                    sha256.update(data)
                    read(len(data))
            hashes.append(sha256.hexdigest())
    return hashes


def _outputs(found: Found) -> dict[str, list[int] | None]:
    outputs: dict[str, list[int] | None] = {}
    for place in found.places:
        name = f"hidden:{place.site}:{place.pooling}"
        outputs[name] = sorted([*(outputs.get(name) or []), place.layer])
    return outputs


def _chunks(found: Found) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of the lines of every shard."""
    step = max(1, SHARD_BYTES // (4 * found.width * len(found.places)))
    for start in range(0, found.n, step):
        yield start, min(start + step, found.n)


def _publish(
    run: Run, found: Found, lines: _Lines, source: Source, start: int, stop: int, wanted: Sequence[int]
) -> None:
    """Write one shard: the wanted ones of lines [start, stop)."""
    ids = [lines.ids[line] for line in wanted]
    lengths = [0 if found.tokens is None else len(found.tokens[line]) for line in wanted]
    provenance = {
        "layercache": __version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "imported": [path.name for path in found.files[:100]],
        "precision": source.precision,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    shard = writer.Shard(run, _outputs(found), provenance=provenance, allow_nonfinite=source.allow_nonfinite)
    shard.add(
        "samples",
        {
            "sample_id": ids,
            "prompt": [lines.prompts[line] for line in wanted],
            "n_tokens": lengths,
            "n_special": [0] * len(ids),
            "n_truncated": [0] * len(ids),
            "spans": [[{"name": WHOLE_PROMPT, "start": 0, "end": n}] if n else [] for n in lengths],
            "absent": [[]] * len(ids),
        },
    )
    inside = np.array(wanted) - start
    for place, states in zip(found.places, found.read(start, stop), strict=True):
        columns = {"site": place.site, "pooling": place.pooling, "layer": place.layer}
        each: dict[str, Any] = {name: [value] * len(ids) for name, value in columns.items()}
        shard.add("hidden", {"sample_id": ids, **each, "vector": round_mantissa(states[inside], source.precision)})
    shard.publish()
