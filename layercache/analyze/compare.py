"""Models side by side, and which metric finds the best layer without labels; from what other analyses found.

For every probed label, of every run and pooling: the best layer, also as a share of the blocks (the embedding output
0, the last block 1, the final norm none), so that models of different depth can be compared. For every metric that needs no label (`quality`, `entropy`, or any other analysis with a
number a layer): its rank correlation with the probe's score over the layers (Spearman, Kendall), and what the layer with
its largest or its smallest value gains over the majority class or the mean, as a share of what the best layer gains.
Beside these stand the layers that can be picked without any metric: a random one (the mean over layers), the middle one
and the last. A label that no layer knows (the best score's interval reaches down to the baseline) says nothing about
layers and is left out of this.

`n` of a correlation is the number of layers, which is small: of seven layers, |Spearman| below .79 is within chance at
5 %, were layers independent, which they are not. Its interval says how far it hangs on the prompts that were probed
(`layer_ranks`). Of a metric that was summarised over samples the mean is taken, and quantiles only when asked for. Whether to take the largest or the smallest value is not known beforehand, so the better of the two flatters.

Row by row, the last layer is held against the best and one run against another (`layers_compared`), and runs with adapters
against their bases (`adaptation`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from layercache.analyze import adaptation, layer_ranks, layers_compared, select, tables
from layercache.analyze.metrics import CLASS_METRICS, MAIN, NUMBER_METRICS
from layercache.analyze.tables import Row
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import CompareSpec
from layercache.store import numbers
from layercache.store import scores as sample_scores
from layercache.store.layout import CLEAN
from layercache.store.reader import Store
from layercache.store.results import Outcome

_SUPERVISED = ("probe", "probe_depth", "compare", "text", "choices", "delta_p")
"""Analyses whose numbers rest on labels, references or interventions."""
_NOT_METRICS = ("left_out", "target_logprob", "target_rank")
_QUANTILE = r"_q\d+(\.\d+)?$"
"""Ends the name of a quantile over samples: `entropy_q10`, `prompt_entropy_q2.5`."""
_FEWEST = 3
"""Layers a correlation needs at least."""


def compare(store: Store, spec: CompareSpec, progress: Progress) -> Outcome:
    """Compare the runs and data sets asked for.

    Raises:
        AnalysisError: no probe scores are stored for them and none has an adapter, or a name is not known.
    """
    chosen = select.runs(store, spec)
    named = sorted({info.name for _, info in select.data(store, chosen, spec)})
    depths = {run.id: run.final_layer for run in chosen}
    frame = numbers.newest(store.path).filter(
        pl.col("run").is_in(list(depths)),
        pl.col("data").is_in(spec.data or named),
        pl.col("condition").fill_null(CLEAN) == CLEAN,
        pl.col("other_layer").is_null() & pl.col("other_run").is_null(),
    )
    by_layer = frame.filter(pl.col("layer").is_not_null())
    rows: list[Row] = adaptation.rows(store, chosen, spec, progress)
    rows += layers_compared.rows(store, chosen, spec)
    if rows and by_layer.filter(analysis="probe").is_empty():
        return Outcome(tables.results(rows))
    probes, metrics, floors = _probes(by_layer, spec), _metrics(by_layer, spec), _floors(frame)
    unknown = []
    keys = ["run", "data", "label", "site", "pooling"]
    read = [sample_scores.newest(store.path, "probe", name) for name in ("correct", "error")]
    each = pl.concat(read).filter(pl.col("group").is_null(), pl.col("layer").is_not_null())
    with progress.task("compare", probes.select(keys).n_unique(), "labels") as bar:
        for values, found in probes.group_by(keys, maintain_order=True):
            key = {**dict(zip(keys, values)), "analysis": "compare", "condition": CLEAN}
            scores, depth = found.sort("layer"), depths[str(values[0])]
            best = scores.row(int(scores["value"].arg_max() or 0), named=True)
            floor = floors.get((values[0], values[1], values[2], best["metric"]), 0.0)
            rows += _best(key, best, depth, len(scores))
            if (best["value"] if best["low"] is None else best["low"]) > floor:
                gains = scores.select("layer", "n", value=(pl.col("value") - floor) / (best["value"] - floor))
                own = each.filter(*(pl.col(name).eq_missing(pl.lit(key[name])) for name in keys))
                layers = gains["layer"].to_list()
                drawn = layer_ranks.resampled(own, layers, best["metric"], spec.bootstrap, spec.seed)
                rows += _metric_rows(key, gains, _beside(metrics, key), depth, drawn)
            else:
                unknown.append(f"{key['run']} {key['label']} {key['pooling']}")
            bar.advance()
    if unknown:
        progress.note(f"known at no layer, so no metric is held against them: {', '.join(unknown)}")
    if metrics.is_empty():
        progress.note("no metric without labels is stored: `layercache analyze quality entropy` adds some")
    return Outcome(tables.results(rows))


def _probes(frame: pl.DataFrame, spec: CompareSpec) -> pl.DataFrame:
    """Return the probes' scores by layer: of each label its main metric, or the one asked for."""
    probes = frame.filter(pl.col("analysis") == "probe", pl.col("group").is_null(), pl.col("label").is_not_null())
    if probes.is_empty():
        raise AnalysisError("compare needs probe scores by layer: run `layercache analyze probe` first")
    for column, asked in (("label", spec.labels), ("pooling", spec.pooling)):
        known = probes[column].drop_nulls().unique().sort().to_list()
        for name in asked or ():
            if name not in known:
                raise AnalysisError(f"no probe scores of {column} {name!r}: {select.hint(name, known)}")
        probes = probes.filter(pl.lit(asked is None) | pl.col(column).is_in(asked or []))
    known = sorted(set(probes["metric"]) & {*NUMBER_METRICS, *CLASS_METRICS} - {"mse"})
    if spec.score is not None and spec.score not in known:
        raise AnalysisError(f"no probe has the score {spec.score!r}: {select.hint(spec.score, known)}")
    wanted = [spec.score] if spec.score else sorted(set(MAIN.values()))
    return probes.filter(pl.col("metric").is_in(wanted))


