"""What every table of a recipe is made of: no unknown keys, values that do not change, lists written with commas."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from layercache.recipe.messages import UNKNOWN_KEY

Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]


class Spec(BaseModel):
    """Base of every table of a recipe: unknown keys are errors, values cannot change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, value: object) -> object:
        known = list(cls.model_fields)
        unknown = [key for key in value if key not in known] if isinstance(value, dict) else []
        if unknown:
            raise PydanticCustomError(UNKNOWN_KEY, "unknown key", {"key": unknown[0], "known": known})
        return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


S = TypeVar("S", bound=Spec)


def _plain(value: object) -> object:
    """Turn an array, a tuple or a range into a list, and a number of NumPy's into a plain one."""
    if isinstance(value, tuple | range):
        return list(value)
    convert = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    return convert() if callable(convert) else value


def split_commas(value: object) -> object:
    """Let `--set extract.pooling=mean,last` stand for a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def listed(value: object) -> list[object]:
    """Let one number stand for a list of one, and text with commas (`--set finetune.r=1,16`) for a list."""
    value = split_commas(value)
    return value if isinstance(value, list) else [value]


def _layers(value: object) -> object:
    """Let `0,4,8` and a single number stand for a list of layers."""
    if value == "all":
        return value
    numbers = listed(value)
    if not all(type(one) is int or re.fullmatch(r"-?\d+", str(one)) for one in numbers):
        raise ValueError(f"{value!r}: give layer numbers separated by commas (0,4,8), or all")
    return numbers


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What both NumPy and torch take."""
Strings = Annotated[list[str], BeforeValidator(split_commas)]
Layers = Annotated[Literal["all"] | list[int], BeforeValidator(_layers)]


def unique(values: Iterable[str]) -> list[str]:
    """Drop what was there before, keeping the order."""
    return list(dict.fromkeys(values))
