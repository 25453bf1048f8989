"""Plain-text tables of an outcome, for a terminal: layers down, models and poolings across."""

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa

from layercache.analyze import summary_delta_p, summary_depth, summary_quality
from layercache.analyze.metrics import CLASS_METRICS, MAIN, METRICS, NUMBER_METRICS
from layercache.analyze.plain_tables import cell as _cell
from layercache.analyze.plain_tables import number as _number
from layercache.analyze.plain_tables import of as _of
from layercache.analyze.plain_tables import tables as _tables
from layercache.analyze.summary_adaptation import adapters, answers
from layercache.frame import from_arrow

_NOTHING = ("mean", "majority")
_BASELINES = (*_NOTHING, "tf-idf")
_LEGEND = (
    "* best layer (and the share of resamples in which it is best); none where layers tie or its interval does not clear"
    " majority or mean"
)
_LENS = {
    "entropy": "entropy, nats",
    "agrees_with_final": "agrees with final",
    "kl_to_final": "KL to final, nats",
}
_TEXT = ("bleu", "chrf", "rouge_l", "exact_match", "token_f1", "bertscore_f1")
_TEXT_ACROSS = 9
_ORDER = list(METRICS)
_SCORES, _FURTHER = (
    "scores of text by layer [95 % interval]",
    "further scores, whose intervals are in the table results",
)
_QUANTISED = "what quantisation changes [95 % interval]"
_FORETOLD = "AUC of right answers by what the lens says, 0.5 for nothing [95 % interval]"
_TEXT_TABLES = (_SCORES, _FURTHER, _QUANTISED, _FORETOLD)


Column = dict[str, Any]
Line = list[str]


def summarise(results: pa.Table | pl.DataFrame) -> str:
    """Return the results of analyses as plain text: a table for each data set and label, position, generated output or
    condition.

    Values carry their 95 % interval; `*` marks a column's best layer, with the share of bootstrap resamples it wins, unless
    another layer scores the same as printed or its interval reaches down to the majority class or the mean. Empty text for
    no results.
    """
    frame = results if isinstance(results, pl.DataFrame) else from_arrow(results)
    frame = frame.with_columns(pl.col("run").replace_strict(_short_names(frame), return_dtype=pl.String).alias("run"))
    probes = list(_probes(frame))
    legend = [_LEGEND] if probes else []
    others = [*_lenses(frame), *_texts(frame), *summary_depth.deep(frame), *summary_depth.compared(frame)]
    others += [*summary_delta_p.effects(frame), *summary_quality.qualities(frame)]
    others += [*answers(frame), *adapters(frame)]
    return "\n\n".join([*probes, *legend, *others])


def _short_names(frame: pl.DataFrame) -> dict[str, str]:
    """Drop the hash of a run's id where the model's name alone tells the runs apart."""
    runs = frame["run"].unique().to_list()
    names = [run.rpartition("-")[0] or run for run in runs]
    return {run: name if names.count(name) == 1 else run for run, name in zip(runs, names)}


def _probes(frame: pl.DataFrame) -> Iterator[str]:
    probes = frame.filter(pl.col("analysis") == "probe")
    for (data, label), part in probes.group_by("data", "label", maintain_order=True):
        number = bool(part["metric"].is_in(list(NUMBER_METRICS)).any())
        main = MAIN["number" if number else "category"]
        others = [name for name in (NUMBER_METRICS if number else CLASS_METRICS) if name != main]
        layers = sorted(part["layer"].drop_nulls().unique().to_list())
        columns = (
            part.filter(pl.col("layer").is_not_null()).select("run", "site", "pooling").unique(maintain_order=True)
        )
        titles, lines = [], []
        for column in columns.iter_rows(named=True):
            titles.append(_title(column, columns))
            lines.append(_probe_column(_of(part, **column), _of(part, run=column["run"]), main, others, layers))
        names = [*map(str, layers), *_beside(part), "shuffled, best layer", *(f"{name}, best layer" for name in others)]
        yield _tables(f"{data}, {label}: {main} [95 % interval] by layer", names, titles, lines)


def _title(column: Column, columns: pl.DataFrame) -> str:
    """Name a column by its run and pooling, and by its site where there are several."""
    site = [column["site"]] if columns["site"].n_unique() > 1 else []
    return " ".join([column["run"], *site, column["pooling"]])


