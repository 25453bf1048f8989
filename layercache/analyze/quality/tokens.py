"""Statistics over tokens, summarised over samples: mean with interval, quantiles, and entropies as shares of their most.

They were computed while the model ran, one number a sample and layer (view `token_stats`); the mean alone would hide that
samples may fall into two groups, so quantiles stand beside it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze import bootstrap, tables
from layercache.analyze.bootstrap import Resamples
from layercache.analyze.quality.estimates import Floats
from layercache.analyze.tables import Key, Row
from layercache.outputs import WHOLE_PROMPT
from layercache.recipe import QualitySpec
from layercache.store import captured
from layercache.store.layout import Run
from layercache.store.reader import Store

ENTROPY = "prompt_entropy"
"""Statistics whose name begins so are entropies of a spectrum of at most min(tokens, width) values."""
_WITHOUT_FIRST = "-first"
"""Ends the name of a statistic that leaves out the first token."""


def summarise(
    store: Store, run: Run, ids: set[str], condition: str, names: set[str] | None, spec: QualitySpec, key: Key
) -> list[Row]:
    """Return the rows of every statistic stored of some samples under a condition, by layer.

    Args:
        store: the store.
        run: the run.
        ids: the samples of the data set.
        condition: the condition.
        names: metrics asked for; None for all.
        spec: quantiles, resamples and layers.
        key: what every row says of itself.
    """
    frame = captured.statistics(store, run, condition)
    frame = frame.filter(pl.col("sample_id").is_in(list(ids)), pl.col("value").is_finite())
    if names is not None:
        frame = frame.filter(pl.col("metric").is_in(list(names)))
    if spec.layers != "all":
        frame = frame.filter(pl.col("layer").is_in(spec.layers))
    if frame.is_empty():
        return []
    frame = _with_normalised(frame, _lengths(store, run, condition), run.width)
    samples = frame["sample_id"].unique().sort()
    resamples = bootstrap.draw(np.arange(len(samples)), spec.bootstrap, spec.seed)
    found: list[Row] = []
    for (metric,), own in frame.group_by("metric", maintain_order=True):
        found += _metric(key, str(metric), own, samples, resamples, spec)
    return found


def _lengths(store: Store, run: Run, condition: str) -> pl.DataFrame:
    """Return how many tokens a sample's statistics are over: `sample_id`, `tokens`.

    They are those of `mean@prompt`: the prompt's span without special tokens, which an answer behind it does not count to.
    """
    spans = pl.col("spans").list.eval(pl.element().filter(pl.element().struct["name"] == WHOLE_PROMPT)).list.first()
    whole = (spans.struct["end"] - spans.struct["start"]).fill_null(0)
    tokens = pl.min_horizontal(whole, pl.col("n_tokens") - pl.col("n_special"))
    # An imported sample may have no spans.
    plain = pl.col("n_tokens") - pl.col("n_special")
    return store.samples(run, condition).select(
        "sample_id", tokens=pl.when(whole > 0).then(tokens).otherwise(plain).cast(pl.Float64)
    )


def _with_normalised(frame: pl.DataFrame, lengths: pl.DataFrame, width: int) -> pl.DataFrame:
    """Add each entropy divided by ln of the tokens, of the width, and of the smaller of the two."""
    raw = frame.filter(pl.col("metric").str.starts_with(ENTROPY)).join(lengths, on="sample_id", how="inner")
    raw = raw.with_columns(tokens=pl.col("tokens") - pl.col("metric").str.ends_with(_WITHOUT_FIRST).cast(pl.Float64))
    raw = raw.filter(pl.col("tokens") > 1)
    by = {
        "over_ln_tokens": pl.col("tokens").log(),
        "over_ln_width": pl.lit(np.log(width)),
        "over_ln_min": pl.min_horizontal(pl.col("tokens"), pl.lit(float(width))).log(),
    }
    parts = [
        raw.with_columns(metric=pl.col("metric").str.replace("$", f"_{name}"), value=pl.col("value") / most).select(
            frame.columns
        )
        for name, most in by.items()
        if width > 1
    ]
    return pl.concat([frame, *parts])


def _metric(
    key: Key, metric: str, own: pl.DataFrame, samples: pl.Series, resamples: Resamples, spec: QualitySpec
) -> list[Row]:
    """Return the rows of one statistic at every layer."""
    layers = own["layer"].unique().sort().to_list()
    values = np.full((len(samples), len(layers)), np.nan)
    values[samples.search_sorted(own["sample_id"]).to_numpy(), np.searchsorted(layers, own["layer"].to_numpy())] = own[
        "value"
    ].to_numpy()
    low, high, mean = _means(values, resamples)
    found: list[Row] = []
    for at, layer in enumerate(layers):
        here: dict[str, Any] = {**key, "layer": layer}
        known = values[~np.isnan(values[:, at]), at]
        found += tables.row(here, metric, mean[at], len(known), _or_none(low[at]), _or_none(high[at]))
        for q in dict.fromkeys(spec.quantiles):
            found += tables.row(here, f"{metric}_q{100 * q:g}", float(np.quantile(known, q)), len(known))
    return found


def _means(values: Floats, resamples: Resamples) -> tuple[Floats, Floats, Floats]:
    """Return the lower and upper ends and the mean of each column [s] of values [n, s], NaN being no value."""
    known = ~np.isnan(values)
    both = np.concatenate([np.where(known, values, 0), known.astype(np.float64)], axis=1)
    total, count = np.split(bootstrap.sums(both, resamples), 2, axis=1)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    if len(means) == 1:
        nothing: npt.NDArray[np.float64] = np.full(values.shape[1], np.nan)
        return nothing, nothing, means[0]
    low, high = np.nanpercentile(means[1:], [2.5, 97.5], axis=0)
    return low, high, means[0]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
