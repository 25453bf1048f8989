"""From a file, a name or nested tables to a recipe: what is wrong is told in one line."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from layercache import resources
from layercache.errors import RecipeError
from layercache.recipe.base import S
from layercache.recipe.overrides import override
from layercache.recipe.study import Recipe


def load(name_or_path: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe: a path to a TOML file, or the name of one that ships with layercache.

    Args:
        name_or_path: `movies` or `studies/mine.toml`.
        settings: `key=value` overrides with dotted keys, the value in TOML or plain text:
            `extract.pooling=mean,last`, `data.source=films.csv`, `models=["gpt2", "./mine"]`.

    Raises:
        RecipeError: no such recipe, not TOML, or a key or value that is not allowed.
    """
    path = Path(name_or_path)
    if not path.is_file():
        shipped = resources.find("pipelines", name_or_path)
        if shipped is None:
            known = ", ".join(resources.names("pipelines"))
            raise RecipeError(f"no recipe {name_or_path!r}: give a .toml file or one of {known}")
        path = shipped
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"recipe {path} cannot be read as TOML: {error}") from error
    table.setdefault("name", path.stem)
    for setting in settings:
        override(table, setting)
    return build(table, where=str(path))


def build(table: dict[str, Any], where: str = "settings") -> Recipe:
    """Validate a recipe given as nested tables.

    Raises:
        RecipeError: one line naming the first key that is wrong and how.
    """
    return validate(Recipe, table, where)


def validate(kind: type[S], table: dict[str, Any], where: str) -> S:
    """Validate one table of a recipe; `where` opens the message of a failure.

    Raises:
        RecipeError: one line naming the first key that is wrong and how.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        # The third part of an analysis' place is its kind again.
        place = first["loc"]
        key = ".".join(str(part) for i, part in enumerate(place) if not (i == 2 and place[0] == "analyze"))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        elif first["type"] == "literal_error":
            message = f"{message}, not {first['input']!r}"
        raise RecipeError(f"{where}: {key or 'recipe'}: {message}") from error
