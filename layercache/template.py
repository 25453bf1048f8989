"""From a template and the cells of a row to a prompt: its text, and where every field stands in it.

parts = parse_template("{title} ({year})")
render(parts, {"title": ["Metropolis"], "year": ["1927"]}, 1, None)[0].spans     {"title": (0, 10), "year": (12, 16)}
"""

import re
from dataclasses import dataclass
from typing import Any

from layercache.errors import DataError
from layercache.outputs import WHOLE_PROMPT


@dataclass(frozen=True)
class Prompt:
    """One row's prompt.

    Attributes:
        text: what the model is given (before any chat template).
        spans: template field → its character range [start, end) in `text`; an empty field has none.
        absent: fields that are empty in this row.
        unfound: spans whose text does not stand in its field.
        target: text whose first token the lens follows at the prompt's last position.
    """

    text: str
    spans: dict[str, tuple[int, int]]
    absent: tuple[str, ...] = ()
    target: str | None = None
    unfound: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of a template: literal text, or the field whose value stands there."""

    literal: str = ""
    field: str | None = None
    span: str | None = None


_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def parse_template(template: str) -> list[Part]:
    """Split a template into literal text and fields; `{{` and `}}` stand for braces.

    A field that stands twice gives the spans `name` and `name#2`.

    Raises:
        DataError: a brace without its partner, or a field called `prompt` beside other text (that span
            is the whole prompt).
    """
    parts: list[Part] = []
    seen: dict[str, int] = {}
    end = 0
    for match in _TOKEN.finditer(template):
        parts.append(Part(template[end : match.start()]))
        end = match.end()
        text, field = match.group(0), match.group(1)
        if text in ("{{", "}}"):
            parts.append(Part(text[0]))
        elif field is None:
            raise DataError(
                f"template has a lone {text!r} at character {match.start() + 1}; write {text}{text} for one"
            )
        else:
            name = field.strip()
            seen[name] = seen.get(name, 0) + 1
            parts.append(Part(field=name, span=name if seen[name] == 1 else f"{name}#{seen[name]}"))
    parts = [part for part in [*parts, Part(template[end:])] if part.literal or part.field]
    if WHOLE_PROMPT in seen and len(parts) > 1:
        raise DataError("a template field called 'prompt' must stand alone: that span is the whole prompt; rename it")
    return parts


def render(parts: list[Part], columns: dict[str, list[Any]], n: int, targets: list[Any] | None) -> list[Prompt]:
    """Render `n` prompts; a missing cell renders as nothing and leaves its span absent."""
    prompts = []
    for row in range(n):
        text = ""
        spans: dict[str, tuple[int, int]] = {}
        absent = []
        for part in parts:
            piece = part.literal if part.field is None else as_text(columns[part.field][row])
            if part.span is not None and part.span != WHOLE_PROMPT:
                if piece:
                    spans[part.span] = (len(text), len(text) + len(piece))
                else:
                    absent.append(part.span)
            text += piece
        target = as_text(_first(targets[row])) if targets is not None else ""
        prompts.append(Prompt(text, spans, tuple(absent), target or None))
    return prompts


def as_text(value: Any) -> str:
    """Render a cell as a prompt's text: lists joined by commas, booleans in lower case, nothing for no value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value)
    return str(value).strip()


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, (list, tuple)) else value
