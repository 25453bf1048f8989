"""The logit lens of stored states, without the model: the head kept beside a run, applied with NumPy.

The columns are those of the table `lens`, which the model's own machine fills while it runs; the formulas are
there too (`extract/lens.py`). What differs is that the states read here were rounded when they were stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layercache import outputs, queries
from layercache.analyze.distributions import distributions
from layercache.analyze.lens_table import SCHEMA, Places, rows, summarise
from layercache.errors import AnalysisError
from layercache.head import Head
from layercache.progress import Patient, Progress, Task
from layercache.store import head as heads
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.reader import open as open_store

SINGLE = ("first", "last", "token")
"""Poolings that are the state of one token."""
_STATE_BYTES = 1 << 28
"""States held at a time."""
_LOGITS = 1 << 24
"""Logits held at a time; their statistics take about five times as much."""


def ask(
    path: Path,
    run_name: str,
    *,
    layers: str,
    pooling: str,
    tokens: Sequence[str] = (),
    token_ids: Sequence[int] = (),
    top_k: int,
    samples: Sequence[str] = (),
    data: str | None,
    condition: str,
    per_sample: bool,
    progress: Progress | None = None,
) -> pa.Table:
    """Answer the command `lens`: one line a state where samples are asked for, means by layer otherwise.

    Raises:
        LayercacheError: as `Store.lens`.
    """
    store = open_store(path)
    run = _run(store, run_name, data)
    asked: set[str] | None = set(samples) or None
    if data is not None:
        of_data = set(store.rows(run, data)["sample_id"].drop_nulls().to_list())
        asked = of_data if asked is None else of_data & asked
    table = lens(
        store,
        run,
        _numbers(layers),
        pooling,
        top_k=top_k,
        targets=[*tokens, *token_ids] or None,
        sample_ids=None if asked is None else sorted(asked),
        condition=condition,
        progress=progress,
    )
    return table if samples or per_sample else summarise(table, by_target=bool(tokens or token_ids))


def _run(store: Store, name: str, data: str | None) -> Run:
    """Find a run by name; the data set may tell runs of one model apart."""
    named = [run for run in store.runs() if run.model == name and data in {info.name for info in store.data(run)}]
    return named[0] if len(named) == 1 else store.run(name)


def _numbers(layers: str) -> list[int] | Literal["all"]:
    if layers.strip() == "all":
        return "all"
    try:
        return [int(part) for part in layers.split(",")]
    except ValueError as error:
        raise AnalysisError(f"layers {layers!r}: give numbers separated by commas, or all") from error


@dataclass(frozen=True)
class _Asked:
    """What is read: the states of a run at some layers, and the layer that the others are compared with."""

    store: Store
    run: Run
    head: Head
    feature: outputs.Feature
    layers: list[int]
    final: int | None
    condition: str

    def query(self, name: str, sample_ids: Sequence[str] | None, **params: Any) -> pa.Table:
        """Ask one of the named queries about these states, of some samples or all."""
        given = {"run": self.run.id, "condition": self.condition, "pooling": str(self.feature)}
        ids = None if sample_ids is None else list(sample_ids)
        return self.store.sql(queries.load_query(name).sql, {**given, "ids": ids, **params})

    @property
    def read(self) -> list[int]:
        """The layers asked for, and the final one; ascending."""
        return sorted({*self.layers, *([] if self.final is None else [self.final])})


def lens(
    store: Store,
    run: Run | str,
    layers: int | Sequence[int] | Literal["all"] = "all",
    pooling: str = "last@prompt",
    *,
    top_k: int = 10,
    targets: Sequence[int | str] | None = None,
    sample_ids: Sequence[str] | None = None,
    condition: str = "clean",
    progress: Progress | None = None,
) -> pa.Table:
    """Read the logit lens of stored states; see `Store.lens`. `progress` is where to report.

    Raises:
        StoreError: the run is not known or has no head, or the store is damaged.
        AnalysisError: `top_k` is below 1, or as of `Store.lens`.
    """
    run = run if isinstance(run, Run) else store.run(run)
    if top_k < 1:
        raise AnalysisError(f"top_k is {top_k}: give 1 or more")
    feature = _feature(pooling)
    head = heads.read(run)
    asked = _asked(store, run, head, feature, layers, condition)
    follow = None if targets is None else [head.token(one) for one in targets]
    places = _places(asked, follow, sample_ids)
    step = max(1, _STATE_BYTES // (4 * run.width * len(asked.read)))
    parts = []
    with Patient(progress or Progress()).task(f"lens of {run.id}", len(places.keys), "positions") as bar:
        for start in range(0, len(places.keys), step):
            # States that are not finite, where a run allows them, make NaN and no noise.
            with np.errstate(invalid="ignore", over="ignore"):
                parts += _chunk(asked, places.take(slice(start, start + step)), top_k, bar)
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    # Stable, so that targets stay in the order given.
    order = [(name, "ascending") for name in ("layer", "sample_id", "position")]
    return table.take(pc.sort_indices(table, sort_keys=order))


def _feature(pooling: str) -> outputs.Feature:
    """Read a pooling that is the state of one token."""
    how, _, span = pooling.strip().partition("@")
    if how not in SINGLE:
        raise AnalysisError(
            f"pooling {pooling!r} has no lens: the head only ever sees the state of one token, so use one of"
            f" {', '.join(SINGLE)}, optionally @a span (last@question)"
        )
    return outputs.Feature(how, span or outputs.WHOLE_PROMPT)


def _asked(
    store: Store, run: Run, head: Head, feature: outputs.Feature, layers: int | Sequence[int] | str, condition: str
) -> _Asked:
    """Settle the layers: those asked for have to be stored; the last one stored of L and L + 1 is the final one."""
    features = store.features(run, condition)
    stored = next((one.layers for one in features if (one.site, one.pooling) == ("resid", str(feature))), [])
    last = run.final_layer
    wanted = [layers] if isinstance(layers, int) else layers
    # After the final norm stands what the lens makes of layer L already.
    chosen = [layer for layer in stored if layer <= last] if wanted == "all" else sorted({int(one) for one in wanted})
    for number in chosen:
        run.layer_name(number)
    lacking = sorted(set(chosen) - set(stored))
    if lacking or not chosen:
        have = [f"{one.pooling} at {', '.join(map(str, one.layers))}" for one in features if _single(one.pooling)]
        layer = f" at layer {lacking[0]}" if lacking else ""
        raise AnalysisError(
            f"run {run.id} holds no states {feature}{layer} under condition {condition}: of single tokens it holds"
            f" {'; '.join(have) or 'none (extract with --pooling last)'}"
        )
    final = next((layer for layer in (last, last + 1) if layer in stored), None)
    return _Asked(store, run, head, feature, chosen, final, condition)


def _single(pooling: str) -> bool:
    return pooling.partition("@")[0] in SINGLE


def _places(asked: _Asked, follow: list[int] | None, sample_ids: Sequence[str] | None) -> Places:
    """List the states read, and the tokens followed: those given, or what came next in the prompt."""
    table = asked.query("lens_places", sample_ids, layers=asked.layers)
    ids = table["sample_id"].to_numpy().astype(str)
    without = set(sample_ids or ()) - set(ids.tolist())
    if without:
        # A sample whose span is empty has no state, as everywhere; one that nobody knows is a mistake.
        unknown = sorted(without - set(asked.store.samples(asked.run, asked.condition)["sample_id"]))
        if unknown:
            raise AnalysisError(f"run {asked.run.id} has no sample {unknown[0]!r}: see SELECT sample_id FROM samples")
    if follow is None:
        targets = table["target_id"].fill_null(-1).to_numpy().astype(np.int64)[:, None]
        targets = np.where(targets < asked.head.vocabulary, targets, -1)
    else:
        targets = np.tile(np.array(follow, dtype=np.int64), (len(ids), 1))
    position = table["position"].fill_null(-1).to_numpy().astype(np.int32)
    return Places(table["key"].to_numpy().astype(str), ids, position, targets)


def _chunk(asked: _Asked, places: Places, top_k: int, bar: Task) -> list[pa.Table]:
    """Read the states of some places at every layer, and unembed them a few places at a time."""
    n = len(places.keys)
    states = np.zeros((len(asked.read), n, asked.run.width), dtype=np.float32)
    there = np.zeros((len(asked.read), n), dtype=bool)
    for number, layer in enumerate(asked.read):
        keys, values = _states(asked, layer, places)
        where = np.minimum(np.searchsorted(places.keys, keys), n - 1)
        known = places.keys[where] == keys
        states[number, where[known]] = values[known]
        there[number, where[known]] = True
    step = max(1, _LOGITS // (asked.head.vocabulary * len(asked.read)))
    tables = []
    for start in range(0, n, step):
        here = slice(start, start + step)
        tables += _block(asked, places.take(here), states[:, here], there[:, here], top_k)
        bar.advance(min(step, n - start))
    return tables


def _states(asked: _Asked, layer: int, places: Places) -> tuple[np.ndarray, np.ndarray]:
    """Read a layer's states of the samples of some places: keys, and float32 [n, d]."""
    ids = np.unique(places.sample_id)
    table = asked.query("lens_states", ids.tolist(), layer=layer, low=str(ids[0]), high=str(ids[-1]))
    flat = [chunk.flatten().to_numpy() for chunk in table["vector"].chunks]
    values = np.concatenate([np.empty(0, np.float32), *flat]).reshape(-1, asked.run.width)
    return table["key"].to_numpy().astype(str), values


