"""Guesses what every column is for: part of the prompt, label, answer, split or group. Each guess says why."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from layercache.drafting.columns import Column, few_classes
from layercache.drafting.wording import told_by_a_word
from layercache.outputs import WHOLE_PROMPT

MOST_FIELDS, MOST_LABELS = 6, 4
"""Columns that a drafted prompt takes at most, and labels that are probed."""
_ENOUGH = 50
"""Rows below which a probe's cross-validation says little; the recipe then leaves probes out."""
_ENOUGH_OF_CLASS = 10
_FOLDS = 5
_TRIALS = (200, 500, 1000, 2000, 5000)
"""Rows that a first trial may take."""


def _named(*words: str) -> Callable[[Column], bool]:
    """Match columns whose name, or the last part of a nested one, is made of one of the words."""
    pattern = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(words)})s?$", re.IGNORECASE)
    return lambda column: bool(pattern.search(column.name))


_PROMPT = _named(WHOLE_PROMPT)
_QUESTION = _named("question", "query", "problem")
_TEXT = _named("text", "sentence", "review", "content", "document", "article", "body", "statement", "claim", "tweet")
_PASSAGE = _named("passage", "context", "paragraph", "background")
_ANSWERS = (
    _named("golden_answer", "gold", "gold_answer", "correct_answer"),
    _named("answer"),
    _named("reference", "target", "response", "completion", "output", "aliase", "alias"),
)
"""Columns of answers: the first kind there is counts, since others (a subject's aliases) may be about something else."""
_CHOICES = _named("choice", "option", "candidate")
_SCORE = _named("rating", "score", "label", "target", "class", "category", "grade", "star", "sentiment", "y", "correct")
_SPLIT = _named("split", "fold", "subset", "partition", "set")
_SPLITS = re.compile(r"train|test|dev|val|eval|held", re.IGNORECASE)
_GROUP = _named(
    *("passage", "context", "document", "doc", "title", "topic", "group", "subject", "author", "director", "speaker"),
    *("user", "source", "article"),
)


class Guess(NamedTuple):
    """One thing that was guessed, and from what."""

    what: str
    value: str
    why: str


@dataclass
class Roles:
    """What the columns of a data set are for."""

    template: str = ""
    fields: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    split: str | None = None
    group_by: str | None = None
    probed: bool = False
    other_labels: list[str] = field(default_factory=list)
    told_labels: list[str] = field(default_factory=list)
    with_commas: list[str] = field(default_factory=list)
    other_groups: list[str] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)

    def guess(self, what: str, value: str, why: str) -> None:
        """Note a guess."""
        self.guesses.append(Guess(what, value, why))


def assign(columns: Sequence[Column], rows: int) -> Roles:
    """Say what every column is for."""
    roles = Roles()
    left = [column for column in columns if not column.identifies and column.kind != "other"]
    roles.split = _split(left, roles)
    left = [column for column in left if column.name != roles.split]
    asked = next((column for column in left if _QUESTION(column) and column.kind == "text" and column.usable), None)
    answered = _answered(left, asked)
    _label(left, answered, asked, roles, rows)
    taken = {*(name.rpartition(":")[0] for name in roles.labels), *(one.name for one in answered)}
    _prompt([column for column in left if column.name not in taken], asked, columns, roles)
    for one in answered:
        if one.name not in roles.fields:
            roles.answers.append(one.name)
            many = "lists of accepted answers" if one.kind == "list" else "one answer a row"
            roles.guess("answers", one.name, f"its name, and {many}")
    yes_no = next((name for name in roles.labels if name.endswith(":boolean")), None)
    if asked is not None and yes_no is not None and not roles.answers:
        roles.choices = [" true", " false"]
        roles.guess("choices", "true, false", f"the questions are answered by {yes_no.rpartition(':')[0]}")
    _group(columns, roles, rows)
    return roles


def _answered(columns: Sequence[Column], asked: Column | None) -> list[Column]:
    """Return the columns of accepted answers, those with the surest name alone."""
    for named in _ANSWERS:
        found = [one for one in columns if named(one) and one.kind in ("text", "list") and _is_answer(one, asked)]
        if found:
            return found
    return []


def _is_answer(column: Column, asked: Column | None) -> bool:
    """Tell answers from a label with few classes; without a question, only lists are answers."""
    return column.kind == "list" or (asked is not None and not _is_category(column))


def _is_category(column: Column) -> bool:
    return column.kind == "text" and few_classes(column.distinct, column.rows, column.words)


def _split(columns: Sequence[Column], roles: Roles) -> str | None:
    for column in columns:
        if _SPLIT(column) and column.distinct <= 10 and any(_SPLITS.search(value) for value in column.counts):
            roles.guess("split", column.name, f"its values are {', '.join(sorted(column.counts)[:4])}")
            return column.name
    return None


