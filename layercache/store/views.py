"""The SQL views over a store, as text: every one exists, whatever the store holds.

A view reads the exact files that manifests name, with one `read_parquet` a table, and small tables that
live in manifests are JSON literals (m: 1,000 shards open in 0.2 s).
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from layercache.store import numbers
from layercache.store.holdings import SAMPLES
from layercache.store.layout import Run, ShardInfo, place
from layercache.store.reader import Store
from layercache.store.row_views import labels_view, rows_view
from layercache.store.schema import RESULTS, SAMPLE_SCORES, TABLES, Column
from layercache.store.sqltext import CONDITION, RUN, SHARD, empty_table, from_files, identifier, json_table

_TEXT, _INTEGER, _BIGINT = pa.string(), pa.int32(), pa.int64()
_OPENING = (Column("run", _TEXT, False, "the run"), Column("condition", _TEXT, False, "the condition"))
_SHARD = Column("shard", _TEXT, False, "the shard's name")
_RUNS = (
    Column("run", _TEXT, False, "the run's id"),
    Column("model", _TEXT, False, "the model's name"),
    Column("hash", _TEXT, False, "sha256 of the spec"),
    Column("width", _INTEGER, False, "elements of a state"),
    Column("n_layers", _INTEGER, False, "layers there are, the embedding output included"),
    Column("final_layer", _INTEGER, False, "the layer after the last block"),
    Column("spec", _TEXT, False, "everything that changes a captured number, JSON"),
)
_SHARDS = (
    *_OPENING,
    _SHARD,
    Column("n_samples", _BIGINT, False, "samples it holds"),
    Column("bytes", _BIGINT, False, "size of its files"),
    Column("outputs", pa.list_(_TEXT), False, "names of the outputs it holds"),
    Column("created", _TEXT, True, "when it was written"),
    Column("host", _TEXT, True, "the machine"),
    Column("device", _TEXT, True, "the device the model ran on"),
    Column("provenance", _TEXT, False, "what the manifest says of how it was made, JSON"),
)
_LAYERS = (
    Column("run", _TEXT, False, "the run"),
    Column("layer", _INTEGER, False, "the layer"),
    Column("name", _TEXT, False, "what the model calls the module"),
)


class _Part(NamedTuple):
    """What a store holds of a run under one condition: the shards that count."""

    run: Run
    condition: str
    shards: list[ShardInfo]


def names(store: Store) -> tuple[str, ...]:
    """Return the names of a store's views: `VIEWS`, and of runs of several widths a typed `hidden_<run>` each.

    Raises:
        StoreError: a `run.json` is damaged.
    """
    return (*VIEWS, *_typed(store))


def definitions(store: Store, names: Iterable[str]) -> dict[str, str]:
    """Return the SELECT behind each of the named views.

    Raises:
        StoreError: a manifest, a `run.json` or a rows file is damaged.
    """
    wanted = list(names)
    typed = _typed(store) if any(name not in _BUILDERS for name in wanted) else {}
    builders = {name: _BUILDERS[name] if name in _BUILDERS else _table("hidden", typed[name]) for name in wanted}
    return {name: build(store) for name, build in builders.items()}


def _typed(store: Store) -> dict[str, Run]:
    """Return the views `hidden_<run>`, whose vectors are of fixed size where those of `hidden` cannot be."""
    runs = store.runs()
    found: dict[str, Run] = {}
    if len({run.width for run in runs}) > 1:
        for run in runs:
            name = "hidden_" + re.sub(r"[^a-z0-9]", "_", run.id.lower())
            while name in found:
                name += "_"
            found[name] = run
    return found


def _parts(store: Store, only: Run | None = None) -> list[_Part]:
    return [
        _Part(run, condition, store.shards(run, condition))
        for run in (store.runs() if only is None else [only])
        for condition in store.conditions(run)
    ]


def _runs(store: Store) -> str:
    rows = [
        {
            "run": run.id,
            "model": run.model,
            "hash": run.hash,
            "width": run.width,
            "n_layers": len(run.layers),
            "final_layer": run.final_layer,
            "spec": json.dumps(run.spec, ensure_ascii=False, sort_keys=True),
        }
        for run in store.runs()
    ]
    return json_table(_RUNS, rows)


def _shards(store: Store) -> str:
    rows = [
        {
            "run": part.run.id,
            "condition": part.condition,
            "shard": shard.name,
            "n_samples": shard.n_samples,
            "bytes": sum(file.bytes for file in shard.files.values()),
            "outputs": list(shard.outputs),
            **{name: _text_or_none(shard.provenance.get(name)) for name in ("created", "host", "device")},
            "provenance": json.dumps(shard.provenance, ensure_ascii=False, sort_keys=True),
        }
        for part in _parts(store)
        for shard in part.shards
    ]
    return json_table(_SHARDS, rows)


def _text_or_none(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _layers(store: Store) -> str:
    return json_table(_LAYERS, [{"run": run.id, **layer._asdict()} for run in store.runs() for layer in run.layers])


def _table(table: str, run: Run | None = None) -> Callable[[Store], str]:
    """Return the builder of the view of one of a shard's tables, of one run or all."""

    def build(store: Store) -> str:
        parts = _parts(store, run)
        columns = TABLES[table].columns
        types = {"vector": _vector_type(parts)} if table == "hidden" else {}
        held = _held(parts, table)
        if not held:
            return empty_table((*_OPENING, *columns), types)
        names = ", ".join(_column(column.name, types) for column in columns)
        counts = _what_counts(table, _excluded(store, parts, table))
        return f"SELECT run, condition, {names} FROM ({held}){counts}"

    return build


