"""Spans that are looked for: the text of a column, where it stands in a template field of the same row.

spans = ["subject@question"]    "Who is the father of Ada?", subject "Ada"    the span `subject`
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from layercache.errors import DataError
from layercache.folding import is_unspaced
from layercache.template import Part, Prompt


class Searched(NamedTuple):
    """A span called as its column, within the span of a template field."""

    column: str
    field: str


def check_searched(searched: Sequence[Searched], parts: Sequence[Part]) -> None:
    """Refuse spans that cannot be placed.

    Raises:
        DataError: the template has no such field, or a field that is called as the column.
    """
    fields = [part.span for part in parts if part.span is not None]
    for one in searched:
        if one.field not in fields:
            raise DataError(
                f"span {one.column}@{one.field}: the template has no field {one.field!r}; it has"
                f" {', '.join(fields) or 'none'}"
            )
        if one.column in fields or sum(other.column == one.column for other in searched) > 1:
            raise DataError(f"span {one.column}@{one.field}: there is a span {one.column!r} already: rename the column")


def with_searched(prompts: list[Prompt], searched: Sequence[Searched], columns: dict[str, list[Any]]) -> list[Prompt]:
    """Add the spans to every prompt; a row whose text is empty, or is not in its field, has none."""
    for column, field in searched:
        prompts = [_add(prompt, column, field, cell) for prompt, cell in zip(prompts, columns[column], strict=True)]
    return prompts


def _add(prompt: Prompt, column: str, field: str, cell: Any) -> Prompt:
    wanted = "" if cell is None else str(cell).strip()
    if not wanted or field not in prompt.spans:
        return replace(prompt, absent=(*prompt.absent, column))
    start, end = prompt.spans[field]
    found = find(prompt.text[start:end], wanted)
    if found is None:
        return replace(prompt, unfound=(*prompt.unfound, column))
    return replace(prompt, spans={**prompt.spans, column: (start + found[0], start + found[1])})


def find(text: str, wanted: str) -> tuple[int, int] | None:
    """Return the characters [start, end) where a text stands in another, as whole words.

    Any white space stands for any other. The first place counts, in the same case where there is one, else in any.
    """
    pattern = r"\s+".join(map(re.escape, wanted.split()))
    if not pattern:
        return None
    for flags in (0, re.IGNORECASE):
        for match in re.finditer(pattern, text, flags):
            if _is_edge(text, match.start()) and _is_edge(text, match.end()):
                return match.span()
    return None


def _is_edge(text: str, place: int) -> bool:
    """Tell whether no word goes on over a place between two characters."""
    around = text[max(0, place - 1) : place + 1]
    return not (0 < place < len(text) and around.isalnum()) or any(map(is_unspaced, around))
