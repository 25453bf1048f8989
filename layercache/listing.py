"""What a store holds, in words: the tables behind `layercache ls` and `layercache show`."""

from typing import Any

import pyarrow as pa

from layercache.outputs import TOKENS
from layercache.store.layout import Run, ShardInfo
from layercache.store.reader import Store


def runs(store: Store) -> pa.Table:
    """Return one row a run: id, model, data sets, samples, layers, conditions, outputs, shards, bytes."""
    columns = ("run", "model", "data", "samples", "layers", "conditions", "outputs", "shards", "bytes")
    rows = [dict(zip(columns, _summary(store, run))) for run in store.runs()]
    return pa.table({name: [row[name] for row in rows] for name in columns})


def _summary(store: Store, run: Run) -> tuple[Any, ...]:
    conditions = store.conditions(run)
    shards = [shard for name in conditions for shard in store.shards(run, name)]
    outputs = {name for shard in shards for name in shard.outputs if name != TOKENS}
    return (
        run.id,
        run.model,
        ", ".join(info.name for info in store.data(run)),
        sum(len(store.samples(run, name)) for name in conditions[:1]),
        len(run.layers),
        ", ".join(conditions),
        len(outputs),
        len(shards),
        _bytes(shards),
    )


def _bytes(shards: list[ShardInfo]) -> int:
    return sum(file.bytes for shard in shards for file in shard.files.values())


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return everything about a run as nested plain values.

    Raises:
        StoreError: no such run.
    """
    run = store.run(name)
    described: dict[str, Any] = {
        "run": run.id,
        "hash": run.hash,
        "model": run.model,
        "width": run.width,
        "layers": {str(one.layer): one.name for one in run.layers},
        "settings": run.spec,
        "data": {info.name: _data(store, run, info) for info in store.data(run)},
    }
    described["conditions"] = {name: _condition(store, run, name) for name in store.conditions(run)}
    return described


def _data(store: Store, run: Run, info: Any) -> dict[str, Any]:
    frame = store.rows(run, info.name)
    labels = {
        label.name: f"{label.kind}, {frame[label.name].drop_nulls().len():,} of {len(frame):,} rows"
        if label.name in frame.columns
        else label.kind
        for label in info.labels
    }
    settings = {"source": info.source, "split": info.split, "group_by": info.group_by, "target": info.target}
    settings["reference"] = ", ".join(info.reference)
    return {"rows": len(frame), "labels": labels, **{key: value for key, value in settings.items() if value}}


def _condition(store: Store, run: Run, condition: str) -> dict[str, Any]:
    shards = store.shards(run, condition)
    held: dict[str, set[int]] = {}
    for shard in shards:
        for output, layers in shard.outputs.items():
            held.setdefault(output, set()).update(layers or [])
    samples = store.samples(run, condition)
    absent: dict[str, int] = {}
    for row in samples["absent"].to_list():
        for one in row:
            key = f"{one['output']}: {one['reason']}"
            absent[key] = absent.get(key, 0) + 1
    return {
        "samples": len(samples),
        "tokens": int(samples["n_tokens"].sum()),
        "truncated": int((samples["n_truncated"] > 0).sum()),
        "shards": len(shards),
        "bytes": _bytes(shards),
        "outputs": {output: sorted(layers) for output, layers in sorted(held.items())},
        "absent": absent,
        "provenance": shards[0].provenance if shards else {},
    }


def as_text(value: Any, indent: int = 0) -> str:
    """Write nested plain values as indented lines, control characters made visible."""
    lines = []
    for key, item in value.items():
        pad = "  " * indent
        if isinstance(item, dict) and item:
            lines.append(f"{pad}{_printable(key)}:")
            lines.append(as_text(item, indent + 1))
        else:
            lines.append(f"{pad}{_printable(key)}: {_printable(_flat(item))}")
    return "\n".join(lines)


def _flat(item: Any) -> Any:
    if isinstance(item, list) and item and all(isinstance(one, int) for one in item) and len(item) > 2:
        whole = item == list(range(item[0], item[-1] + 1))
        return f"layers {item[0]}-{item[-1]}" if whole else f"layers {', '.join(map(str, item))}"
    return "-" if item in (None, {}, []) else item


def _printable(value: Any) -> str:
    """Make terminal escapes in names and templates inert."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))
