"""The rows of a data set as they are trained and tested on: a prompt's tokens and every answer's, and the right one.

The tokens are those that extraction runs and scores: the prompt as its sample has it, the answer as it goes on with it. So
the loss is that of the very tokens whose log-probability the store holds; nothing is added after the answer.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from layercache.choice_texts import folded
from layercache.dataset import Dataset
from layercache.errors import DataError
from layercache.extract import choices
from layercache.extract.choices import Answer
from layercache.extract.tokenize import tokenize
from layercache.groups import TRAIN
from layercache.template import as_text


class Example(NamedTuple):
    """A row: the prompt's tokens, those of every choice, the number of the right choice, and its part of the data."""

    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]
    right: int
    part: str | None


class Examples(NamedTuple):
    """The rows of a data set that have a right answer, the choices, and what the user should know."""

    rows: list[Example]
    texts: list[str]
    notes: list[str]

    def of(self, part: str) -> list[Example]:
        """Return the rows of a part."""
        return [one for one in self.rows if one.part == part]

    def digest(self) -> str:
        """Return the sha256 of the rows in order: tokens, answers, and what each is used for."""
        sha = hashlib.sha256()
        for one in self.rows:
            sha.update(repr(tuple(one)).encode())
        return sha.hexdigest()


def make(
    data: Dataset,
    label: str,
    texts: Sequence[str],
    parts: Sequence[str | None],
    tokenizer: Any,
    *,
    context: int | None,
    truncate: bool,
) -> Examples:
    """Tokenise the rows whose label is one of the choices.

    Of choices that differ by blanks and upper case alone, the first is the one that is trained.

    Args:
        label: the column whose text is the right answer.
        texts: the choices.
        parts: what every row is used for, as `splits.parts` says.
        context: tokens the model can see; None for no limit.
        truncate: cut longer prompts, as extraction does.

    Raises:
        DataError: no such column, choices that cannot be told apart, or rows to train on with fewer than two answers.
    """
    if label not in data.frame.columns:
        raise DataError(
            f"finetune.label: data set {data.name} has no column {label!r}: it has {', '.join(data.frame.columns)}"
        )
    kept = list({folded(text): text for text in reversed(texts)}.values())[::-1]
    if len(kept) < 2:
        raise DataError(f"finetune.choices: two answers at least are needed to choose from, not {kept}")
    samples = tokenize(data.prompts, tokenizer, chat=data.chat, context=context, truncate=truncate, place=data.place)
    answers = choices.tokenize(kept, list(samples.distinct.values()), tokenizer, chat=data.chat)
    number = {folded(text): index for index, text in enumerate(kept)}
    rows: list[Example] = []
    left: Counter[str] = Counter()
    for row, (value, sample_id) in enumerate(zip(data.frame[label].to_list(), samples.of_row, strict=True)):
        right = number.get(folded(as_text(value)))
        if right is None or sample_id is None:
            left["have no prompt" if sample_id is None else "have none of the choices for an answer"] += 1
            continue
        sample, own = samples.distinct[sample_id], answers[sample_id]
        if context is not None and len(sample) + max(map(len, own)) - 1 > context:
            left["leave no room for an answer"] += 1
            continue
        rows.append(Example(tuple(sample.tokens.tolist()), own, right, parts[row]))
    notes = [f"{count:,} of {len(samples.of_row):,} rows {why}, and are left out" for why, count in left.items()]
    _check(rows, kept, f"{data.name}, {label!r}")
    return Examples(rows, kept, notes + _shared_first_tokens(rows, kept))


def _check(rows: Sequence[Example], texts: list[str], where: str) -> None:
    """Refuse answers that cannot be told apart, and rows that leave nothing to learn."""
    if not rows:
        raise DataError(f"{where}: no row has one of the choices {texts} for an answer: mend finetune.choices")
    for answers in {one.answers for one in rows}:
        for i, first in enumerate(answers):
            for j, second in enumerate(answers):
                if i != j and second[: len(first)] == first:
                    raise DataError(
                        f"the tokens of choice {texts[i]!r} open those of {texts[j]!r}, which could never be the more"
                        " probable: give other texts"
                    )
    trained = {one.right for one in rows if one.part == TRAIN}
    if not trained:
        raise DataError(f"{where}: no row is left to train on: see the splits and what must not straddle them")
    if len(trained) == 1:
        raise DataError(
            f"{where}: all rows to train on have the answer {texts[trained.pop()]!r}: nothing is to be learnt"
        )


def _shared_first_tokens(rows: Sequence[Example], texts: list[str]) -> list[str]:
    """Say which choices can only be told apart by later tokens."""
    for answers in {one.answers for one in rows}:
        by_token: dict[int, list[str]] = {}
        for text, answer in zip(texts, answers, strict=True):
            by_token.setdefault(answer[0], []).append(text)
        same = next((found for found in by_token.values() if len(found) > 1), None)
        if same is not None:
            return [f"choices {' and '.join(map(repr, same))} share their first token: whole answers are scored"]
    return []


def columns(rows: Sequence[Example]) -> dict[str, list[list[int]]]:
    """Return what a trainer takes: `input_ids`, prompt and right answer, and `labels`, -100 where no loss is taken."""
    inputs, labels = [], []
    for one in rows:
        answer = list(one.answers[one.right])
        inputs.append([*one.tokens, *answer])
        labels.append([-100] * len(one.tokens) + answer)
    return {"input_ids": inputs, "labels": labels}
