"""How the logit lens settles over layers: entropy, distance from the final layer, prediction depth.

Each distinct sample of a data set counts once, and only samples that have the lens at every stored layer
of a position, so that all layers speak of the same samples. The prediction depth is the first layer from
which on the most probable token is the final layer's at every stored layer (after Baldock, Maennel &
Neyshabur 2021, "Deep Learning Through the Lens of Example Difficulty", with the lens in place of nearest
neighbours). Intervals are bootstrapped over samples.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from layercache import engine, outputs
from layercache.analyze import bootstrap, select, tables
from layercache.analyze.bootstrap import Resamples
from layercache.analyze.metrics import Floats, Weights, weighted_mean, weighted_quantile
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.tables import Row
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import EntropySpec
from layercache.store import captured
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store
from layercache.store.results import Outcome

_COLUMNS = ("entropy", "kl_to_final", "js_to_final", "agrees_with_final", "target_logprob", "target_rank")

Statistic = Callable[[Floats, Weights], Floats]


class _Lens(NamedTuple):
    """The lens at one position of one run: a line a (sample, layer), only samples that have every layer."""

    run: Run
    position: str
    layers: list[int]
    lines: pl.DataFrame


def entropy(store: Store, spec: EntropySpec, progress: Progress) -> Outcome:
    """Summarise the lens by layer and position, for every run and data set asked for.

    Raises:
        AnalysisError: no lens is stored, or a name or quantile is wrong.
    """
    if not all(0 <= q <= 1 for q in spec.quantiles):
        raise AnalysisError(f"quantiles must lie between 0 and 1, not {spec.quantiles}")
    chosen = select.runs(store, spec)
    pairs = select.data(store, chosen, spec)
    places = [(run, position) for run in chosen for position in _positions(store, run, spec)]
    if not places:
        raise AnalysisError(
            "no run holds a logit lens of one token a sample: run `layercache extract --lens last` first"
        )
    for run in chosen:
        if all(run.id != other.id for other, _ in places):
            progress.note(f"{run.id}: no logit lens stored, left out (`layercache extract --lens last` adds it)")
    rows: list[Row] = []
    scores: list[pa.Table] = []
    with one_thread_each(), progress.task("entropy", len(places), "positions") as bar:
        for found in engine.each(partial(_place, store, pairs, spec), places, what="entropy"):
            rows += found.rows
            scores += found.scores
            found.say(progress)
            bar.advance()
    return Outcome(tables.results(rows), tables.joined(scores))


def _place(
    store: Store, pairs: Sequence[tuple[Run, RowsInfo]], spec: EntropySpec, place: tuple[Run, str]
) -> tables.Piece:
    """Summarise the lens at one position of a run, for every data set."""
    found, lens = tables.Piece(), _read(store, *place)
    with one_thread_each() as pool:
        for _, info in (pair for pair in pairs if pair[0].id == lens.run.id):
            rows, scores = _summarise(store, lens, info, spec, found.notes, pool)
            found.rows += rows
            found.scores.append(scores)
    return found


def _positions(store: Store, run: Run, spec: EntropySpec) -> list[str]:
    """List the stored lens positions asked for."""
    everything = sorted({lens.position_name for lens in store.lens_outputs(run)})
    stored = [name for name in everything if not outputs.one_row_a_token(name)]
    if spec.positions is None:
        return stored
    asked = [str(outputs.parse_position(text)) for text in spec.positions]
    tokens = [name for name in asked if outputs.one_row_a_token(name)]
    if tokens:
        raise AnalysisError(
            f"{tokens[0]} is one row a token and the entropy analysis needs one a sample: name another position, or ask"
            " the view `lens` in SQL"
        )
    for name in asked:
        if stored and name not in stored:
            raise AnalysisError(f"run {run.id} has no lens at {name!r}: {select.hint(name, stored)}")
    return [name for name in stored if name in asked]


def _read(store: Store, run: Run, position: str) -> _Lens:
    """Read a position's lens."""
    frame = captured.lens(store, run, position, _COLUMNS)
    layers = sorted(
        {layer for lens in store.lens_outputs(run) if lens.position_name == position for layer in lens.layers}
    )
    whole = frame.filter(pl.len().over("sample_id") == len(layers))
    return _Lens(run, position, layers, whole)


