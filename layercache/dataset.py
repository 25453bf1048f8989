"""From rows to prompts, spans and labels. No model is needed here; tokens come later.

Dataset.prompts[i] is row i's text with the character range of every template field in it
Dataset.frame      is the user's own columns, typed
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from layercache import nearest, sources
from layercache.answers import read_aliases
from layercache.cells import CONVERTERS, has_decimal_comma, infer, is_grouped, or_none, without_value
from layercache.errors import DataError
from layercache.recipe import DataSpec, Label, parse_label
from layercache.searched import Searched, check_searched, with_searched
from layercache.template import Part, Prompt, as_text, parse_template, render


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
    columns = {name: [or_none(row.get(name), missing) for row in rows] for name in names}
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


_LONGEST = 200
"""Characters of a name in a store, where a letter beyond ASCII counts for three a byte (`store.sequence`)."""


def data_name(spec: DataSpec) -> str:
    """Return what a data set is called in the store: its given name, or one made from its source."""
    if spec.name:
        stem = spec.name
    elif spec.source.startswith(("hf:", "demo:")):
        stem = spec.source.partition(":")[2].partition(":")[0].partition("@")[0].rpartition("/")[2]
    else:
        stem = Path(spec.source).stem
    # One spelling of an accent, whichever the file system gave; letters of every script stay.
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip("._-")
    if not name.isascii() and len(quote(name, safe="")) > _LONGEST:
        name = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")
    return name or "data"


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
            series.append(infer(name, cells))
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
        grouped = [cell for cell in cells if is_grouped(cell)]
        if kinds[name] == "number" and grouped:
            notes.append(f"{name}: {len(grouped):,} cells are read with a thousands separator, such as {grouped[0]!r}")
        if empty and name in references:
            notes.append(f"{name}: {empty:,} of {len(cells):,} rows have no value and are not scored against it")
        elif empty:
            notes.append(without_value(name, empty, len(cells)))
    return pl.DataFrame(series), notes


def _convert(convert: Callable[[Any], Any], value: Any, name: str, row: int, source: str) -> Any:
    if value is None:
        return None
    try:
        return convert(value)
    except ValueError as error:
        shown = as_text(value)[:60]
        comma = convert is CONVERTERS["number"][0] and has_decimal_comma(value)
        remedy = "it has a decimal comma, write a point" if comma else "mend the cell, empty it, or name it as missing"
        raise DataError(f"label {name!r}, {sources.place(source, row)}: {shown!r} is not {error}; {remedy}") from None


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