def _block(asked: _Asked, places: Places, states: np.ndarray, there: np.ndarray, top_k: int) -> list[pa.Table]:
    """Unembed states [layers, n, d] in one product, which reads the unembedding once; compare with the final layer."""
    n, read = len(places.keys), asked.read
    before = n * sum(layer <= asked.run.final_layer for layer in read)
    flat = states.reshape(-1, asked.run.width)
    logits = asked.head.logits(flat[:before])
    if before < len(flat):
        # Layer L + 1 has been through the norm.
        logits = np.concatenate([logits, asked.head.logits(flat[before:], normed=True)])
    by_layer = dict(zip(read, logits.reshape(len(read), n, -1)))
    final = None if asked.final is None else distributions(by_layer[asked.final])
    known = np.zeros(n, bool) if asked.final is None else there[read.index(asked.final)]
    name = str(outputs.Lens(asked.feature, min(top_k, asked.head.vocabulary)))
    tables = []
    for layer, held in zip(read, there):
        if layer in asked.layers:
            here = final if final is not None and layer == asked.final else distributions(by_layer[layer])
            fixed: dict[str, str | int] = {"run": asked.run.id, "condition": asked.condition, "output": name}
            fixed |= {"layer": layer, "position_name": str(asked.feature)}
            table = rows(fixed, places, here, final, known, asked.head, top_k)
            tables.append(table.filter(pa.array(np.repeat(held, places.targets.shape[1]))))
    return tables