def _metrics(frame: pl.DataFrame, spec: CompareSpec) -> pl.DataFrame:
    """Return numbers by layer that rest on no label, with `name`: the metric, and what tells it from its like."""
    found = frame.filter(
        ~pl.col("analysis").is_in(_SUPERVISED),
        pl.col("label").is_null(),
        ~pl.col("metric").is_in(_NOT_METRICS),
    )
    known = found["metric"].unique().sort().to_list()
    for name in spec.metrics or ():
        if name not in known:
            raise AnalysisError(f"no metric {name!r} by layer in the results: {select.hint(name, known)}")
    if spec.metrics is None and not spec.with_quantiles:
        found = found.filter(~pl.col("metric").str.contains(_QUANTILE))
    if spec.metrics is not None:
        found = found.filter(pl.col("metric").is_in(spec.metrics))
    return found.with_columns(name=pl.concat_str("metric", "position", "group", separator=" ", ignore_nulls=True))


def _floors(frame: pl.DataFrame) -> dict[tuple[Any, ...], float]:
    """Return what the majority class or the mean scores, by run, data set, label and metric."""
    own = frame.filter(pl.col("analysis") == "probe", pl.col("group").is_in(["majority", "mean"]))
    return {row[:4]: row[4] for row in own.select("run", "data", "label", "metric", "value").iter_rows()}


def _beside(metrics: pl.DataFrame, key: Row) -> pl.DataFrame:
    """Return the metrics of a probe's run, data set, site and pooling; those without a site or pooling are of all."""
    same = [pl.col(name).is_null() | (pl.col(name) == key[name]) for name in ("site", "pooling")]
    return metrics.filter(pl.col("run") == key["run"], pl.col("data") == key["data"], *same)


def _best(key: Row, best: dict[str, Any], depth: int, layers: int) -> list[Row]:
    key, layer = {**key, "group": best["metric"]}, float(best["layer"])
    # The final norm is no block further, and its state would seem to be the last block's.
    return [
        *tables.row(key, "best_layer", layer, layers),
        *(tables.row(key, "best_depth", layer / depth, layers) if 0 < depth >= layer else []),
        *tables.row(key, "best_score", best["value"], best["n"], best["low"], best["high"]),
    ]


def _metric_rows(
    key: Row, gains: pl.DataFrame, metrics: pl.DataFrame, depth: int, drawn: layer_ranks.Floats | None
) -> Iterator[Row]:
    """Yield how well each metric goes with the probe over the layers, and what its layers are worth.

    Args:
        key: what is probed.
        gains: the layers' shares of the best layer's gain, by layer.
        metrics: the metrics' values by layer.
        depth: the run's last layer.
        drawn: the layers' scores on every draw of prompts, as `layer_ranks.resampled` gives them.
    """
    scored = gains["layer"].to_list()
    for rule, layer in (("random layer", None), ("middle layer", round(depth / 2)), ("last layer", depth)):
        yield from _picked({**key, "group": rule}, layer, gains)
    for (name,), own in metrics.group_by("name", maintain_order=True):
        both = own.select("layer", metric="value").unique("layer", keep="first").join(gains, on="layer")
        both = both.filter(pl.col("metric").is_finite()).sort("layer")
        a, b = both["metric"].to_numpy(), both["value"].to_numpy()
        if len(both) < _FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
            continue
        at = {**key, "group": name}
        at_layers = [scored.index(layer) for layer in both["layer"].to_list()]
        found = layer_ranks.correlations(a, b, None if drawn is None else drawn[1:, at_layers])
        for which, one in found._asdict().items():
            yield from tables.row(at, f"{which}_over_layers", one.value, len(both), one.low, one.high)
        for end, index in (("max", a.argmax()), ("min", a.argmin())):
            yield from _picked({**key, "group": f"{name} {end}"}, int(both["layer"][int(index)]), gains)


def _picked(key: Row, layer: int | None, gains: pl.DataFrame) -> Iterator[Row]:
    """Yield the layer that a rule picks and what it is worth; without a layer the mean over all of them."""
    found = gains if layer is None else gains.filter(pl.col("layer") == layer)
    if found.is_empty():
        return
    if layer is not None:
        yield from tables.row(key, "picked_layer", layer, len(gains))
    yield from tables.row(key, "picked_share", float(found["value"].to_numpy().mean()), len(gains))
