"""Metrics of predictions, each computed for many weightings of the rows at once.

A bootstrap resample is a weight a row (how often it was drawn), so every function takes weights
[n, b] and returns a value a column [b]; weights of one give the plain metric. NaN means undefined (no
row of a class, constant predictions).

Ranking metrics (AUC, Spearman) are computed in each fold and averaged: scores of different folds come
from different models, and pooling them would rank one model's scores against another's. The others are
over all held-out rows together.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.bootstrap import estimate as bootstrap_estimate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

METRICS: dict[str, str] = {
    "mse": "mean squared error of held-out predictions, in the label's units squared",
    "r2": "1 - squared error / squared error of the fitted rows' mean, over all held-out rows",
    "spearman": "Spearman's rank correlation of truth and prediction, mean over folds",
    "accuracy": "share of held-out rows whose most probable class is the true one",
    "balanced_accuracy": "mean over classes of the share of the class's rows that are predicted right",
    "macro_f1": "mean over classes of F1",
    "auc": "area under the ROC curve, mean over folds; with more than two classes the mean of one against the rest",
    "best_layer_share": "share of bootstrap resamples in which the layer has the best main metric of its pooling",
    "left_out": "rows of the data set that have no label or no state",
    "prediction": "sample score: held-out prediction of a number",
    "error": "sample score: held-out prediction minus truth",
    "predicted": "sample score: most probable class (text) and its held-out probability (value)",
    "correct": "sample score: 1 where the most probable class is the true one (text), else 0; of delta_p 1 where the answer is right",
    "choice_ece": "expected calibration error of the preferred answer's probability among the choices, 15 bins of equal width",
    "choice_brier": "mean over rows of the sum over choices of (probability among the choices - right)², 0 to 2",
    "choice_mass": "mean probability that the layer's lens gives to all choices together",
    "mse_last_minus_best": "mean squared error of the probe on the last layer minus that on the best, on the same rows",
    "accuracy_last_minus_best": "accuracy of the probe on the last layer minus that on the best, on the same rows",
    "mse_minus_other_run": "mean squared error at a run's best layer minus that at another run's, on the same rows",
    "accuracy_minus_other_run": "accuracy at a run's best layer minus that at another run's, on the same rows",
    "validation_accuracy": "accuracy of an adapter's answers on the rows to validate on, measured when it was trained",
    "validation_nll": "mean surprisal of the right answer on those rows, nats",
    "accuracy_minus_base": "accuracy of a system minus that of the base's own answers, on the same rows",
    "only_right": "rows that the system has right and the base's own answer wrong",
    "only_base_right": "rows that the base's own answer has right and the system wrong",
    "mcnemar_p": "two-sided exact p of McNemar's test that both are as likely; rows are taken as independent",
    "choice_accuracy_minus_base": "accuracy of an adapted layer's preferred answers minus that of the base's same layer",
    "probe_accuracy_minus_base": "accuracy of the probe on an adapted layer minus that on the base's same layer",
    "entropy_minus_base": "entropy of an adapted layer's lens minus that of the base's same layer, mean over rows, nats",
    "cka_with_base": "linear CKA (unbiased HSIC) of the adapted and the base's states of a layer, same samples",
    "cell_accuracy": "accuracy of a cell of the grid of ranks and alphas, mean and Student's interval over seeds",
    "effect": "accuracy at the largest rank (alpha) minus at the smallest, averaged over the other; interaction: how much"
    " more the effect of rank is at the largest alpha than at the smallest; Student's interval over seeds",
    "variance_share": "sum of squares of rank, alpha, their interaction or the seeds over that of all cells (eta squared); not with one seed",
    "anova_p": "p of the F-test of a factor in the two-way analysis of variance with seeds as replicates",
    "entropy": "mean entropy of the lens distribution, nats",
    "entropy_q…": "quantile of that entropy over samples (entropy_q10: the 10 % quantile), nats",
    "kl_to_final": "mean KL divergence of the layer's distribution from the final layer's, nats",
    "js_to_final": "mean Jensen-Shannon divergence from the final layer's distribution, nats",
    "agrees_with_final": "share of samples whose most probable token is the final layer's",
    "target_logprob": "mean log-probability of the followed token, nats",
    "target_rank": "median rank of the followed token, 0 = most probable",
    "prediction_depth": "first layer from which the most probable token stays the final layer's; mean over samples",
    "bleu": "BLEU by sacreBLEU, 0 to 100: of a layer the corpus score (0 where no text has four words), of a row the sentence score",
    "chrf": "chrF2 by sacreBLEU, 0 to 100: of a layer the corpus score, of a row its own",
    "rouge_1": "ROUGE-1 F-measure, 0 to 1, of the best reference; mean over rows",
    "rouge_2": "ROUGE-2 F-measure, 0 to 1, of the best reference; mean over rows",
    "rouge_l": "ROUGE-L F-measure, 0 to 1, of the best reference; mean over rows",
    "bertscore_precision": "BERTScore precision of the best reference, not rescaled; mean over rows",
    "bertscore_recall": "BERTScore recall of the best reference, not rescaled; mean over rows",
    "bertscore_f1": "BERTScore F1 of the best reference, not rescaled; mean over rows",
    "exact_match": "share of rows whose normalised text is that of a reference (SQuAD)",
    "token_f1": "F1 of the words of normalised text and best reference (SQuAD), mean over rows",
    "length_ratio": "words of all texts for each word of the references closest in length",
    "distinct_1": "share of a text's words that are distinct, mean over rows",
    "distinct_2": "share of a text's pairs of words that are distinct, mean over rows",
    "repetition": "share of a text's 4-grams of tokens that it repeats, mean over rows",
    "empty": "share of rows whose text is empty or white space",
    "…_minus_other": "that score of a quantised run minus the other run's, the same but for quantisation, on the same rows",
    "answer_correct": "share of rows whose text is right: of text by the score and threshold asked for, of delta_p by its label",
    "auc_entropy": "probability that the lens of the layer has less entropy for a right answer than for a wrong one",
    "auc_kl_to_final": "probability that its KL divergence from the last layer is smaller for a right answer",
    "auc_js_to_final": "probability that its Jensen-Shannon divergence from the last layer is smaller for a right answer",
    "auc_agrees_with_final": "probability that it agrees with the last layer rather for a right answer, ties half",
    "prediction_depth_median": "median of the prediction depth over samples",
    "brier": "mean squared distance of the probability of a right answer from the truth, 0 or 1 (Brier score)",
    "ece": "expected calibration error of that probability, ten bins of equal width",
    "auc_within_kind": "AUC within every kind of question (mean over folds), mean over the kinds with both classes",
    "delta_p": "100 (P(prediction | changed) - P(prediction | clean)) of the clean prediction, percentage points; mean over rows",
    "flip_rate": "share of rows whose prediction the changed pass turns round",
    "…_minus_control": "that number of a changed pass minus its control's, on the same rows",
    "dont_know_rate": "share of rows whose answer says that it is not known",
    "log_popularity": "mean of ln(1 + popularity)",
    "…_minus_answer_anchored": "that number of the question-anchored rows minus the answer-anchored rows'",
    "detection_auc": "probability that a wrong answer is ranked below a right one, mean over folds and seeds",
    "detection_auc_sd": "standard deviation of that over seeds of the folds; n counts the seeds",
    "detection_auc_minus_probe": "a system's detection_auc minus the plain probe's, on the same rows",
    "p_correct": "sample score: held-out probability of a right answer",
    "flip": "sample score: 1 where the changed pass turns the prediction round, else 0",
    "dont_know": "sample score: 1 where the answer says that it is not known, else 0",
    "anchored": "sample score: 1 and question_anchored where the row flips at the layer of the groups, else answer_anchored",
    "dataset_entropy": "matrix-based Rényi entropy of the data set's centred, unit-norm states, nats",
    "dataset_entropy_normalized": "that entropy divided by the most it can be, ln of the smaller of samples and width",
    "dataset_effective_rank": "exponential of the entropy of their singular values' shares (Roy & Vetterli)",
    "dataset_mean_cosine": "mean cosine of the states of two different samples, not centred",
    "dataset_first_pc_share": "share of the states' variance along their first principal component",
    "intrinsic_dimension": "TwoNN dimension of the states, copies left out",
    "dataset_copies": "samples whose state is a copy of another sample's",
    "cka": "linear CKA with another layer's states (other_layer, other_run), HSIC estimated without bias",
    "cka_biased": "linear CKA with another layer's states, the biased estimate",
    "mutual_knn": "share of a sample's k nearest neighbours that another layer's states have too; group chance: at random",
    "views": "augmented views of every prompt",
    "infonce": "InfoNCE of two augmented views, nats; group shuffled: views paired at random, chance: ln of the samples",
    "lidar": "LiDAR of all augmented views: effective rank of what tells samples from views; group shuffled as above",
    "dime": "DiME of two augmented views: shuffled minus true joint entropy, nats; group shuffled: at random, about 0",
    "norm": "mean L2 norm of a sample's tokens; mean over samples, as of every statistic over tokens",
    "max_norm": "largest L2 norm of a sample's tokens",
    "sinks": "tokens of a sample that are attention sinks",
    "mean_cosine": "mean cosine of two of a sample's tokens",
    "first_pc_share": "share of the variance of a sample's tokens along their first principal component",
    "curvature": "mean angle between successive differences of a sample's tokens",
    "prompt_entropy": "matrix-based Rényi entropy of a sample's tokens, nats (prompt_entropy2+centre-first: with options)",
    "effective_rank": "effective rank of a sample's tokens",
    "prompt_entropy_over_ln_tokens": "prompt entropy divided by ln of the sample's tokens",
    "prompt_entropy_over_ln_width": "prompt entropy divided by ln of the width",
    "prompt_entropy_over_ln_min": "prompt entropy divided by ln of the smaller of tokens and width",
    "…_q…": "quantile of a statistic over samples (prompt_entropy_q10: the 10 % quantile)",
    "selectivity": "a probe's main metric minus that of the same probe on the control task that `group` names",
    "mdl": "length of an online code for the labels given the states, bits",
    "compression": "length of the uniform code for the labels, divided by that of the online code",
    "v_information": "usable information of the states on the label for linear classifiers, held out, bits a row",
    "v_entropy": "what is left unknown of the label: mean -log2 of its held-out probability, bits a row",
    "label_entropy": "the same without states: mean -log2 of the class's share of the fitted rows, bits a row",
    "pvi": "sample score: pointwise usable information, bits",
    "layers_above_shuffled": "layers whose main metric is above that with shuffled labels: the difference's interval is above 0",
    "peak_layer": "the first layer with the best main metric; none where no layer is above shuffled labels",
    "converging_layer": "the first layer whose main metric is a share (0.95) of the best layer's",
    "best_layer": "the layer with the best value of the probe's metric that `group` names, 0 = embedding",
    "best_depth": "the same as a share of the run's blocks: 0 = embedding, 1 = after the last block; none for the final norm",
    "best_score": "the value there",
    "spearman_over_layers": "Spearman's rank correlation over layers of the metric that `group` names and the probe's score; n counts"
    " layers, the interval is of the score for other prompts, the metric's values and the layers as they are",
    "kendall_over_layers": "Kendall's tau-b of the same, its interval likewise",
    "picked_layer": "the layer that the rule in `group` picks without labels (`prompt_entropy min`, `last layer`)",
    "picked_share": "what that layer's probe gains over majority or mean, as a share of the best layer's gain",
}
"""Every metric that an analysis writes, and what it means."""

WHOLE = frozenset(
    [
        "best_layer",
        "layers_above_shuffled",
        "peak_layer",
        "converging_layer",
        "picked_layer",
        "left_out",
        "only_right",
        "only_base_right",
        "views",
        "dataset_copies",
    ]
)
"""Metrics whose values are layers or counts."""

MAIN = {"number": "r2", "category": "balanced_accuracy", "boolean": "balanced_accuracy"}
"""The metric by which layers are compared, for each kind of label."""


class Numbers(NamedTuple):
    """Held-out predictions of a number, [n] each; `reference` is the mean of the rows fitted on."""

    truth: Floats
    prediction: Floats
    reference: Floats
    fold: Ints


class Classes(NamedTuple):
    """Held-out class probabilities [n, classes] of true classes [n], numbered from 0."""

    truth: Ints
    probability: Floats
    fold: Ints


def mse(given: Numbers, weights: Weights) -> Floats:
    """Mean squared error under every draw of weights [rows, draws]: float64 [draws], in the label's unit squared."""
    return weighted_mean((given.truth - given.prediction) ** 2, weights)


