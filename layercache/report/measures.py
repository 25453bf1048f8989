"""What the numbers of `analyze.metrics.METRICS` are called on axes and in sentences, and how far they can go."""

from collections.abc import Collection
from typing import NamedTuple


class Measure(NamedTuple):
    """How a metric of the `results` table is shown.

    Attributes:
        name: in a sentence.
        axis: on an axis, with the unit.
        low, high: the ends of its scale; None where it has none.
        floor: where the axis stops at the latest, for a scale without a lower end that can go very far down.
        rising: whether more is better.
    """

    name: str
    axis: str
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    rising: bool = True


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("accuracy", "accuracy (share right)", 0, 1),
    "balanced_accuracy": Measure("balanced accuracy", "balanced accuracy (mean recall)", 0, 1),
    "macro_f1": Measure("macro F1", "macro F1", 0, 1),
    "auc": Measure("AUC", "area under the ROC curve", 0, 1),
    "r2": Measure("R²", "R² (share of variance)", None, 1, floor=-0.5),
    "spearman": Measure("Spearman correlation", "Spearman rank correlation", -1, 1),
    "mse": Measure("mean squared error", "mean squared error (label's unit, squared)", 0, rising=False),
    "entropy": Measure("entropy", "entropy (nats)", 0, rising=False),
    "kl_to_final": Measure("KL from the last layer", "KL from the last layer (nats)", 0, rising=False),
    "js_to_final": Measure("JS divergence", "JS divergence from the last layer (nats)", 0, rising=False),
    "agrees_with_final": Measure("agreement", "same top token as the last layer (share)", 0, 1),
    "target_logprob": Measure("target's log-probability", "log-probability of the target (nats)", None, 0),
    "target_rank": Measure("target's rank", "median rank of the target (0 = first)", 0, rising=False),
}
HEADLINE = ("balanced_accuracy", "r2", "auc", "accuracy", "spearman", "mse")
"""The metric a probe's figure shows is the first of these that was computed; the others are one click away."""

BASELINES = {"tf-idf": "tf-idf", "majority": "majority class", "mean": "mean", "shuffled": "shuffled labels"}
"""What the baselines that the `group` column names are called, in the order of legends."""


def measure(metric: str) -> Measure:
    """Return how a metric is shown; one that is not listed gets its own name and no ends."""
    return MEASURES.get(metric) or Measure(metric.replace("_", " "), metric.replace("_", " "))


def headline(metrics: Collection[str]) -> str:
    """Return the metric a figure shows first."""
    return next((one for one in HEADLINE if one in metrics), min(metrics))
