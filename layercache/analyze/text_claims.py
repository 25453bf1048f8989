"""Two claims about generated text, put to the numbers.

*Is poor quality due to quantisation?* Two runs that differ in nothing else are compared row by row: the score of the
quantised one minus the other's, with a paired interval.

*Does consistency between layers say whether an answer is right?* The lens at the prompt's last position is read at every
layer; the area under the ROC curve is the probability that a right answer looks more consistent than a wrong one: lower
entropy, smaller distance from the last layer, the last layer's most probable token. Half means that it says nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze import bootstrap, metrics, tables, text_scores
from layercache.analyze.metrics import Classes, Floats, Weights
from layercache.analyze.tables import Row
from layercache.analyze.text_data import Texts
from layercache.analyze.text_scores import Scored
from layercache.progress import Progress
from layercache.recipe import TextSpec
from layercache.store import captured
from layercache.store.layout import Run
from layercache.store.reader import Store

ByLayer = dict[int, dict[str, Scored]]
"""Of every layer, every metric on the same rows."""

POSITION = "last@prompt"
# How consistency shows: less entropy and distance, more agreement.
_SIGNS = {"entropy": -1, "kl_to_final": -1, "js_to_final": -1, "agrees_with_final": 1}


def key(texts: Texts) -> Row:
    """Return the columns that every number of these texts shares."""
    shared = {"run": texts.run.id, "data": texts.data, "analysis": "text", "condition": "clean"}
    return {**shared, "label": texts.label, "group": texts.output}


def quantised(found: Sequence[Texts], parts: Sequence[ByLayer], names: Sequence[str], spec: TextSpec) -> list[Row]:
    """Return `<metric>_minus_other` of every quantised run and the run that is the same but for that."""
    rows: list[Row] = []
    for ours, mine in zip(found, parts):
        for theirs, other in zip(found, parts):
            same_texts = (ours.data, ours.output, ours.label) == (theirs.data, theirs.output, theirs.label)
            if same_texts and differ_in_quantisation(ours.run, theirs.run):
                rows += _differences(ours, mine, theirs, other, names, spec)
    return rows


def differ_in_quantisation(run: Run, other: Run) -> bool:
    """Tell whether `run` is quantised, `other` is not, and everything else that changes a number is the same."""
    ours, theirs = (dict(one.spec) for one in (run, other))
    return ours.pop("quantization", None) is not None and theirs.pop("quantization", None) is None and ours == theirs


def _differences(
    ours: Texts, mine: ByLayer, theirs: Texts, other: ByLayer, names: Sequence[str], spec: TextSpec
) -> Iterator[Row]:
    """Yield the difference of every layer and metric, on the rows that both have, with the same draws for both."""
    _, at, other_at = np.intersect1d(ours.rows, theirs.rows, return_indices=True)
    alike = ours.sample_ids[at] == theirs.sample_ids[other_at]
    at, other_at = at[alike], other_at[alike]
    if not len(at):
        return
    resamples = bootstrap.draw(np.unique(ours.sample_ids[at], return_inverse=True)[1], spec.bootstrap, spec.seed)
    for layer in sorted(set(mine) & set(other)):
        here = text_scores.estimates([mine[layer][name].take(at) for name in names], resamples)
        there = text_scores.estimates([other[layer][name].take(other_at) for name in names], resamples)
        for name, a, b in zip(names, here, there):
            one = bootstrap.around(a.value - b.value, a.resampled - b.resampled)
            place = {**key(ours), "layer": layer, "other_run": theirs.run.id, "other_layer": layer}
            yield from tables.row(place, f"{name}_minus_other", one.value, len(at), one.low, one.high)


def foretold(store: Store, texts: Texts, by_layer: ByLayer, spec: TextSpec, progress: Progress) -> Iterator[Row]:
    """Yield how well the lens of each layer tells right answers from wrong ones: `auc_entropy` and the like."""
    last = by_layer.get(texts.run.final_layer, {})
    if spec.correct not in last:
        return
    right = last[spec.correct].values >= spec.correct_above
    where = f"{texts.run.id}, {texts.data}, {texts.output}"
    share = bootstrap.draw(np.unique(texts.sample_ids, return_inverse=True)[1], spec.bootstrap, spec.seed)
    one = bootstrap.estimate(lambda weights: metrics.weighted_mean(right.astype(np.float64), weights), share)
    final = {**key(texts), "layer": texts.run.final_layer}
    yield from tables.row(final, "answer_correct", one.value, len(right), one.low, one.high)
    lens = _lens(store, texts)
    if lens.is_empty():
        return
    index = {name: at for at, name in enumerate(lens["sample_id"].unique(maintain_order=True))}
    kept = np.array([name in index for name in texts.sample_ids.tolist()])
    if right[kept].all() or not right[kept].any():
        said = "right" if right[kept].all() else "wrong"
        progress.note(f"{where}: all answers are {said} by {spec.correct}, so the lens has nothing to tell apart")
        return
    at = np.array([index[name] for name in texts.sample_ids[kept].tolist()])
    resamples = bootstrap.draw(at, spec.bootstrap, spec.seed)
    for (layer,), here in lens.group_by("layer", maintain_order=True):
        for name, sign in _SIGNS.items():
            if layer == texts.run.final_layer and name != "entropy":
                continue  # its distance from itself is rounding, which ranks nothing
            shown = sign * here[name].cast(pl.Float64).to_numpy()[at]
            if np.ptp(shown) > 0:
                one = bootstrap.estimate(_area(right[kept], shown), resamples)
                place = {**key(texts), "layer": layer, "position": POSITION}
                yield from tables.row(place, f"auc_{name}", one.value, len(at), one.low, one.high)


def _area(right: npt.NDArray[np.bool_], shown: Floats) -> Callable[[Weights], Floats]:
    """Return the area under the ROC curve as a function of weights [n, b]."""
    given = Classes(right.astype(np.int64), np.column_stack([-shown, shown]), np.zeros(len(right), np.int64))
    return lambda weights: metrics.auc(given, weights)


def _lens(store: Store, texts: Texts) -> pl.DataFrame:
    """Read the lens of these texts' samples: only samples that have it at every stored layer, sorted by sample."""
    frame = captured.lens(store, texts.run, POSITION, list(_SIGNS))
    frame = frame.filter(pl.col("sample_id").is_in(np.unique(texts.sample_ids).tolist()))
    return frame.filter(pl.len().over("sample_id") == pl.col("layer").n_unique())
