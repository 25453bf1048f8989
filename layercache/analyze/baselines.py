"""What a probe is held against: the mean or majority, a tuned tf-idf model of the prompt, shuffled labels."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import Ridge

from layercache.analyze.folds import Folds, held_back, training
from layercache.analyze.logistic import choose, log_loss, probabilities, weigh
from layercache.analyze.scaling import Floats, Ints, in_order

Bools = npt.NDArray[np.bool_]

ALPHAS = (10.0, 3.0, 1.0, 0.3, 0.1)
"""Penalties of ridge regression on tf-idf rows, the strongest first."""
PENALTIES = (0.3, 3.0, 30.0)
"""Values of C of logistic regression on tf-idf rows, the strongest penalty first."""
MAX_TERMS = 20_000
"""Of the terms that two fitted rows have, as many as this are used, the most frequent first."""
_WORD = r"(?u)\b\w+\b"


class _Model(NamedTuple):
    """A kind of linear model: its penalties, the strongest first; how it is fitted; its loss.

    `fit` takes rows of tf-idf, which rows of the data they are and a penalty, and returns weights
    [terms + 1, t], the intercepts last; `loss` takes scores [n, t] and which rows they are of.
    """

    penalties: tuple[float, ...]
    fit: Callable[[csr_array, Bools, float], Floats]
    loss: Callable[[Floats, Bools], float]


def expected(y: Floats, folds: Folds) -> Floats:
    """Predict each fold's fitted mean [n], NaN for rows in no fold."""
    prediction = np.full(len(y), np.nan)
    for fold in range(folds.k):
        prediction[folds.assignment == fold] = y[training(folds.assignment, fold)].mean()
    return prediction


def majority(y: Ints, classes: int, folds: Folds) -> Floats:
    """Give each fold's most frequent fitted class probability 1, [n, classes]; the first of equal ones."""
    probability = np.full((len(y), classes), np.nan)
    for fold in range(folds.k):
        most = np.bincount(y[training(folds.assignment, fold)], minlength=classes).argmax()
        probability[folds.assignment == fold] = np.eye(classes)[most]
    return probability


def shuffle(y: Floats | Ints, groups: Ints, seed: int) -> Floats | Ints:
    """Permute the values y [n] across groups: groups are lined up anew and deal their values out in turn.

    Rows of one group mostly keep values that came from one group, so that the permuted labels are tied
    together as the true ones are.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    place = rng.permutation(int(groups.max()) + 1)
    values = y[np.lexsort((rng.permutation(len(y)), place[groups]))]
    shuffled = np.empty_like(y)
    shuffled[order] = values
    return shuffled


def term_counts(texts: list[str]) -> list[csr_array]:
    """Count each text's terms: words and pairs of words, then 2- to 4-grams of characters within words.

    A kind of term that no text has is left out; where none has any, the one column is empty.
    """
    words = CountVectorizer(dtype=np.float64, ngram_range=(1, 2), token_pattern=_WORD)
    characters = CountVectorizer(dtype=np.float64, ngram_range=(2, 4), analyzer="char_wb")
    kinds = ((words, re.compile(r"\w")), (characters, re.compile(r"\S")))
    found = [csr_array(kind.fit_transform(texts)) for kind, some in kinds if any(some.search(text) for text in texts)]
    return found or [csr_array((len(texts), 1))]


def tfidf_numbers(counts: list[csr_array], y: Floats, folds: Folds, pool: ThreadPoolExecutor | None = None) -> Floats:
    """Predict a number from text: ridge regression on tf-idf rows, [n], NaN for rows in no fold.

    The kind of term and the penalty are chosen inside each fold by squared error on a held-back fifth of the
    fitted rows.
    """

    def fit(rows: csr_array, which: Bools, penalty: float) -> Floats:
        model = Ridge(alpha=penalty, solver="sparse_cg").fit(rows, y[which])
        return np.append(model.coef_, model.intercept_)[:, None]

    def loss(scores: Floats, which: Bools) -> float:
        return float(((scores[:, 0] - y[which]) ** 2).mean())

    return _cross_validate(counts, folds, _Model(ALPHAS, fit, loss), pool)[:, 0]


def tfidf_classes(
    counts: list[csr_array], y: Ints, classes: int, folds: Folds, pool: ThreadPoolExecutor | None = None
) -> Floats:
    """Predict a class from text: logistic regression on tf-idf rows, [n, classes], NaN for rows in no fold.

    The kind of term and C are chosen inside each fold by log loss on a held-back fifth of the fitted rows.
    """

    def fit(rows: csr_array, which: Bools, penalty: float) -> Floats:
        return weigh(rows, y[which], classes, penalty, tolerance=1e-4)

    def loss(scores: Floats, which: Bools) -> float:
        return log_loss(scores, y[which])

    return probabilities(_cross_validate(counts, folds, _Model(PENALTIES, fit, loss), pool))


def _cross_validate(counts: list[csr_array], folds: Folds, model: _Model, pool: ThreadPoolExecutor | None) -> Floats:
    """Score every held-out row, [n, t]."""
    parts = in_order(pool, lambda fold: _held_out(counts, folds, fold, model), folds.k)
    scores = np.full((len(folds.assignment), parts[0].shape[1]), np.nan)
    for fold, part in enumerate(parts):
        scores[folds.assignment == fold] = part
    return scores


def _held_out(counts: list[csr_array], folds: Folds, fold: int, model: _Model) -> Floats:
    """Choose terms and a penalty inside a fold, fit all of its rows, score the held-out ones."""
    fitted = training(folds.assignment, fold)
    terms, penalty = _choice(counts, folds, fitted, model)
    rows, held = _weigh(counts[terms], fitted, folds.assignment == fold)
    weights = model.fit(rows, fitted, penalty)
    return np.asarray(held @ weights[:-1] + weights[-1])


def _choice(counts: list[csr_array], folds: Folds, fitted: Bools, model: _Model) -> tuple[int, float]:
    """Return which terms and which penalty do best on a held-back part of the fitted rows."""
    back = np.zeros_like(fitted)
    back[fitted] = held_back(folds.inner[fitted])
    front = fitted & ~back
    if not back.any():
        return 0, model.penalties[len(model.penalties) // 2]
    tried = []
    for terms, counted in enumerate(counts):
        rows, held = _weigh(counted, front, back)

        def loss(penalty: float, rows: csr_array = rows, held: csr_array = held) -> float:
            weights = model.fit(rows, front, penalty)
            return model.loss(held @ weights[:-1] + weights[-1], back)

        penalty, value = choose(model.penalties, loss)
        tried.append((value, terms, penalty))
    _, terms, penalty = min(tried)
    return terms, penalty


def _weigh(counts: csr_array, fitted: Bools, held: Bools) -> tuple[csr_array, csr_array]:
    """Turn counts into tf-idf rows of length 1, terms and weights taken from the fitted rows alone."""
    rows = counts[np.flatnonzero(fitted)]
    seen = np.bincount(rows.indices, minlength=counts.shape[1])
    kept = np.flatnonzero(seen >= 2)
    kept = np.sort(kept[np.argsort(-seen[kept], kind="stable")[:MAX_TERMS]])
    if not len(kept):
        return csr_array((rows.shape[0], 1)), csr_array((int(held.sum()), 1))
    weigher = TfidfTransformer(sublinear_tf=True).fit(rows[:, kept])
    weighed = [weigher.transform(part[:, kept]) for part in (rows, counts[np.flatnonzero(held)])]
    return csr_array(weighed[0]), csr_array(weighed[1])
