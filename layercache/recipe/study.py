"""The whole recipe, and the table `report`."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from layercache.recipe.analyses import AnalysisSpec
from layercache.recipe.base import Spec, split_commas
from layercache.recipe.data import DataSpec, ModelSpec
from layercache.recipe.extract import ExtractSpec
from layercache.recipe.finetune import FinetuneSpec


class ReportSpec(Spec):
    """What the HTML page shows beside every analysis."""

    title: str | None = None
    samples: int = Field(default=4, ge=0)
    """Samples shown one by one, with their top tokens at several layers."""
    tokens: int = Field(default=10, ge=1)
    """Tokens drawn for each layer of a sample."""


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _model_specs(value: object) -> object:
    parts = _one_or_many(split_commas(value))
    return [{"model": part} if isinstance(part, str) else part for part in parts]  # type: ignore[attr-defined]


def _each_revision(models: list[ModelSpec]) -> list[ModelSpec]:
    return [one for spec in models for one in spec.each()]


class Recipe(Spec):
    """A study: every model of `models` on every data set of `data`, then the analyses, then the report."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str | None = None
    models: Annotated[
        list[ModelSpec], BeforeValidator(_model_specs), Field(min_length=1), AfterValidator(_each_revision)
    ]
    data: Annotated[list[DataSpec], BeforeValidator(_one_or_many), Field(min_length=1)]
    extract: ExtractSpec = ExtractSpec()
    finetune: FinetuneSpec | None = None
    """Adapters to train first; every one is one more model of the study."""
    analyze: list[AnalysisSpec] = []
    report: ReportSpec = ReportSpec()
