"""chrF (Popović 2015) by sacreBLEU: the corpus score, a score a text, and what both are made of."""

from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import CHRF


class Chrf(evaluate.Metric):  # type: ignore[misc]
    """chrF2 with sacreBLEU's defaults: character n-grams up to 6, no words, 0 to 100.

    `compute` returns `chrf`; `sentence_chrf`, a list; `statistics`, a list of [n-grams of the hypothesis, of the
    reference, matches] a text and order, against the reference that scores best.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="https://aclanthology.org/W15-3049",
            inputs_description="predictions: a text each. references: a list of texts each.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        metric = CHRF()
        most = max(map(len, references))
        streams = [[own[at] if at < len(own) else None for own in references] for at in range(most)]
        # The methods that sacreBLEU's own significance tests call from outside the class.
        statistics = metric._extract_corpus_statistics(predictions, streams)
        return {
            "chrf": metric._aggregate_and_compute(statistics).score,
            "sentence_chrf": [metric._compute_score_from_stats(one).score for one in statistics],
            "statistics": statistics,
        }
