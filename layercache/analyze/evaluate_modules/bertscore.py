"""BERTScore (Zhang et al. 2020) by bert-score, each distinct text embedded once. Needs torch and transformers."""

from typing import Any

import datasets
import evaluate

from layercache.analyze import bertscore


class Bertscore(evaluate.Metric):  # type: ignore[misc]
    """Precision, recall and F1 of greedily matched token embeddings, without rescaling; empty texts score 0.

    `compute` takes `model` (a folder or a hub name) and perhaps `layer`, and returns the means `bertscore_precision`,
    `bertscore_recall`, `bertscore_f1` and lists of them a text: `sentence_bertscore_precision`, ….
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="https://openreview.net/forum?id=SkeHuCVFDr",
            inputs_description="predictions: a text each. references: a list of texts each.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], model: str, layer: int | None = None
    ) -> dict[str, Any]:
        encoder = bertscore.load(model, layer)
        found = bertscore.scores(encoder, predictions, references)
        names = [f"bertscore_{name}" for name in ("precision", "recall", "f1")]
        means = dict(zip(names, found.mean(axis=0).tolist()))
        return {**means, **{f"sentence_{name}": found[:, at].tolist() for at, name in enumerate(names)}}
