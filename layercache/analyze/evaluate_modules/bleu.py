"""BLEU (Papineni et al. 2002) by sacreBLEU: the corpus score, a sentence score a text, and what both are made of."""

from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import BLEU


class Bleu(evaluate.Metric):  # type: ignore[misc]
    """BLEU with sacreBLEU's defaults: 13a tokens, case kept, exponential smoothing, 0 to 100.

    `compute` returns `bleu`; `sentence_bleu`, a list, whose order of n-grams is cut to what a short text has
    (`effective_order`, as sacreBLEU's own sentence score); `statistics`, a list [hypothesis length, reference length,
    four counts of matches, four counts of n-grams] a text.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="https://aclanthology.org/W18-6319",
            inputs_description="predictions: a text each. references: a list of texts each.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        metric, sentence = BLEU(force=True), BLEU(effective_order=True)
        most = max(map(len, references))
        streams = [[own[at] if at < len(own) else None for own in references] for at in range(most)]
        # The methods that sacreBLEU's own significance tests call from outside the class.
        statistics = metric._extract_corpus_statistics(predictions, streams)
        return {
            "bleu": metric._aggregate_and_compute(statistics).score,
            "sentence_bleu": [sentence._compute_score_from_stats(list(one)).score for one in statistics],
            "statistics": statistics,
        }
