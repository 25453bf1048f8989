"""Scores of single texts, and how those of many become one number.

Every metric is a score a text and a row of *statistics* a text; the score of many texts is a function of the sum of
their statistics. For most that is a mean, whose statistics are (score, 1). BLEU and chrF of a corpus are not the means
of their sentence scores: their statistics are counts of n-grams, and a bootstrap resample is a sum of counts too.
"""

import re
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layercache.analyze import bootstrap
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.text_data import Written
from layercache.errors import AnalysisError
from layercache.recipe import TEXT_METRICS, TextSpec

Floats = npt.NDArray[np.float64]

REFERENCE_FREE = ("distinct_1", "distinct_2", "repetition", "empty")
_REPEATED = 4
"""Length of the n-grams that `repetition` counts."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Scored(NamedTuple):
    """One metric of n texts.

    Attributes:
        values: the score of each text alone, [n].
        statistics: what sums over texts, [n, s].
        total: the score of many texts, from their sum of statistics [s].
    """

    values: Floats
    statistics: Floats
    total: Callable[[Floats], float]

    def take(self, index: npt.NDArray[np.int64]) -> "Scored":
        """Return the metric of chosen texts, int64 [chosen], in their order."""
        return Scored(self.values[index], self.statistics[index], self.total)


Family = Callable[[Sequence[Written], TextSpec], dict[str, Scored]]
"""Computes metrics of texts that belong together."""


def asked(spec: TextSpec) -> list[str]:
    """List the metrics to compute, in the order of `TEXT_METRICS`."""
    if spec.metrics is not None:
        return [name for name in TEXT_METRICS if name in spec.metrics]
    return [name for name in TEXT_METRICS if spec.bertscore_model or not name.startswith("bertscore")]


def families(metrics: Sequence[str]) -> list[Family]:
    """List the functions that compute the metrics; each takes distinct texts and returns one or several metrics.

    An empty text scores 0 by every metric, and 1 by `empty`. The functions raise AnalysisError where a library that they
    need is not installed, or BERTScore's model cannot be used.
    """
    return [compute for names, compute in _FAMILIES if any(name in metrics for name in names)]


def estimates(scored: Sequence[Scored], resamples: Resamples) -> list[Estimate]:
    """Score all texts together by every metric, with intervals; the draws are the same for all metrics."""
    ends = np.cumsum([0, *(one.statistics.shape[1] for one in scored)])
    summed = bootstrap.sums(np.hstack([one.statistics for one in scored]), resamples)
    found = []
    for one, start, end in zip(scored, ends[:-1], ends[1:]):
        totals = np.array([one.total(row) for row in summed[:, start:end]])
        found.append(bootstrap.around(float(totals[0]), totals[1:]))
    return found


def normalise(text: str) -> str:
    """Bring an answer into the form in which it is compared: SQuAD's, for any script.

    Lower case, without punctuation, articles and surplus space (Rajpurkar et al. 2016), after Unicode's NFKC. An
    article or punctuation that is all there is stays: "A" may be the name of a choice.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        char for char in folded if char not in string.punctuation and not unicodedata.category(char).startswith("P")
    )
    words = _ARTICLES.sub(" ", kept).split() or kept.split() or folded.split()
    return " ".join(words)


