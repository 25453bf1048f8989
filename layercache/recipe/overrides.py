"""`--set KEY=VALUE`: one setting of a recipe changed before it is validated."""

import re
import tomllib
from typing import Any

from layercache.errors import RecipeError


def override(table: dict[str, Any], setting: str) -> None:
    """Apply one `key=value` override to nested tables, in place.

    Raises:
        RecipeError: the setting is not KEY=VALUE, or its key does not lead anywhere.
    """
    key, separator, text = setting.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"--set {setting!r} is not KEY=VALUE (for example extract.pooling=mean,last)")
    if isinstance(table.get("data"), dict):
        table["data"] = [table["data"]]  # so that data.0.source is right however the recipe writes it
    here: Any = table
    for place, part in enumerate(parts[:-1]):
        here = _step(here, parts[:place], part, setting)
    here = _only(here, parts[:-1], parts[-1], setting)
    if not isinstance(here, dict):
        raise RecipeError(f"--set {setting!r}: {'.'.join(parts[:-1])} holds no keys")
    here[parts[-1]] = _value(text, parts[-1])


def _step(here: Any, above: list[str], part: str, setting: str) -> Any:
    """Go one key down, making tables that are not there; `above` are the keys that led here."""
    if isinstance(here, list) and part.isdigit():
        if int(part) >= len(here):
            raise RecipeError(f"--set {setting!r}: there are only {len(here)} entries, counted from 0")
        return here[int(part)]
    here = _only(here, above, part, setting)
    if not isinstance(here, dict):
        raise RecipeError(f"--set {setting!r}: {part} is not a table")
    return here.setdefault(part, {})


def _only(here: Any, above: list[str], key: str, setting: str) -> Any:
    """Let `data.source` stand for `data.0.source` where there is only one entry."""
    if not isinstance(here, list):
        return here
    if len(here) != 1:
        last = f" to {'.'.join([*above, str(len(here) - 1), key])}" if here else ""
        raise RecipeError(
            f"--set {setting!r}: there are {len(here)} entries, name one by number: {'.'.join([*above, '0', key])}{last}"
        )
    return here[0]


def _value(text: str, key: str) -> Any:
    """Read a value as TOML; what is neither TOML nor looks like it is plain text."""
    for value in (text, re.sub(r'\A"(.*)"\Z', r'"""\1"""', text, flags=re.DOTALL)):
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            failure = str(error)
    if text[:1] in ("'", '"'):
        # Quotes taken for part of the text would quietly become part of every prompt.
        raise RecipeError(f"--set {key}: {text[:40]!r} opens like TOML and is not ({failure}); mend or drop the quotes")
    return text
