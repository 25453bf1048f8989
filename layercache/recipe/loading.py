"""From a file, a name or nested tables to a recipe: what is wrong is told in one line."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from layercache import nearest, resources
from layercache.errors import RecipeError
from layercache.recipe.base import S
from layercache.recipe.messages import tell
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
            known = resources.names("pipelines")
            said = nearest.hint(name_or_path, known, "give a .toml file or one of")
            raise RecipeError(f"no recipe {name_or_path!r}: {said}")
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
        raise RecipeError(f"{where}: {tell(error.errors()[0])}") from error
