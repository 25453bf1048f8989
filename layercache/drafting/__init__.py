"""A recipe from a data file: its columns are looked at, and a commented recipe that runs is written.

drafted = draft("films.csv", model="demo")
drafted.text        the recipe, TOML
drafted.guesses     what was guessed, and why
"""

import json
import tomllib
from pathlib import Path
from typing import NamedTuple

from layercache import dataset, recipe, sources
from layercache.drafting import columns, roles, write
from layercache.drafting.roles import Guess
from layercache.errors import DataError, RecipeError
from layercache.nearest import listing

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


class Draft(NamedTuple):
    """A recipe that was written from a data file."""

    name: str
    text: str
    guesses: list[Guess]
    rows: int
    trial: int | None
    """Rows that do for a trial, from the first; None where all are needed."""


def draft(source: str, model: str = "demo") -> Draft:
    """Write a recipe for a data set.

    Args:
        source: a file, `hf:NAME` or `demo:NAME`, as `data.source` takes it.
        model: what `models` is to name.

    Returns:
        The text of a recipe that can be loaded, whose data set can be loaded too.

    Raises:
        DataError: the data cannot be read, hold nothing, or have no column that can stand in a prompt.
        RecipeError: the path cannot be written in a recipe.
    """
    for what, value in (("path", source), ("model", model)):
        if value.encode("utf-8", errors="ignore").decode() != value:
            raise RecipeError(f"the {what} {value!r} is not UTF-8 and cannot be written in a recipe: rename it")
    rows = sources.read(source)
    found, missing = columns.look(rows)
    guessed = roles.assign(found, len(rows))
    if not guessed.fields:
        names = [column.name for column in found]
        raise DataError(f"{source}: none of its columns ({listing(names)}) can stand in a prompt: rename one")
    if missing:
        guessed.guess("missing", ", ".join(missing), "cells that stand where a value would")
    name = dataset.data_name(recipe.DataSpec(source=source))
    context = _context(model)
    longest = _longest(guessed, found)
    # A token is a byte at least, so that a prompt with fewer bytes than the context has tokens always fits.
    truncate = None if context is None else longest >= context
    if truncate:
        guessed.guess("truncate", "true", f"prompts of up to {longest:,} bytes, and {model} sees {context:,} tokens")
    trial = roles.trial(found, guessed, len(rows))
    text = write.recipe(name, source, model, guessed, missing, truncate, trial, len(rows))
    dataset.load(recipe.build(tomllib.loads(text), where="drafted recipe").data[0])
    return Draft(name, text, guessed.guesses, len(rows), trial)


def _longest(guessed: roles.Roles, found: list[columns.Column]) -> int:
    """Return the bytes that the longest prompt has at most."""
    return len(guessed.template.encode()) + sum(column.longest for column in found if column.name in guessed.fields)


def _context(model: str) -> int | None:
    """Return the tokens that a model sees, where its configuration lies here; None where it is not known."""
    from layercache import demo

    # The demo models are of one kind; some are made, with torch, when their folder is asked for.
    folder = demo.model_path() if model in demo.MODELS else Path(model).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tables = [config, config.get("text_config")] if isinstance(config, dict) else []
    return next(
        (one[key] for one in tables if isinstance(one, dict) for key in _CONTEXT if type(one.get(key)) is int), None
    )