def _choices(store: Store) -> str:
    """Return the view of the scores of answers: a line a sample, layer and answer."""
    lens = TABLES["lens"].columns
    keys = [column for column in lens if column.name in {"sample_id", "output", "layer", "position_name"}]
    names = ", ".join(column.name for column in (*_OPENING, *keys))
    return (
        f"SELECT {names}, line.choice, line.first_logprob, line.logprob"
        f" FROM (SELECT {names}, unnest(choices) AS line FROM ({_table('lens')(store)}))"
    )


def _column(name: str, types: dict[str, str]) -> str:
    quoted = identifier(name)
    return f"CAST({quoted} AS {types[name]}) AS {quoted}" if name in types else quoted


def _held(parts: Iterable[_Part], table: str) -> str:
    """Return the SELECT of everything in the files of a table's shards, with whose it is; empty where there are none.

    Files that may lack a column which was added later all have to be opened before a query begins, so that is done
    only of shards with an output that has values there.
    """
    columns = TABLES[table].columns
    added = [column for column in columns if column.added]
    plain: list[Path] = []
    differ: list[Path] = []
    for part in parts:
        for shard in part.shards:
            if (path := shard.file(table)) is not None:
                newer = any(re.fullmatch(column.added, name) for column in added for name in shard.outputs)
                (differ if newer else plain).append(path)
    names = ", ".join(identifier(column.name) for column in columns if not column.added)
    opening = f"SELECT {RUN} AS run, {CONDITION} AS condition, {SHARD} AS shard"
    selects = [f"{opening}, {names} FROM {from_files(plain)}"] if plain else []
    selects += [f"{opening}, * FROM {from_files(differ, differ=True)}"] if differ else []
    # The columns that were added, should none of the files have them.
    return " UNION ALL BY NAME ".join([*selects, *([empty_table(added)] if selects and added else [])])


def _vector_type(parts: Iterable[_Part]) -> str:
    """Return the type of a state: of fixed size where the store holds states of one width.

    A column has one type and there is none that holds arrays of different sizes, so with several widths
    the states are lists, which the macros take as well; then there is a view of each run, too.
    """
    widths = {part.run.width for part in parts for shard in part.shards if shard.file("hidden") is not None}
    return f"FLOAT[{widths.pop()}]" if len(widths) == 1 else "FLOAT[]"


class _Excluded(NamedTuple):
    """Rows that do not count: those of a shard's samples that have one of the `keys`' values."""

    whose: dict[str, str]
    """The run, the condition and the shard."""
    sample_ids: list[str]
    keys: list[dict[str, Any]]


