"""Scores of the text that every layer wrote: quality by layer, what quantisation costs, what consistency foretells.

A row's text is compared with the row's own references, so rows that share a sample may differ in their scores; intervals
are bootstrapped over samples, with the same draws for every layer and metric. Only rows with text at every stored layer
are scored, so that all layers speak of the same rows. `layer` is the layer that wrote, `group` the generated output,
`label` the columns of references.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from layercache import engine
from layercache.analyze import bootstrap, tables, text_claims, text_data, text_scores
from layercache.analyze.tables import Row
from layercache.analyze.text_claims import ByLayer
from layercache.analyze.text_data import Texts, Written
from layercache.progress import Progress
from layercache.recipe import TextSpec
from layercache.store.reader import Store
from layercache.store.results import Outcome

_FOUR_GRAMS = 9
"""Where BLEU's statistics count the 4-grams of the hypothesis."""


def text(store: Store, spec: TextSpec, progress: Progress) -> Outcome:
    """Score the text of every layer, for every run, data set and generated output asked for.

    Raises:
        AnalysisError: no text or no reference is stored, a name is not known, or a library is not installed.
    """
    metrics = text_scores.asked(spec)
    compared = any(name not in text_scores.REFERENCE_FREE for name in metrics)
    found = text_data.read_all(store, spec, compared, progress)
    parts = _score(found, metrics, spec, progress)
    rows: list[Row] = []
    scores: list[pa.Table] = []
    with progress.task("text", len(found), "outputs") as bar:
        # The texts themselves are scored by now.
        items = ((texts._replace(written={}), by_layer) for texts, by_layer in zip(found, parts))
        for piece in engine.each(partial(_piece, store, metrics, spec), items, what="text"):
            rows += piece.rows
            scores += piece.scores
            piece.say(progress)
            bar.advance()
    rows += text_claims.quantised(found, parts, metrics, spec)
    return Outcome(tables.results(rows), tables.joined(scores))


def _piece(store: Store, metrics: list[str], spec: TextSpec, of: tuple[Texts, ByLayer]) -> tables.Piece:
    """Summarise the scores of one run, data set and output."""
    found, (texts, by_layer) = tables.Piece(), of
    found.rows += _results(texts, by_layer, metrics, spec)
    found.rows += text_claims.foretold(store, texts, by_layer, spec, found.notes)
    found.scores += _sample_scores(texts, by_layer, metrics)
    _note_short(texts, by_layer, found.notes)
    return found


def _score(found: list[Texts], metrics: list[str], spec: TextSpec, progress: Progress) -> list[ByLayer]:
    """Score every distinct text once; return, for each of `found`, every metric of every layer."""
    distinct = list(dict.fromkeys(one for texts in found for own in texts.written.values() for one in own))
    # What decides whether an answer is right is needed, shown or not.
    decides = [spec.correct] if all(texts.label for texts in found) else []
    families = text_scores.families([*metrics, *decides])
    scored = {}
    with progress.task("scores", len(families), "metrics") as bar:
        for one in engine.each(partial(_family, distinct, spec), families if distinct else [], what="text scores"):
            scored.update(one)
            bar.advance()
    place = {one: at for at, one in enumerate(distinct)}
    parts: list[ByLayer] = []
    for texts in found:
        index = {layer: np.array([place[one] for one in own]) for layer, own in texts.written.items()}
        parts.append({layer: {name: one.take(at) for name, one in scored.items()} for layer, at in index.items()})
    return parts


def _family(distinct: list[Written], spec: TextSpec, compute: text_scores.Family) -> dict[str, text_scores.Scored]:
    return compute(distinct, spec)


def _results(texts: Texts, by_layer: ByLayer, metrics: Sequence[str], spec: TextSpec) -> list[Row]:
    """Return every metric of every layer with its interval, and how many rows are not among the scored."""
    resamples = bootstrap.draw(np.unique(texts.sample_ids, return_inverse=True)[1], spec.bootstrap, spec.seed)
    n = len(texts.rows)
    found = []
    for layer, scored in by_layer.items():
        estimates = text_scores.estimates([scored[name] for name in metrics], resamples)
        for name, one in zip(metrics, estimates):
            found += tables.row({**text_claims.key(texts), "layer": layer}, name, one.value, n, one.low, one.high)
    return found + tables.row(text_claims.key(texts), "left_out", texts.left_out, n + texts.left_out)


def _sample_scores(texts: Texts, by_layer: ByLayer, metrics: Sequence[str]) -> list[pa.Table]:
    """Return the score of every row's text by every layer and metric."""
    return [
        tables.scores(
            {**text_claims.key(texts), "layer": layer}, name, texts.rows, texts.sample_ids, scored[name].values
        )
        for layer, scored in by_layer.items()
        for name in metrics
    ]


def _note_short(texts: Texts, by_layer: ByLayer, progress: Progress) -> None:
    """Say that BLEU of a corpus without any four words in a row is 0, whatever the texts say."""
    scored = by_layer[texts.layers[-1]].get("bleu")
    if scored is not None and not scored.statistics[:, _FOUR_GRAMS].any():
        where = f"{texts.run.id}, {texts.data}, {texts.output}"
        progress.note(f"{where}: no text of the last layer has four words, so BLEU is 0; read chrF or token F1")
