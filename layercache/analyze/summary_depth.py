"""Plain-text tables of what lies behind probes, and of models side by side."""

from collections.abc import Iterator

import polars as pl

from layercache.analyze.metrics import MAIN
from layercache.analyze.plain_tables import cell, number, of, tables

_WITHOUT_LAYER = {"peak_layer": "peak layer", "converging_layer": "converging layer"}
_BITS = {"v_information": "usable information, bits", "mdl": "codelength, bits", "compression": "compression"}


def deep(frame: pl.DataFrame) -> Iterator[str]:
    """Yield a table for each data set, label, run and pooling that was probed in depth."""
    found = frame.filter(pl.col("analysis") == "probe_depth")
    for (data, label, run, pooling), part in found.group_by("data", "label", "run", "pooling", maintain_order=True):
        own = part.filter(pl.col("other_layer").is_null())
        layers = sorted(own["layer"].drop_nulls().unique().to_list())
        titles, columns = [], []
        for title, numbers in _columns(own):
            titles.append(title)
            columns.append([" " + cell(of(numbers, layer=layer)) for layer in layers])
        if columns:
            yield tables(
                f"{data}, {label}, {run} {pooling}: [95 % interval] by layer", [*map(str, layers)], titles, columns
            )
        ends = [
            f"{name} {cell(of(own, metric=metric))}"
            for metric, name in _WITHOUT_LAYER.items()
            if metric in own["metric"]
        ]
        if ends:
            yield ", ".join(ends)
        elif not of(own, metric="layers_above_shuffled", value=0.0).is_empty():
            yield f"{', '.join(f'{name} none' for name in _WITHOUT_LAYER.values())}: no layer is above shuffled labels"


def _columns(own: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    main = next((one for one in MAIN.values() if one in own["metric"]), "")
    alone = own.filter(pl.col("group").is_null())
    yield main, of(alone, metric=main)
    for name in own["group"].drop_nulls().unique(maintain_order=True):
        if len(numbers := own.filter(pl.col("group") == name, pl.col("metric") == "selectivity")):
            yield f"selectivity, {name}", numbers
    for metric, title in _BITS.items():
        if len(numbers := of(alone, metric=metric)):
            yield title, numbers


def compared(frame: pl.DataFrame) -> Iterator[str]:
    """Yield a table of best layers for each data set and label, and one of what each rule's layer is worth."""
    found = frame.filter(pl.col("analysis") == "compare")
    best = found.filter(pl.col("metric").is_in(["best_layer", "best_depth", "best_score"]))
    for (data, label, score), part in best.group_by("data", "label", "group", maintain_order=True):
        where = part.select("run", "site", "pooling").unique(maintain_order=True)
        names, lines = [], []
        for run, site, pooling in where.iter_rows():
            own = part.filter(pl.col("site").eq_missing(pl.lit(site)), run=run, pooling=pooling)
            names.append(f"{run} {pooling}" + ("" if site in (None, "resid") else f" {site}"))
            depth = of(own, metric="best_depth")
            beyond = "final norm" if depth.is_empty() else cell(depth)
            lines.append(
                [" " + cell(of(own, metric="best_layer")), f" {beyond}", " " + cell(of(own, metric="best_score"))]
            )
        columns = [list(column) for column in zip(*lines)]
        yield tables(
            f"{data}, {label}: best layer by {score}", names, ["layer", "depth, 0 to 1", "score"], columns, corner="run"
        )
    for data, part in found.filter(pl.col("metric") == "picked_share").group_by("data", maintain_order=True):
        rules = part.group_by("group", maintain_order=True).agg(
            mean=pl.col("value").mean(), worst=pl.col("value").min(), cases=pl.len()
        )
        rules = rules.sort("mean", descending=True)
        values = [[" " + number(v) for v in rules[name]] for name in ("mean", "worst")]
        columns = [*values, [f" {count}" for count in rules["cases"]]]
        title = (
            f"{data[0]}: which layer to take without labels, and what it gains of the best layer's gain (a case: one label,"
            " read at one place in one run)"
        )
        yield tables(title, rules["group"].to_list(), ["mean", "worst", "cases"], columns, corner="rule")