def _excluded(store: Store, parts: Iterable[_Part], table: str) -> list[_Excluded]:
    """List the rows of a table that do not count because a shard with a smaller name holds them."""
    layered = any(column.name == "layer" for column in TABLES[table].columns)
    found = []
    for part in parts:
        every = [layer.layer for layer in part.run.layers]
        for shard, outputs, sample_ids in store.overlaps(part.run, part.condition, part.shards):
            keys: list[dict[str, Any]] = []
            for output, layers in outputs.items():
                where = place(output)
                if where is not None and where.table == table:
                    numbers = every if layers is None else layers
                    keys += [{**where.where, "layer": n} for n in numbers] if layered else [dict(where.where)]
            if keys:
                whose = {"run": part.run.id, "condition": part.condition, "shard": shard}
                found.append(_Excluded(whose, sample_ids, keys))
    return found


def _what_counts(table: str, excluded: list[_Excluded]) -> str:
    """Return the join that drops excluded rows; empty where there are none, the usual case.

    A join rather than NOT EXISTS, past which DuckDB does not push a filter on the layer.
    """
    if not excluded:
        return ""
    columns = {column.name: column for column in TABLES[table].columns}
    keys = sorted(excluded[0].keys[0])
    entry = Column("entry", _INTEGER, False, "number of the exclusion")
    samples = [
        {"entry": n, **rows.whose, "sample_id": name} for n, rows in enumerate(excluded) for name in rows.sample_ids
    ]
    values = [{"entry": n, **value} for n, rows in enumerate(excluded) for value in rows.keys]
    by = ", ".join(("run", "condition", "shard", "sample_id", *keys))
    return (
        f" ANTI JOIN (SELECT {by} FROM ({json_table((entry, *_OPENING, _SHARD, columns['sample_id']), samples)})"
        f" JOIN ({json_table((entry, *(columns[key] for key in keys)), values)}) USING (entry)) USING ({by})"
    )


def _samples(store: Store) -> str:
    """Return the view of samples: a line a sample, with what is absent from any of its shards."""
    parts = _parts(store)
    columns = TABLES[SAMPLES].columns
    held = _held(parts, SAMPLES)
    if not held:
        return empty_table((*_OPENING, *columns))
    names = [column.name for column in columns]
    if not any(store.overlaps(part.run, part.condition, part.shards) for part in parts):
        return f"SELECT run, condition, {', '.join(names)} FROM ({held})"
    chosen = {name: f"first({name} ORDER BY shard) AS {name}" for name in names}
    chosen["sample_id"] = "sample_id"
    chosen["absent"] = "list_sort(list_distinct(flatten(list(absent)))) AS absent"
    return f"SELECT run, condition, {', '.join(chosen.values())} FROM ({held}) GROUP BY run, condition, sample_id"


def _of_results(table: str, columns: tuple[Column, ...]) -> Callable[[Store], str]:
    """Return the builder of a view over results; where two analyses gave the same numbers, the newer one's count."""

    def build(store: Store) -> str:
        found = numbers.tables(store.path, table)
        names = ", ".join(identifier(column.name) for column in columns)
        kinds = [info.analysis for info, _ in found]
        if len(set(kinds)) == len(kinds):
            return f"SELECT {names} FROM {from_files([path for _, path in found])}" if found else empty_table(columns)
        key = ", ".join(identifier(column.name) for column in columns if column.name not in numbers.NUMBERS)
        aged = (f"SELECT {names}, {age} AS age FROM {from_files([path])}" for age, (_, path) in enumerate(found))
        return f"SELECT {names} FROM ({' UNION ALL '.join(aged)}) QUALIFY age = min(age) OVER (PARTITION BY {key})"

    return build


_BUILDERS: dict[str, Callable[[Store], str]] = {
    "runs": _runs,
    "shards": _shards,
    "rows": rows_view,
    "labels": labels_view,
    "samples": _samples,
    "layers": _layers,
    **{table: _table(table) for table in TABLES if table != SAMPLES},
    "choices": _choices,
    "results": _of_results("results", RESULTS),
    "sample_scores": _of_results("sample_scores", SAMPLE_SCORES),
}

VIEWS: tuple[str, ...] = tuple(_BUILDERS)
"""The views that there are in every store."""
