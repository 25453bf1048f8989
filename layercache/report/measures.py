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
    "choice_ece": Measure("calibration error", "expected calibration error", 0, 1, rising=False),
    "choice_brier": Measure("Brier score", "Brier score", 0, 2, rising=False),
    "choice_mass": Measure("mass on the choices", "probability of all choices together", 0, 1),
    "choice_accuracy_minus_base": Measure("change of the answers' accuracy", "answers' accuracy: adapted minus base"),
    "probe_accuracy_minus_base": Measure("change of the probe's accuracy", "probe accuracy: adapted minus base"),
    "entropy_minus_base": Measure("change of entropy", "lens entropy: adapted minus base (nats)", rising=False),
    "cka_with_base": Measure("CKA with the base", "linear CKA with the base's states", 0, 1),
    "r2": Measure("R²", "R² (share of variance)", None, 1, floor=-0.5),
    "spearman": Measure("Spearman correlation", "Spearman rank correlation", -1, 1),
    "mse": Measure("mean squared error", "mean squared error (label's unit, squared)", 0, rising=False),
    "entropy": Measure("entropy", "entropy (nats)", 0, rising=False),
    "kl_to_final": Measure("KL from the last layer", "KL from the last layer (nats)", 0, rising=False),
    "js_to_final": Measure("JS divergence", "JS divergence from the last layer (nats)", 0, rising=False),
    "agrees_with_final": Measure("agreement", "same top token as the last layer (share)", 0, 1),
    "bleu": Measure("BLEU", "BLEU (0 to 100)", 0),
    "chrf": Measure("chrF", "chrF2 (0 to 100)", 0),
    "rouge_1": Measure("ROUGE-1", "ROUGE-1 (F-measure)", 0),
    "rouge_2": Measure("ROUGE-2", "ROUGE-2 (F-measure)", 0),
    "rouge_l": Measure("ROUGE-L", "ROUGE-L (F-measure)", 0),
    "bertscore_precision": Measure("BERTScore precision", "BERTScore precision", None),
    "bertscore_recall": Measure("BERTScore recall", "BERTScore recall", None),
    "bertscore_f1": Measure("BERTScore F1", "BERTScore F1", None),
    "exact_match": Measure("exact match", "exact match (share of rows)", 0),
    "token_f1": Measure("token F1", "token F1", 0),
    "length_ratio": Measure("length ratio", "words for each word of the reference", 0),
    "repetition": Measure("repetition", "repeated 4-grams (share)", 0, 1, rising=False),
    "empty": Measure("empty outputs", "empty outputs (share of rows)", 0, 1, rising=False),
    "answer_correct": Measure("right answers", "right answers (share of rows)", 0, 1),
    "auc_entropy": Measure("AUC of low entropy", "AUC: right answers by low entropy", 0, 1),
    "auc_kl_to_final": Measure("AUC of low KL", "AUC: right answers by low KL from the last layer", 0, 1),
    "auc_js_to_final": Measure("AUC of low JS divergence", "AUC: right answers by low JS from the last layer", 0, 1),
    "auc_agrees_with_final": Measure("AUC of agreement", "AUC: right answers by agreement with the last layer", 0, 1),
    "delta_p": Measure("ΔP", "ΔP (percentage points)", -100, None, rising=False),
    "flip_rate": Measure("flip rate", "flips (share of samples)", 0, 1),
    "auc_within_kind": Measure("AUC within a kind", "AUC within a kind of question", 0, 1),
    "brier": Measure("Brier score", "Brier score", 0, rising=False),
    "ece": Measure("calibration error", "expected calibration error", 0, rising=False),
    "dont_know_rate": Measure("don't-know rate", "answers that say they do not know (share)", 0, 1),
    "log_popularity": Measure("log popularity", "mean ln(1 + popularity)", 0),
    "detection_auc": Measure("AUC of wrong answers", "AUC: wrong answers from right ones", 0, 1),
    "dataset_entropy": Measure("dataset entropy", "dataset entropy (nats)", 0),
    "dataset_entropy_normalized": Measure("dataset entropy (share)", "dataset entropy (share of its most)", 0, 1),
    "dataset_effective_rank": Measure("effective rank", "effective rank of the data set", 0),
    "dataset_mean_cosine": Measure("mean cosine", "mean cosine of two samples", None, 1),
    "dataset_first_pc_share": Measure("first component", "variance along the first component (share)", 0, 1),
    "intrinsic_dimension": Measure("intrinsic dimension", "intrinsic dimension (TwoNN)", 0),
    "infonce": Measure("InfoNCE", "InfoNCE of two views (nats)", 0, rising=False),
    "lidar": Measure("LiDAR", "LiDAR (effective rank)", 0),
    "dime": Measure("DiME", "DiME of two views (nats)", None),
    "cka": Measure("CKA", "linear CKA (debiased)", None, 1),
    "cka_biased": Measure("biased CKA", "linear CKA (biased)", 0, 1),
    "mutual_knn": Measure("common neighbours", "common nearest neighbours (share)", 0, 1),
    "prompt_entropy": Measure("prompt entropy", "prompt entropy (nats)", 0),
    "prompt_entropy_over_ln_min": Measure("prompt entropy (share)", "prompt entropy (share of its most)", 0, 1),
    "effective_rank": Measure("effective rank of a prompt", "effective rank of a prompt's tokens", 0),
    "mean_cosine": Measure("mean cosine of tokens", "mean cosine of two tokens of a prompt", None, 1),
    "first_pc_share": Measure("first component of a prompt", "variance along the first component (share)", 0, 1),
    "norm": Measure("norm", "norm of a token's state (mean)", 0),
    "curvature": Measure("curvature", "curvature (mean angle)", 0),
    "selectivity": Measure("selectivity", "selectivity (score minus the control's)", None, 1, floor=-0.5),
    "mdl": Measure("description length", "online codelength (bits)", 0, rising=False),
    "compression": Measure("compression", "compression (uniform code / online code)", 0),
    "v_information": Measure("usable information", "usable information (bits a row)", None, floor=-1),
    "target_logprob": Measure("target's log-probability", "log-probability of the target (nats)", None, 0),
    "target_rank": Measure("target's rank", "median rank of the target (0 = first)", 0, rising=False),
}
HEADLINE = ("balanced_accuracy", "r2", "auc", "accuracy", "spearman", "mse")
"""The metric a probe's figure shows is the first of these that was computed; the others are one click away."""

BASELINES = {"tf-idf": "tf-idf", "majority": "majority class", "mean": "mean", "shuffled": "shuffled labels"}
"""What the baselines that the `group` column names are called, in the order of legends."""


def measure(metric: str) -> Measure:
    """Return how a metric is shown; one that is not listed gets its own name and no ends."""
    if metric.endswith("_minus_other"):
        of = measure(metric.removesuffix("_minus_other"))
        return Measure(f"change of {of.name}", f"{of.name}: quantised minus not")
    if metric.endswith("_minus_control"):
        of = measure(metric.removesuffix("_minus_control"))
        return Measure(f"{of.name} minus control", f"{of.axis}: change minus control")
    return MEASURES.get(metric) or Measure(metric.replace("_", " "), metric.replace("_", " "))


def headline(metrics: Collection[str]) -> str:
    """Return the metric a figure shows first."""
    return next((one for one in HEADLINE if one in metrics), min(metrics))