def r2(given: Numbers, weights: Weights) -> Floats:
    """Coefficient of determination, float64 [draws], against the mean of the rows each fold was fitted on; 1 is the best."""
    left = weighted_mean((given.truth - given.prediction) ** 2, weights)
    return 1 - _ratio(left, weighted_mean((given.truth - given.reference) ** 2, weights))


def spearman(given: Numbers, weights: Weights) -> Floats:
    """Spearman's rank correlation, ties at their mean rank; mean over folds. float64 [draws], -1 to 1."""
    return _over_folds(
        given.fold, weights, lambda rows, w: _rank_correlation(given.truth[rows], given.prediction[rows], w)
    )


def accuracy(given: Classes, weights: Weights) -> Floats:
    """Share of rows whose most probable class is the true one, float64 [draws]; of equally probable ones the first counts."""
    return weighted_mean((given.probability.argmax(axis=1) == given.truth).astype(np.float64), weights)


def balanced_accuracy(given: Classes, weights: Weights) -> Floats:
    """Mean recall over the classes that occur, float64 [draws]."""
    right = given.probability.argmax(axis=1) == given.truth
    classes = range(given.probability.shape[1])
    recalls = [_ratio(_sum((given.truth == c) & right, weights), _sum(given.truth == c, weights)) for c in classes]
    return _nan_mean(np.array(recalls))


