"""Recipes kept in a store, so that a laptop knows which analyses and which report a study asks for."""

from pathlib import Path
from typing import Any

from layercache.errors import StoreError
from layercache.store import sequence
from layercache.store.layout import RECIPES, canonical_json, read_json
from layercache.store.publish import check_not_frozen, one_line_errors, publish_file
from layercache.store.schema import FORMAT, READER


def save(store: Path, recipe: dict[str, Any]) -> Path:
    """Keep a recipe, by its `name`; writes nothing when it equals the newest one of that name.

    Args:
        store: the store's directory.
        recipe: JSON values only, with a `name`.

    Returns:
        The path of the newest file of that name.

    Raises:
        StoreError: the store is frozen or cannot be written.
    """
    name = str(recipe["name"])
    last = sequence.newest(sequence.files(store / RECIPES, "json")).get(name)
    if last is not None and canonical_json(_read(last.path)) == canonical_json(recipe):
        return last.path
    content = canonical_json({"format": FORMAT, "reader": READER, "recipe": recipe}) + b"\n"
    path = store / RECIPES / sequence.file_name(name, 0 if last is None else last.seq + 1, content, "json")
    check_not_frozen(store)
    with one_line_errors(path):
        publish_file(store, path, content)
    return path


def load_all(store: Path) -> list[dict[str, Any]]:
    """Return the newest recipe of every name, sorted by name.

    Raises:
        StoreError: a recipe cannot be read.
    """
    return [_read(file.path) for _, file in sorted(sequence.newest(sequence.files(store / RECIPES, "json")).items())]


def newest(store: Path) -> dict[str, Any] | None:
    """Return the recipe that was written last, of whatever name; None where none is kept.

    Sequence numbers order the recipes of one name alone, so the files' times do it; a copy may have lost them, and then
    the name decides.

    Raises:
        StoreError: it cannot be read.
    """
    files = sequence.newest(sequence.files(store / RECIPES, "json")).values()
    last = max(files, key=lambda file: (file.path.stat().st_mtime_ns, file.name), default=None)
    return None if last is None else _read(last.path)


def _read(path: Path) -> dict[str, Any]:
    recipe = read_json(path).get("recipe")
    if not isinstance(recipe, dict):
        raise StoreError(f"{path} holds no recipe: run `layercache verify`")
    return recipe