def token_f1(text: str, reference: str) -> float:
    """F1 of the words that a normalised text and reference share, as often as both have them (SQuAD)."""
    ours, theirs = normalise(text).split(), normalise(reference).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def distinct(items: Sequence[object], n: int) -> float:
    """Share of a text's n-grams that are distinct (Li et al. 2016, within one text); 0 where it has none."""
    grams = [tuple(items[at : at + n]) for at in range(len(items) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(tokens: Sequence[int]) -> float:
    """Share of a text's 4-grams of tokens that were there before: seq-rep-4 of Welleck et al. 2020."""
    return 1 - distinct(tokens, _REPEATED) if len(tokens) > _REPEATED else 0.0


def _mean(values: Sequence[float] | Floats) -> Scored:
    each = np.asarray(values, dtype=np.float64)
    return Scored(each, np.column_stack([each, np.ones(len(each))]), _ratio)


def _ratio(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def _answers(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    exact = [max(float(normalise(one.text) == normalise(ref)) for ref in one.references) for one in written]
    overlap = [max(token_f1(one.text, ref) for ref in one.references) for one in written]
    full = np.array([not one.empty for one in written], dtype=np.float64)
    return {"exact_match": _mean(full * exact), "token_f1": _mean(full * overlap)}


def _length(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    """Words for each word of the reference that is closest in length; of many texts, all words for all words."""
    ours = [len(one.text.split()) for one in written]
    theirs = [
        min((len(ref.split()) for ref in one.references), key=lambda length: (abs(length - words), length))
        for one, words in zip(written, ours)
    ]
    counts = np.column_stack([ours, theirs]).astype(np.float64)
    return {"length_ratio": Scored(counts[:, 0] / counts[:, 1], counts, _ratio)}


def _variety(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    return {
        "distinct_1": _mean([distinct(one.text.split(), 1) for one in written]),
        "distinct_2": _mean([distinct(one.text.split(), 2) for one in written]),
        "repetition": _mean([0.0 if one.empty else repetition(one.tokens) for one in written]),
        "empty": _mean([float(one.empty) for one in written]),
    }


def _bleu(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    found = _compute("bleu", written)
    from sacrebleu.metrics import BLEU

    metric = BLEU(force=True)
    statistics = np.array(found["statistics"], dtype=np.float64)
    return {"bleu": Scored(np.array(found["sentence_bleu"]), statistics, _sacrebleu_total(metric))}


def _chrf(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    found = _compute("chrf", written)
    from sacrebleu.metrics import CHRF

    statistics = np.array(found["statistics"], dtype=np.float64)
    return {"chrf": Scored(np.array(found["sentence_chrf"]), statistics, _sacrebleu_total(CHRF()))}


def _sacrebleu_total(metric: Any) -> Callable[[Floats], float]:
    """Return sacreBLEU's own corpus score of summed counts, as its significance tests compute it."""
    return lambda sums: float(metric._compute_score_from_stats([int(count) for count in sums]).score)


def _rouge(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    found = _compute("rouge", written)
    return {name: _mean(found[f"sentence_{name}"]) for name in ("rouge_1", "rouge_2", "rouge_l")}


def _bertscore(written: Sequence[Written], spec: TextSpec) -> dict[str, Scored]:
    found = _compute("bertscore", written, model=spec.bertscore_model, layer=spec.bertscore_layer)
    return {name: _mean(found[f"sentence_{name}"]) for name in BERTSCORE}


def _compute(module: str, written: Sequence[Written], **settings: Any) -> dict[str, Any]:
    """Call a module of `evaluate_modules` on texts; nothing is fetched and nothing left on the disk."""
    from importlib import import_module

    try:
        found = import_module(f"layercache.analyze.evaluate_modules.{module}")
    except ImportError as error:
        library = str(error.name).partition(".")[0]
        raise AnalysisError(f"scoring text needs {library}: pip install 'layercache[text]'") from error
    metric = getattr(found, module.capitalize())
    with tempfile.TemporaryDirectory(prefix="layercache-") as folder:
        computed: dict[str, Any] = metric(cache_dir=folder, keep_in_memory=True).compute(
            predictions=[one.text for one in written], references=[list(one.references) for one in written], **settings
        )
    return computed


BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
_FAMILIES: tuple[tuple[tuple[str, ...], Family], ...] = (
    (("bleu",), _bleu),
    (("chrf",), _chrf),
    (("rouge_1", "rouge_2", "rouge_l"), _rouge),
    (("exact_match", "token_f1"), _answers),
    (("length_ratio",), _length),
    (REFERENCE_FREE, _variety),
    (BERTSCORE, _bertscore),
)
"""Metrics that are computed together, and the function that does."""