def macro_f1(given: Classes, weights: Weights) -> Floats:
    """Mean F1 over the classes that occur or are predicted, float64 [draws]."""
    guess = given.probability.argmax(axis=1)
    scores = []
    for c in range(given.probability.shape[1]):
        hits = _sum((guess == c) & (given.truth == c), weights)
        scores.append(_ratio(2 * hits, _sum(guess == c, weights) + _sum(given.truth == c, weights)))
    return _nan_mean(np.array(scores))


def auc(given: Classes, weights: Weights) -> Floats:
    """Area under the ROC curve (of class 1, or each class against the rest, averaged); mean over folds. float64 [draws]."""
    columns = range(given.probability.shape[1]) if given.probability.shape[1] > 2 else [1]

    def one(rows: Ints, w: Weights) -> Floats:
        areas = [_area(given.probability[rows, c], given.truth[rows] == c, w) for c in columns]
        return _nan_mean(np.array(areas))

    return _over_folds(given.fold, weights, one)


NUMBER_METRICS: dict[str, Callable[[Numbers, Weights], Floats]] = {"mse": mse, "r2": r2, "spearman": spearman}
CLASS_METRICS: dict[str, Callable[[Classes, Weights], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "auc": auc,
}


def estimated(metric: str, scores: "Numbers | Classes", resamples: Resamples) -> Estimate:
    """Compute one metric of held-out scores, with its interval."""
    functions: dict[str, Callable[..., Floats]] = {**NUMBER_METRICS, **CLASS_METRICS}
    function = functions[metric]
    return bootstrap_estimate(lambda weights: function(scores, weights), resamples)


def _over_folds(fold: Ints, weights: Weights, one: Callable[[Ints, Weights], Floats]) -> Floats:
    parts = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    return _nan_mean(np.array([one(rows, weights[rows]) for rows in parts]))


def _area(score: Floats, positive: Bools, weights: Weights) -> Floats:
    """Weighted share of (positive, negative) pairs in the right order, ties counting half."""
    negative = np.flatnonzero(~positive)
    negative = negative[np.argsort(score[negative], kind="stable")]
    below = np.zeros((len(negative) + 1, weights.shape[1]), dtype=np.float32)
    np.cumsum(weights[negative], axis=0, out=below[1:])
    own = weights[positive]
    first = np.searchsorted(score[negative], score[positive], side="left")
    last = np.searchsorted(score[negative], score[positive], side="right")
    passed = below[first] if (first == last).all() else (below[first] + below[last]) / 2
    pairs = own.sum(axis=0, dtype=np.float64) * below[-1]
    return _ratio((own * passed).sum(axis=0, dtype=np.float64), pairs)


def _rank_correlation(a: Floats, b: Floats, weights: Weights) -> Floats:
    rank_a, rank_b = _centred_ranks(a, weights), _centred_ranks(b, weights)
    weighted = rank_a * weights
    covariance = (weighted * rank_b).sum(axis=0, dtype=np.float64)
    spread_a = (weighted * rank_a).sum(axis=0, dtype=np.float64)
    rank_b *= rank_b
    spread_b = (rank_b * weights).sum(axis=0, dtype=np.float64)
    return _ratio(covariance, np.sqrt(spread_a * spread_b))


def _centred_ranks(values: Floats, weights: Weights) -> Weights:
    """Mean rank of each row [n, b] when row i is present weights[i] times, less the mean of all ranks.

    Ranks are whole or half numbers, exact in float32 below 8 million.
    """
    order = np.argsort(values, kind="stable")
    starts = _tie_starts(values[order])
    tied = weights[order]
    if len(starts) < len(values):
        tied = np.add.reduceat(tied, starts, axis=0)
    middle = np.cumsum(tied, axis=0)
    total = middle[-1].copy()
    middle -= tied / 2
    middle -= total / 2
    ranks = np.empty_like(weights)
    ranks[order] = np.repeat(middle, np.diff([*starts, len(values)]), axis=0) if len(middle) < len(values) else middle
    return ranks


def _tie_starts(ordered: Floats) -> Ints:
    """Return where each run of equal values starts."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _sum(values: npt.NDArray[np.bool_] | Floats, weights: Weights) -> Floats:
    return np.asarray(values.astype(np.float32) @ weights, dtype=np.float64)


def weighted_mean(values: Floats, weights: Weights) -> Floats:
    """Mean of values [n] under each column of weights [n, b]."""
    return np.asarray(_ratio(values @ weights, weights.sum(axis=0, dtype=np.float64)))


def weighted_quantile(values: Floats, weights: Weights, q: float) -> Floats:
    """Quantile of values [n], linear between neighbours, each row present as often as its whole-number weight."""
    order = np.argsort(values, kind="stable")
    ordered, present = values[order], np.cumsum(weights[order], axis=0)
    at = q * (present[-1].astype(np.float64) - 1)
    low, high = np.floor(at), np.ceil(at)
    below = ordered[(present <= low).sum(axis=0)]
    above = ordered[(present <= high).sum(axis=0)]
    return np.asarray(below + (above - below) * (at - low))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Divide, giving NaN where the divisor is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0))


def _nan_mean(values: Floats) -> Floats:
    """Mean over the first axis, leaving out NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0).astype(np.float64))
