"""From rows to prompts, spans and labels. No model is needed here; tokens come later.

Dataset.prompts[i] is row i's text with the character range of every template field in it
Dataset.frame      is the user's own columns, typed
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from layercache import nearest, sources
from layercache.answers import read_aliases
from layercache.errors import DataError
from layercache.outputs import WHOLE_PROMPT
from layercache.recipe import DataSpec, Label, parse_label
from layercache.searched import Searched, check_searched, with_searched


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
class Dataset:
    """A data set ready for any model: a prompt a row, and the rows' own columns.

    Attributes:
        frame: one row a prompt, in order; declared numbers are Float64, booleans Boolean.
        notes: counts a user should see (rows without a label, fields that are empty).
        references: columns with the texts that generated text is compared with.
        answers: the accepted answers of every row; None for a row that has none.
        answer_columns: the columns they come from.
        exact_answers: what is taken for the exact answer in every row; None where it is to be found.
    """

    name: str
    source: str
    frame: pl.DataFrame
    prompts: list[Prompt]
    labels: list[Label]
    split: str | None
    group_by: str | None
    target: str | None
    template: str
    chat: bool
    notes: list[str]
    references: tuple[str, ...] = ()
    answers: list[list[str] | None] | None = None
    answer_columns: tuple[str, ...] = ()
    exact_answers: list[str | None] | None = None

    def place(self, row: int) -> str:
        """Name a row by its number, from 0, and by the line of its file."""
        return sources.place(self.source, row)


def load(spec: DataSpec) -> Dataset:
    """Read a data set and render its prompts.

    Raises:
        DataError: the source cannot be read; the template, a label, the split, the group, the target, a reference,
            an answer or a span names a column that is not there; a label does not fit its kind, or an answer is no list of
            texts (the message names the row, from 0, and its line of the file).
    """
    rows = sources.read(spec.source)[: spec.limit]
    names = list(dict.fromkeys(name for row in rows for name in row))
    missing = set(spec.missing)
    columns = {name: [_cell(row.get(name), missing) for row in rows] for name in names}
    template = spec.template or _default_template(spec.source, names)
    parts = parse_template(template)
    labels = [parse_label(text) for text in spec.labels]
    wanted = [*(("template", part.field) for part in parts if part.field), *(("label", one.name) for one in labels)]
    references = tuple(spec.reference or ())
    wanted += [("reference", name) for name in references]
    wanted += [("answers", name) for name in spec.answers or ()]
    searched = [Searched(*text.rpartition("@")[::2]) for text in spec.spans]
    wanted += [("spans", one.column) for one in searched]
    single = [("split", spec.split), ("group_by", spec.group_by), ("target", spec.target)]
    for what, name in [*wanted, *single, ("exact_answer", spec.exact_answer)]:
        _require(name, names, what)
    check_searched(searched, parts)
    frame, notes = _typed(columns, labels, references, spec.source)
    split = spec.split or ("split" if "split" in names else None)
    prompts = render(parts, columns, len(rows), columns[spec.target] if spec.target else None)
    prompts = with_searched(prompts, searched, columns)
    return Dataset(
        name=data_name(spec),
        source=spec.source,
        frame=frame,
        prompts=prompts,
        labels=labels,
        split=split,
        group_by=spec.group_by,
        target=spec.target,
        template=template,
        chat=spec.chat,
        notes=[*notes, *_leaks(parts, labels), *_empty_fields(prompts), *_unfound(prompts)],
        references=references,
        answers=_answers(spec.answers, columns, spec.source),
        answer_columns=tuple(spec.answers or ()),
        exact_answers=[as_text(cell) or None for cell in columns[spec.exact_answer]] if spec.exact_answer else None,
    )


def data_name(spec: DataSpec) -> str:
    """Return what a data set is called in the store: its given name, or one made from its source."""
    if spec.name:
        stem = spec.name
    elif spec.source.startswith(("hf:", "demo:")):
        stem = spec.source.partition(":")[2].partition(":")[0].partition("@")[0].rpartition("/")[2]
    else:
        stem = Path(spec.source).stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-") or "data"


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


def _cell(value: Any, missing: set[str]) -> Any:
    """Return None for a cell without a value."""
    if isinstance(value, str):
        return None if not value.strip() or value.strip() in missing else value
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _default_template(source: str, names: list[str]) -> str:
    if source.startswith("demo:"):
        from layercache import demo

        return demo.TEMPLATES[source.partition(":")[2]]
    for name in ("prompt", "text"):
        if name in names:
            return f"{{{name}}}"
    raise DataError(f"no template given: write one from the columns {nearest.listing(names)}, such as '{{{names[0]}}}'")


def _require(name: str | None, names: list[str], what: str) -> None:
    if name is None or name in names:
        return
    close = nearest.nearest(name, names)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DataError(f"{what} names a column {name!r} that is not there; {hint}the columns are {nearest.listing(names)}")


def _typed(
    columns: dict[str, list[Any]], labels: Iterable[Label], references: tuple[str, ...], source: str
) -> tuple[pl.DataFrame, list[str]]:
    """Type every column: declared labels by their kind, references as text, the others by what their cells are."""
    kinds = {**dict.fromkeys(references, "text"), **{label.name: label.kind for label in labels}}
    series = []
    notes = []
    for name, cells in columns.items():
        if name not in kinds:
            series.append(_infer(name, cells))
            continue
        convert, dtype = CONVERTERS[kinds[name]]
        if name in references and kinds[name] != "text" and any(isinstance(cell, (list, tuple)) for cell in cells):
            raise DataError(f"reference {name!r} holds lists and is a {kinds[name]} label: declare it {name}:text")
        if kinds[name] == "text" and not any(isinstance(cell, (list, tuple)) for cell in cells):
            convert, dtype = as_text, pl.String
        values = [_convert(convert, value, name, row, source) for row, value in enumerate(cells)]
        series.append(pl.Series(name, values, dtype, strict=True))
        empty = sum(value is None for value in cells)
        if empty == len(cells):
            raise DataError(f"{'reference' if name in references else 'label'} {name!r} has no value in any row")
        grouped = [cell for cell in cells if isinstance(cell, str) and _GROUPED.fullmatch(cell.strip())]
        if kinds[name] == "number" and grouped:
            notes.append(f"{name}: {len(grouped):,} cells are read with a thousands separator, such as {grouped[0]!r}")
        if empty:
            what = "are not scored against it" if name in references else "are left out of its probe"
            notes.append(f"{name}: {empty:,} of {len(cells):,} rows have no value and {what}")
    return pl.DataFrame(series), notes


def _convert(convert: Callable[[Any], Any], value: Any, name: str, row: int, source: str) -> Any:
    if value is None:
        return None
    try:
        return convert(value)
    except ValueError as error:
        shown = as_text(value)[:60]
        raise DataError(
            f"label {name!r}, {sources.place(source, row)}: {shown!r} is not {error}; mend the cell, empty it, or name it"
            " as missing"
        ) from None


_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


def _number(value: Any) -> float:
    if isinstance(value, str) and _GROUPED.fullmatch(value.strip()):
        value = value.replace(",", "")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


_BOOLEANS = {"true": True, "yes": True, "t": True, "y": True, "1": True, "1.0": True}
_BOOLEANS |= {"false": False, "no": False, "f": False, "n": False, "0": False, "0.0": False}


def _boolean(value: Any) -> bool:
    try:
        return _BOOLEANS[as_text(value).lower()]
    except KeyError:
        raise ValueError("true or false (yes/no and 1/0 are read too)") from None


def _texts(value: Any) -> list[str]:
    """Read a text label as the list of its references; one that is a plain text is a list of one."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else [as_text(value)]


CONVERTERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "number": (_number, pl.Float64),
    "boolean": (_boolean, pl.Boolean),
    "category": (as_text, pl.String),
    "text": (_texts, pl.List(pl.String)),
}

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+([eE][+-]?\d+)?")


def _infer(name: str, cells: list[Any]) -> pl.Series:
    """Type a column nobody declared, losing nothing: text stays text unless every cell is plainly a number."""
    values = [cell for cell in cells if cell is not None]
    kinds = {type(value) for value in values}
    if kinds == {str}:
        if all(_INTEGER.fullmatch(value) for value in values):
            return pl.Series(name, [None if cell is None else int(cell) for cell in cells], pl.Int64)
        if all(_INTEGER.fullmatch(value) or _DECIMAL.fullmatch(value) for value in values):
            return pl.Series(name, [None if cell is None else float(cell) for cell in cells], pl.Float64)
        return pl.Series(name, cells, pl.String)
    if kinds == {bool}:
        return pl.Series(name, cells, pl.Boolean)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return pl.Series(name, cells, pl.Int64)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, [None if cell is None else float(cell) for cell in cells], pl.Float64)
    if kinds == {list} and all(isinstance(item, str) for value in values for item in value):
        return pl.Series(name, cells, pl.List(pl.String))
    return pl.Series(name, [None if cell is None else _json(cell) for cell in cells], pl.String)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _answers(names: Sequence[str] | None, columns: dict[str, list[Any]], source: str) -> list[list[str] | None] | None:
    """Gather every row's accepted answers from the columns named; None where none is."""
    if not names:
        return None
    read = [[_aliases(cell, name, row, source) for row, cell in enumerate(columns[name])] for name in names]
    found = [list(dict.fromkeys(text for cell in cells for text in cell)) or None for cells in zip(*read)]
    if not any(found):
        raise DataError(f"answers: {', '.join(names)} has no value in any row")
    return found


def _aliases(cell: Any, name: str, row: int, source: str) -> list[str]:
    return read_aliases(cell, lambda: f"answers column {name!r}, {sources.place(source, row)}") or []


def _leaks(parts: list[Part], labels: Iterable[Label]) -> list[str]:
    fields = {part.field for part in parts}
    return [
        f"{one.name} is a label and stands in the template: probes can read it" for one in labels if one.name in fields
    ]


def _empty_fields(prompts: list[Prompt]) -> list[str]:
    counts: dict[str, int] = {}
    for prompt in prompts:
        for name in prompt.absent:
            counts[name] = counts.get(name, 0) + 1
    return [
        f"{{{name}}} is empty in {count:,} of {len(prompts):,} rows: no such span there"
        for name, count in counts.items()
    ]


def _unfound(prompts: list[Prompt]) -> list[str]:
    counts = Counter(name for prompt in prompts for name in prompt.unfound)
    return [
        f"{name} does not stand in its field in {count:,} of {len(prompts):,} rows: no such span there"
        for name, count in counts.items()
    ]