def _summarise(
    store: Store, lens: _Lens, info: RowsInfo, spec: EntropySpec, progress: Progress, pool: ThreadPoolExecutor
) -> tuple[list[Row], pa.Table]:
    """Summarise the samples of one data set."""
    rows = store.rows(lens.run, info.name).select("row", "sample_id")
    lines = lens.lines.filter(pl.col("sample_id").is_in(rows["sample_id"].drop_nulls().unique().to_list()))
    kept = rows.filter(pl.col("sample_id").is_in(lines["sample_id"].unique().to_list())).sort("row")
    where = f"{lens.run.id}, {info.name}, {lens.position}"
    key: Row = {
        "run": lens.run.id,
        "data": info.name,
        "analysis": "entropy",
        "condition": "clean",
        "position": lens.position,
    }
    left_out = len(rows) - len(kept)
    if left_out:
        progress.note(f"{where}: {left_out:,} of {len(rows):,} rows left out, without the lens at every layer")
    counted = tables.row(key, "left_out", left_out, len(rows))
    if kept.is_empty():
        return counted, tables.joined([])
    n = lines["sample_id"].n_unique()
    resamples = bootstrap.draw(np.arange(n), spec.bootstrap, spec.seed)
    by_layer = pool.map(partial(_layer, key, lines, resamples, spec), lens.layers)
    found = [row for part in by_layer for row in part]
    if lens.run.final_layer not in lens.layers:
        progress.note(f"{where}: the final layer {lens.run.final_layer} is not stored, so there is no prediction depth")
        return found + counted, tables.joined([])
    depth = _depth(lines, lens.layers)
    for metric, statistic in (("prediction_depth", weighted_mean), ("prediction_depth_median", _median)):
        found += _estimate(key, metric, depth["depth"].to_numpy(), statistic, resamples)
    each = kept.join(depth, on="sample_id", how="left", maintain_order="left")
    ids = each["sample_id"].to_numpy().astype(str)
    return found + counted, tables.scores(
        key, "prediction_depth", each["row"].to_numpy(), ids, each["depth"].to_numpy()
    )


def _layer(key: Row, lines: pl.DataFrame, resamples: Resamples, spec: EntropySpec, layer: int) -> list[Row]:
    """Summarise one layer of a position."""
    here = lines.filter(pl.col("layer") == layer).sort("sample_id")
    key = {**key, "layer": layer}
    found = []
    for metric, column, statistic in _statistics(spec):
        values = here[column].cast(pl.Float64)
        known = values.is_not_null().to_numpy()
        if known.any():
            used = resamples if known.all() else bootstrap.draw(np.arange(int(known.sum())), spec.bootstrap, spec.seed)
            found += _estimate(key, metric, values.drop_nulls().to_numpy(), statistic, used)
    return found


def _statistics(spec: EntropySpec) -> Iterator[tuple[str, str, Statistic]]:
    """Yield every metric of a layer: its name, its column and the statistic over samples."""
    yield "entropy", "entropy", weighted_mean
    for q in dict.fromkeys(spec.quantiles):
        yield f"entropy_q{100 * q:g}", "entropy", partial(weighted_quantile, q=q)
    for name in ("kl_to_final", "js_to_final", "agrees_with_final", "target_logprob"):
        yield name, name, weighted_mean
    yield "target_rank", "target_rank", _median


def _median(values: Floats, weights: Weights) -> Floats:
    return weighted_quantile(values, weights, q=0.5)


def _estimate(
    key: Row, metric: str, values: npt.NDArray[np.floating], statistic: Statistic, resamples: Resamples
) -> list[Row]:
    wide = values.astype(np.float64)
    one = bootstrap.estimate(lambda weights: statistic(wide, weights), resamples)
    return tables.row(key, metric, one.value, len(wide), one.low, one.high)


def _depth(lines: pl.DataFrame, layers: list[int]) -> pl.DataFrame:
    """Return each sample's prediction depth: `sample_id`, `depth`, sorted by sample."""
    ordered = lines.sort("sample_id", "layer")
    agrees = ordered["agrees_with_final"].to_numpy().reshape(-1, len(layers))
    streak = np.cumprod(agrees[:, ::-1], axis=1).sum(axis=1)
    # The final layer agrees with itself; after the final norm there are no lens rows.
    depth = np.array(layers)[len(layers) - np.maximum(streak, 1)]
    return pl.DataFrame(
        {"sample_id": ordered["sample_id"].unique(maintain_order=True), "depth": depth.astype(np.float64)}
    )
