"""Which keys of a bucket are of a store, and what a mirror holds of each.

A bucket may hold any key. Only those of the layout's own shape have a place in a mirror, so that no key, whatever its
name, is written anywhere else.
"""

import re
from collections.abc import Iterable
from enum import Enum

from layercache.store.layout import FROZEN, MANIFEST, QUARANTINE, RECIPES, RESULTS, ROWS, RUN, RUN_FILE

_NAME = r"[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,239}"
_SHARD = rf"{RUN}{_NAME}/condition={_NAME}/shard={_NAME}"
_COPIED = re.compile(
    rf"{FROZEN}|{RECIPES}/{_NAME}|{RUN}{_NAME}/(?:{re.escape(RUN_FILE)}|{ROWS}/{_NAME})|{_SHARD}/{re.escape(MANIFEST)}"
    rf"|{RESULTS}/{_NAME}/{_NAME}(?<!\.safetensors)"
)
_LARGE = re.compile(
    rf"{RUN}{_NAME}/head-{_NAME}|{_SHARD}/{_NAME}|{RESULTS}/{_NAME}/{_NAME}\.safetensors"
    rf"|{re.escape(QUARANTINE)}/(?:{_NAME}/){{1,6}}{_NAME}"
)
_UNIT = re.compile(rf"{_SHARD}(?=/)|{RESULTS}/{_NAME}(?=/)")
_LONGEST = 240
"""Bytes of a name that every file system takes, with some to spare for what is put before it."""


class Kind(Enum):
    """What a mirror holds of a key: its bytes, or a file of its size whose bytes are fetched when they are read."""

    COPY = "copy"
    LARGE = "large"


def kind(key: str) -> Kind | None:
    """Return what a mirror holds of a key; None of one that is no part of a store."""
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST for part in key.split("/")):
        return None
    if _COPIED.fullmatch(key):
        return Kind.COPY
    return Kind.LARGE if _LARGE.fullmatch(key) else None


def unit(key: str) -> str:
    """Return the folder that appears and goes as one, a shard's or a result's; of other keys the key itself."""
    match = _UNIT.match(key)
    return match[0] if match else key


def whole(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part keys into those that a mirror holds and those of folders without a manifest, which do not exist."""
    known = [key for key in keys if kind(key) is not None]
    there = {key.removesuffix(f"/{MANIFEST}") for key in known if key.endswith(f"/{MANIFEST}")}
    held: list[str] = []
    orphans: list[str] = []
    for key in known:
        folder = unit(key)
        (held if folder == key or folder in there else orphans).append(key)
    return held, orphans


def is_of_a_store(key: str) -> bool:
    """Tell whether a key shows that this is a store, as `layout.is_store` does of a folder's names."""
    first, _, rest = key.partition("/")
    return (bool(rest) and (first in {RECIPES, RESULTS, QUARANTINE} or first.startswith(RUN))) or key == FROZEN


def is_hidden(key: str) -> bool:
    """Tell whether a key would be a hidden file, which says nothing of what a bucket holds."""
    return key.startswith(".")