def _label(
    columns: Sequence[Column], answered: Sequence[Column], asked: Column | None, roles: Roles, rows: int
) -> None:
    """Choose the labels: what is named like one first, then categories and booleans, then other numbers.

    A category that the question's own words tell is none.
    """
    found: list[tuple[int, Column, str, str]] = []
    for column in columns:
        if column in answered or column.distinct < 2:
            continue
        if column.kind == "decimal comma":
            roles.with_commas.append(column.name)
            roles.guess("no label", column.name, "numbers with a decimal comma: write points, then it can be a number")
            continue
        sure = _SCORE(column)
        if column.kind == "boolean":
            found.append((0 if sure else 1, column, "boolean", "two values, yes and no"))
        elif column.kind == "number":
            coded = sure and column.distinct <= 10 and all(re.fullmatch(r"-?\d+", value) for value in column.counts)
            if coded and not _named("rating", "score", "star", "grade")(column):
                found.append((0, column, "category", f"{column.distinct} whole numbers that look like classes"))
            else:
                found.append((0 if sure else 2, column, "number", "every cell is a number"))
        elif _is_category(column) and asked is not None and told_by_a_word(column.texts, asked.texts):
            roles.told_labels.append(f"{column.name}:category")
            roles.guess("no label", column.name, "words of the question tell it, so that a probe would read those")
        elif _is_category(column):
            found.append((0 if sure else 1, column, "category", f"{column.distinct} values that repeat"))
    found.sort(key=lambda one: one[0])
    best = found[0][0] if found else 0
    for rank, column, kind, why in found:
        if len(roles.labels) < MOST_LABELS and (rank <= 1 or rank == best):
            roles.labels.append(f"{column.name}:{kind}")
            gone = f"; {rows - column.rows:,} of {rows:,} rows have none" if column.rows < rows else ""
            roles.guess("label", roles.labels[-1], why + gone)
            roles.probed = roles.probed or _enough(column, kind)
        else:
            roles.other_labels.append(f"{column.name}:{kind}")


def _enough(column: Column, kind: str) -> bool:
    return column.rows >= _ENOUGH and (kind == "number" or _two_classes(column.counts))


def _two_classes(counts: Counter[str]) -> bool:
    return sum(count >= _ENOUGH_OF_CLASS for count in counts.values()) >= 2


def trial(columns: Sequence[Column], roles: Roles, rows: int) -> int | None:
    """Return how many of the first rows do for a trial; None where only all rows do.

    In rows sorted by a label the first ones have one class, and no probe can be fitted.
    """
    kinds = dict(name.rpartition(":")[::2] for name in roles.labels)
    labels = [one for one in columns if kinds.get(one.name) in ("category", "boolean") and _two_classes(one.counts)]
    for limit in _TRIALS:
        first = [Counter(text for text in one.texts[:limit] if text is not None) for one in labels]
        if all(map(_two_classes, first)):
            return limit
        if limit >= rows:
            break
    return None


def _prompt(left: Sequence[Column], asked: Column | None, columns: Sequence[Column], roles: Roles) -> None:
    """Choose the fields of the prompt and write the template."""
    texts = [column for column in left if column.usable and column.kind in ("text", "list") and not _CHOICES(column)]
    whole = next((column for column in texts if _PROMPT(column)), None)
    alone = next((column for column in texts if _TEXT(column)), None)
    if whole is not None:
        fields, template, why = [whole], "{prompt}", "a column that is the prompt"
        if whole.name != WHOLE_PROMPT:
            template = f"{{{whole.name}}}"
    elif asked is not None:
        fields = [*(column for column in texts if _PASSAGE(column)), asked]
        template = "".join(f"{{{column.name}}}\n" for column in fields[:-1]) + f"Question: {{{asked.name}}}\nAnswer:"
        why = "a column of questions" + (" and one to read first" if len(fields) > 1 else "")
    elif alone is not None:
        fields, template, why = [alone], f"{{{alone.name}}}", "a column of texts"
    else:
        fields = texts or [column for column in columns if column.usable and column.name != WHOLE_PROMPT]
        longest = sorted(fields, key=lambda column: -column.words)[:MOST_FIELDS]
        fields = [column for column in fields if column in longest]
        template = "\n".join(f"{_title(column.name)}: {{{column.name}}}" for column in fields)
        why = "the columns with most words" if texts else "there is no column of text"
    roles.template, roles.fields = template, [column.name for column in fields]
    roles.guess("prompt", ", ".join(roles.fields) or "-", why)


def _title(name: str) -> str:
    """Write a column's name as a line of a prompt begins: `movie_name` is `Movie name`."""
    words = re.sub(r"[_\W]+", " ", name.rpartition(".")[2] or name).strip()
    return (words or "Text")[:1].upper() + (words or "Text")[1:]


def _group(columns: Sequence[Column], roles: Roles, rows: int) -> None:
    """Choose the column whose equal values must not straddle a fold."""
    labels = {name.rpartition(":")[0] for name in roles.labels}
    shared = [
        column
        for column in columns
        if column.kind in ("text", "number")
        and not column.counting
        and column.name not in {*labels, roles.split}
        and 2 * _FOLDS <= column.distinct < column.rows
        and max(column.counts.values()) <= rows / _FOLDS
    ]
    named = [column for column in shared if _GROUP(column) and column.kind == "text"]
    if named and roles.labels:
        chosen = next((column for column in named if _PASSAGE(column)), named[0])
        roles.group_by = chosen.name
        roles.guess("group_by", chosen.name, f"{chosen.rows:,} rows share {chosen.distinct:,} values")
    spoken = {roles.group_by, *roles.fields, *roles.answers}
    roles.other_groups = [column.name for column in shared if column.kind == "text" and column.name not in spoken]
