"""What a store holds, in words: the tables behind `layercache ls` and `layercache show`."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from layercache import quantities
from layercache.outputs import TOKENS
from layercache.queries import Query
from layercache.store import cleanup, head, reader, results
from layercache.store.layout import CLEAN, QUARANTINE, Run, ShardInfo
from layercache.store.reader import Store


def runs(store: Store) -> pa.Table:
    """Return one row a run: id, model, data sets, samples, prompts, layers, conditions, outputs, shards, bytes, head.

    `prompts` are those that the model answered: of them the answers are kept and no more, their states with the answer are
    `samples`; NULL where no answers were asked for. `bytes` are those of the shards, `head` those of the head that is kept beside the run, NULL where none is.
    """
    rows = [summary(store, run) for run in store.runs()]
    table = pa.table({name: [row[name] for row in rows] for name in _COLUMNS})
    for name in ("prompts", "head"):
        table = table.set_column(_COLUMNS.index(name), name, table[name].cast(pa.int64()))
    return table


_COLUMNS = ["run", "model", "data", "samples", "prompts", "layers", "conditions", "outputs", "shards", "bytes", "head"]


def summary(store: Store, run: Run) -> dict[str, Any]:
    """Return a run's row of `runs`."""
    conditions = store.conditions(run)
    shards = [shard for name in conditions for shard in store.shards(run, name)]
    outputs = {name for shard in shards for name in shard.outputs if name != TOKENS}
    prompts = answered_prompts(store, run)
    cells = (
        run.id,
        run.model,
        ", ".join(info.name for info in store.data(run)),
        sum(store.count_samples(run, name) for name in conditions[:1]) - len(prompts or ()),
        None if prompts is None else len(prompts),
        len(run.layers),
        ", ".join(conditions),
        len(outputs),
        len(shards),
        _bytes(shards),
        None if (kept := head.find(run)) is None else kept.stat().st_size,
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def answered_prompts(store: Store, run: Run) -> set[str] | None:
    """Return the samples of which a run holds an answer and nothing else; None where it was asked for no answers."""
    if run.spec.get("answer") is None or CLEAN not in store.conditions(run):
        return None
    held = store.held(run)
    texts = [all(name.startswith("generation:") for name, _ in pairs) for pairs in held.pairs]
    return {sample for sample, holders in held.holders.items() if all(texts[index] for index in holders)}


def forward_passes(store: Store, run: Run) -> dict[str, int]:
    """Return, by condition, how many samples a run put through the model for what is captured of them.

    A sample counts once under a condition, however many outputs were captured of it, as it does in what an extraction
    into an empty store says (`extract.summary.Summary.forward_passes`). Two things are held and no passes: prompts of
    which only the answer is kept (text costs a pass a token, and is counted in tokens), and samples that a condition
    leaves out.
    """
    prompts = list(answered_prompts(store, run) or ())
    found = {}
    for name in store.conditions(run):
        # What is left out has no token.
        samples = store.samples(run, name).filter(pl.col("n_tokens") > 0)
        found[name] = len(samples.filter(~pl.col("sample_id").is_in(prompts)) if name == CLEAN else samples)
    return found


def _bytes(shards: list[ShardInfo]) -> int:
    return sum(file.bytes for shard in shards for file in shard.files.values())


_MAKES = {
    "hidden": (r"hidden:", "no run of this store kept states", "`layercache extract --pooling mean` keeps some"),
    "lens": (r"lens:", "no run of this store was read by the lens", "`layercache extract --lens last` does that"),
    "choices": (
        r"lens:.*:choices-",
        "no run of this store scored answers",
        "`layercache extract --choice ' true' --choice ' false'` scores some",
    ),
    "token_stats": (
        r"stats:",
        "no run of this store took statistics over tokens",
        "`layercache extract --stats norm,curvature,prompt_entropy` takes some",
    ),
    "generations": (
        r"generation:",
        "no run of this store generated text",
        "`layercache extract --generate-layers all` lets every layer write, `--generate-answer` the last",
    ),
}
"""Of a table: how the names of the outputs begin that it holds, and what to say of a store without any."""


def why_empty(path: Path, query: Query, given: bool) -> str | None:
    """Say why a named query found no row: what it reads was not captured, or not analysed; None when that is not so.

    Args:
        given: parameters narrowed it down, which may be why.
    """
    store = reader.open(path)
    there = {info.analysis for info in results.listing(path)}
    places = [(run, condition) for run in store.runs() for condition in store.conditions(run)]
    if not places:
        return f"query {query.name}: the store holds no run yet: `layercache extract` makes one"
    outputs = {name for place in places for shard in store.shards(*place) for name in shard.outputs}
    for table, (opening, lacking, remedy) in _MAKES.items():
        if table in query.tables and not any(re.match(opening, name) for name in outputs):
            return f"query {query.name} reads the table {table}, and {lacking}: {remedy}"
    if kinds := " ".join(kind for kind in query.analyses if kind not in there):
        return f"query {query.name} reads results of {kinds}, and the store has none: run `layercache analyze {kinds}` first"
    return f"query {query.name}: {query.none}" if query.none and not given else None


def litter(path: Path) -> str | None:
    """Say what `layercache gc` could remove of a store without looking into its shards; None when there is nothing."""
    left = cleanup.leftovers(path)
    aside = list((path / QUARANTINE).glob("*"))
    parts = []
    if left:
        size = quantities.in_words(sum(one.bytes for one in left))
        parts.append(f"{len(left)} unfinished that no writer on this machine holds ({size})")
    if aside:
        parts.append(f"{len(aside)} in quarantine")
    return f"{', '.join(parts)}: `layercache gc` removes them" if parts else None


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
        "head": head.describe(run),
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
    prompts = (answered_prompts(store, run) if condition == CLEAN else None) or set()
    samples = store.samples(run, condition).filter(~pl.col("sample_id").is_in(list(prompts)))
    absent: dict[str, int] = {}
    for row in samples["absent"].to_list():
        for one in row:
            key = f"{one['output']}: {one['reason']}"
            absent[key] = absent.get(key, 0) + 1
    return {
        "samples": len(samples),
        **({"prompts answered": len(prompts)} if prompts else {}),
        "tokens": int(samples["n_tokens"].sum()),
        "truncated": int((samples["n_truncated"] > 0).sum()),
        "shards": len(shards),
        "bytes": _bytes(shards),
        "outputs": {output: sorted(layers) for output, layers in sorted(held.items())},
        "absent": absent,
        "provenance": shards[0].provenance | _generation(shards) if shards else {},
    }


def _generation(shards: list[Any]) -> dict[str, Any]:
    """Return the settings behind the names of generated texts."""
    found = {name: made for one in shards for name, made in one.provenance.get("generation", {}).items()}
    return {"generation": found} if found else {}


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
