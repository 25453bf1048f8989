"""What every table of a recipe is made of: no unknown keys, values that do not change, lists written with commas."""

from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]


class Spec(BaseModel):
    """Base of every table of a recipe: unknown keys are errors, values cannot change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Spec)


def split_commas(value: object) -> object:
    """Let `--set extract.pooling=mean,last` stand for a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def listed(value: object) -> object:
    """Let one number stand for a list of one, and text with commas (`--set finetune.r=1,16`) for a list."""
    value = split_commas(value)
    return value if isinstance(value, list) else [value]


Strings = Annotated[list[str], BeforeValidator(split_commas)]
Layers = Annotated[Literal["all"] | list[int], BeforeValidator(lambda v: v if v == "all" else split_commas(v))]


def unique(values: Iterable[str]) -> list[str]:
    """Drop what was there before, keeping the order."""
    return list(dict.fromkeys(values))
