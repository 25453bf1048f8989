"""What pydantic found wrong, in one line: where, what was given, what is allowed, and what was perhaps meant."""

import re
from collections.abc import Mapping
from typing import Any

from layercache import nearest

_LONGEST = 60
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|(-?\d+)")

_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a table",
    "model_type": "a table",
    "string_type": "text",
}
"""What a value must be, by the kind of pydantic's error."""
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
"""Of an error about a bound: where pydantic keeps the bound, and the words for it."""
UNKNOWN_KEY = "unknown_key"


def tell(error: Mapping[str, Any]) -> str:
    """Write one error of a `ValidationError` as `key: what is wrong`."""
    kind, context = error["type"], error.get("ctx") or {}
    place = _place(error["loc"])
    if kind == UNKNOWN_KEY:
        key = ".".join([*place, str(context["key"])])
        return f"{key}: unknown key: {nearest.hint(str(context['key']), context['known'])}"
    if kind == "union_tag_invalid":
        place, kind = [*place, str(context["discriminator"]).strip("'")], "literal_error"
        context, given = {"expected": context["expected_tags"]}, context["tag"]
    else:
        given = error["input"]
    key = ".".join(place) or "recipe"
    return f"{key}: {_wrong(kind, context, given) or str(error['msg']).removeprefix('Value error, ')}"


def _wrong(kind: str, context: Mapping[str, Any], given: object) -> str | None:
    """Say what is wrong with a value; None where pydantic's own words (and those of our checks) will do."""
    if kind in _WANTED:
        return f"{_shown(given)} is not {_WANTED[kind]}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{_shown(given)} is out of range: it must be {words} {context[bound]:,g}"
    if kind == "literal_error":
        allowed = [text or number for text, number in _QUOTED.findall(context["expected"])]
        close = nearest.nearest(given, allowed) if isinstance(given, str) else []
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return f"{_shown(given)} is not one of {', '.join(allowed)}{meant}"
    if kind in ("missing", "union_tag_not_found"):
        said = "needs a kind" if kind == "union_tag_not_found" else "is missing"
        return said
    if kind == "too_short":
        return "it is empty: give at least one"
    if kind == "string_pattern_mismatch":
        return f"{_shown(given)} is no name: use letters, digits, dots, dashes and underscores"
    return None


def _place(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that lead to a value, without what pydantic adds: an analysis' kind, a union's member."""
    keys = [str(part) for i, part in enumerate(loc) if not (i == 2 and loc[0] == "analyze")]
    return [key for key in keys if "[" not in key]


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
