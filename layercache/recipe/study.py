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
    """The report's heading; the name when not given."""
    samples: int = Field(default=40, ge=0)
    """Samples that the browser shows with every panel, as far as the page has room; 0 for no browser."""
    show: list[str] = []
    """Samples shown so in any case: how a sample's id begins, or a row as `films:12`."""
    tokens: int = Field(default=10, ge=1)
    """Most probable tokens of each layer of a sample."""


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _model_specs(value: object) -> object:
    parts = _one_or_many(split_commas(value))
    return [{"model": part} if isinstance(part, str) else part for part in parts]  # type: ignore[attr-defined]


def _each_revision(models: list[ModelSpec]) -> list[ModelSpec]:
    return [one for spec in models for one in spec.each()]


class Recipe(Spec):
    """A study: every model of `models` on every data set of `data`, then the analyses, then the report."""

    name: str = Field(pattern=r"^[^\W_][\w.-]*$")
    """What the study is called; the file's stem when not given."""
    title: str | None = None
    """The report's heading; the name when not given."""
    models: Annotated[
        list[ModelSpec], BeforeValidator(_model_specs), Field(min_length=1), AfterValidator(_each_revision)
    ]
    """A model (a folder, a hub name, `demo`), a list of them, or tables `[[models]]`; several are compared."""
    data: Annotated[list[DataSpec], BeforeValidator(_one_or_many), Field(min_length=1)]
    """One table `[data]` or several `[[data]]`; each data set is run through every model."""
    extract: ExtractSpec = ExtractSpec()
    """What is captured, and how models are run."""
    finetune: FinetuneSpec | None = None
    """Adapters to train first; every one is one more model of the study."""
    analyze: list[AnalysisSpec] = []
    """Analyses that follow, each a table `[[analyze]]`."""
    report: ReportSpec = ReportSpec()
    """What the HTML page shows."""
