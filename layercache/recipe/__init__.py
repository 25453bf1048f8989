"""What a study is: model(s), data, extraction, analyses, report. Read from TOML, validated in one place.

A module for every table of the recipe: `data` (models and data), `extract`, `finetune`, `analyses`, `study` (the whole,
and the report); `loading` reads one, `overrides` is `--set`.
"""

from layercache.recipe.analyses import (
    ANALYSES,
    TEXT_METRICS,
    AnalysisSpec,
    ChoicesSpec,
    CompareSpec,
    DeltaPSpec,
    EntropySpec,
    ProbeDepthSpec,
    ProbeSpec,
    ProbingSpec,
    QualitySpec,
    TextSpec,
)
from layercache.recipe.data import DataSpec, Label, ModelSpec, parse_label
from layercache.recipe.extract import ExtractSpec
from layercache.recipe.finetune import FinetuneSpec
from layercache.recipe.loading import build, load, validate
from layercache.recipe.overrides import override
from layercache.recipe.study import Recipe, ReportSpec

__all__ = [
    "ANALYSES",
    "TEXT_METRICS",
    "AnalysisSpec",
    "ChoicesSpec",
    "CompareSpec",
    "DataSpec",
    "DeltaPSpec",
    "EntropySpec",
    "ExtractSpec",
    "FinetuneSpec",
    "Label",
    "ModelSpec",
    "ProbeDepthSpec",
    "ProbeSpec",
    "ProbingSpec",
    "QualitySpec",
    "Recipe",
    "ReportSpec",
    "TextSpec",
    "build",
    "load",
    "override",
    "parse_label",
    "validate",
]
