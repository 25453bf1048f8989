"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by Google's rouge-score, on words of any script."""

import re
import unicodedata
from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer

_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
_WORD = re.compile(r"[^\W_]+")


class Words(Tokenizer):  # type: ignore[misc]
    """Lower-case words of letters and digits; rouge-score's own tokenizer drops every letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text; ASCII gives what rouge-score's default (without stemming) gives."""
        return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """F-measures of ROUGE, 0 to 1; of several references the best counts, for each type by itself.

    `compute` returns the means `rouge_1`, `rouge_2`, `rouge_l` and lists of them a text: `sentence_rouge_1`, ….
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="https://aclanthology.org/W04-1013",
            inputs_description="predictions: a text each. references: a list of texts each.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scorer = rouge_scorer.RougeScorer(list(_TYPES.values()), tokenizer=Words())
        found = [scorer.score_multi(own, text) for text, own in zip(predictions, references)]
        each = {name: [float(one[kind].fmeasure) for one in found] for name, kind in _TYPES.items()}
        means = {name: sum(values) / len(values) for name, values in each.items()}
        return {**means, **{f"sentence_{name}": values for name, values in each.items()}}