def _beside(part: pl.DataFrame) -> list[str]:
    known = set(part["group"].to_list())
    return [name for name in _BASELINES if name in known]


def _probe_column(here: pl.DataFrame, run: pl.DataFrame, main: str, others: list[str], layers: list[int]) -> Line:
    """Return the cells of one run and pooling: layers, baselines, shuffled labels, the other metrics."""
    probes = here.filter(pl.col("group").is_null())
    scores = _of(probes, metric=main)
    best = None if scores.is_empty() else scores.sort("value", "layer", descending=[True, False])["layer"][0]
    marked = best if _stands_out(scores, _of(run, metric=main)) else None
    cells = []
    for layer in layers:
        share = _of(probes, metric="best_layer_share", layer=layer)["value"]
        won = f" ({share[0]:.0%})" if layer == marked and len(share) else ""
        cells.append(("*" if layer == marked else " ") + _cell(_of(scores, layer=layer)) + won)
    cells += [" " + _cell(_of(run, group=name, metric=main)) for name in _beside(run)]
    cells.append(" " + _cell(_of(here, group="shuffled", metric=main, layer=best)))
    return cells + [" " + _cell(_of(probes, metric=name, layer=best)) for name in others]


def _stands_out(scores: pl.DataFrame, beside: pl.DataFrame) -> bool:
    """Tell whether one layer alone scores best as printed, and above what is scored without looking at any state."""
    ranked = scores.sort("value", descending=True).select("value", pl.coalesce("low", "value").alias("low")).rows()
    nothing = beside.filter(pl.col("group").is_in(_NOTHING))["value"].to_list()
    tied = len(ranked) > 1 and _number(ranked[0][0]) == _number(ranked[1][0])
    return bool(ranked) and not tied and all(ranked[0][1] > value for value in nothing)


def _lenses(frame: pl.DataFrame) -> Iterator[str]:
    lenses = frame.filter(pl.col("analysis") == "entropy")
    for (data, position), part in lenses.group_by("data", "position", maintain_order=True):
        layers = sorted(part["layer"].drop_nulls().unique().to_list())
        titles, lines = [], []
        for run in part["run"].unique(maintain_order=True):
            here = _of(part, run=run)
            for metric, title in _LENS.items():
                titles.append(f"{run} {title}")
                lines.append([" " + _cell(_of(here, metric=metric, layer=layer)) for layer in layers])
            depth = " " + _cell(_of(here, metric="prediction_depth"))
            lines[-len(_LENS)].append(depth)
            for cells in lines[1 - len(_LENS) :]:
                cells.append("")
        yield _tables(
            f"{data}, lens at {position}: [95 % interval] by layer",
            [*map(str, layers), "prediction depth"],
            titles,
            lines,
            across=len(_LENS),
        )


def _texts(frame: pl.DataFrame) -> Iterator[str]:
    """Yield the tables of each data set, generated output and run: its scores, then what the two claims come to."""
    texts = frame.filter(pl.col("analysis") == "text", pl.col("layer").is_not_null())
    for (data, output, run), part in texts.group_by("data", "group", "run", maintain_order=True):
        layers = sorted(part["layer"].unique().to_list())
        tables: dict[str, list[str]] = {}
        for metric in sorted(part["metric"].unique(), key=lambda name: _ORDER.index(name.removesuffix("_minus_other"))):
            tables.setdefault(_text_table(metric), []).append(metric)
        for table in (name for name in _TEXT_TABLES if name in tables):
            cells = [
                [" " + _cell(_of(part, metric=metric, layer=layer), table != _FURTHER) for layer in layers]
                for metric in tables[table]
            ]
            names = [metric.removeprefix("auc_").removesuffix("_minus_other") for metric in tables[table]]
            yield _tables(f"{data}, {run}, {output}: {table}", [*map(str, layers)], names, cells, across=_TEXT_ACROSS)


def _text_table(metric: str) -> str:
    """Say which table a metric of text is shown in, if any."""
    if metric.startswith("auc_"):
        return _FORETOLD
    if metric.endswith("_minus_other"):
        return _QUANTISED if metric.removesuffix("_minus_other") in _TEXT else ""
    return _SCORES if metric in _TEXT else _FURTHER
