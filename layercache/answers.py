"""Is an answer right, does it say "I don't know", and which of its characters are the answer itself?

    label("It was the Beatles, in 1967.", ["Beatles"])    Labelled(correct=True, dont_know=False, start=11, end=18)

An answer is right when an accepted answer (an alias) stands in it as whole words, both folded as `folding.py` does.

    short aliases   One or two letters (`no`, `US`, one Chinese character) only count at the end of a short first
                    clause: "No." and "It is the UK", not "There is no such film". One or two digits may stand
                    anywhere in such a clause.
    signs           An alias without a letter or digit (`!!!`) only counts as the whole answer.
    negation        A match with a negation at most two words before it in its clause does not count: "It is not Paris".
    don't know      Such an answer is never right, unless the alias is what was said ("Unknown", a film).

The exact answer is the alias that is right (the first that stands in the text, the longest of those that begin there);
in a wrong answer the first clause. A clause ends at a line's end, at `. ! ? ;` and a comma before white space, at a
dash between spaces and at an opening bracket; not at the full stop of an initial or of `St.`, `Dr.` and the like.
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from layercache.errors import DataError
from layercache.folding import IGNORED, SOFT, Folded, Word, fold, is_unspaced


class Labelled(NamedTuple):
    """What is said of an answer; its exact answer is the characters [start, end), None where it has none."""

    correct: bool
    dont_know: bool
    start: int | None
    end: int | None


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


SHORT, SHORT_CLAUSE = 2, 6
"""Letters of an alias that is guarded, and the words of a clause that such an alias may end."""
NEGATIONS = frozenset(
    _phrases("not|never|nor|neither|cannot|isnt|wasnt|arent|werent|aint|dont|doesnt|didnt|wont|wouldnt|cant|couldnt")
)
"""Folded words that turn what follows them round; `only` in between does not let them."""
DONT_KNOW = _phrases(
    "I don't know|I do not know|we don't know|we do not know|don't know the answer|do not know the answer|I dunno"
    "|no idea|not sure|I am unsure|I'm unsure|cannot answer|can't answer|unable to answer|cannot say|can't say"
    "|hard to say|cannot determine|cannot be determined|unable to determine|unable to provide|unable to find"
    "|could not find|couldn't find|is unknown|it is not known|no one knows|nobody knows|no information"
    "|not enough information|insufficient information|don't have information|do not have information"
    "|don't have any information|do not have any information|don't have enough information"
    "|do not have enough information|don't have access|do not have access|not aware of|not familiar with"
    "|don't recall|do not recall|don't remember|do not remember|I am sorry|I'm sorry|I apologize|I apologise"
    "|question is unanswerable"
)
"""Words that say so in an answer's first sentence, where no `but` or `however` follows; compared folded."""
DONT_KNOW_ALONE = _phrases("unknown|don't know|do not know|dunno|idk|n/a|no answer|not known|unsure|sorry|unanswerable")
"""Words that say so where the first clause is nothing else."""

_ABBREVIATED = r"(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|Jr|Sr|St|Mt|Ft|Lt|vs))(?<!\b(?:Mrs|Gen|Col|Rev|Sgt))(?<!\b(?:Prof|Capt))"
_BREAK = re.compile(
    rf"\n|{_ABBREVIATED}\.(?=[\s\"'”’)\]]|$)|[!?;](?=[\s\"'”’)\]]|$)|,(?=\s|$)|[。！？；，、]|—|\s[-–]\s|\s\("
)
_SENTENCE = re.compile(rf"\n|{_ABBREVIATED}\.(?=\s|$)|[!?。！？]")
_TRIMMED = " \t\r\n\"'“”‘’«»„()[]*_`.,;:!?。、，"


def label(answer_text: str, aliases: Sequence[str]) -> Labelled:
    """Label one generated answer.

    Args:
        answer_text: what was generated, as it is.
        aliases: the accepted answers; an empty one is never matched.
    """
    clause = first_clause(answer_text)
    if clause is None:
        return Labelled(False, False, None, None)
    unknown = _dont_know(answer_text, clause)
    found = [match for alias in aliases for match in _matches(answer_text, clause, alias)]
    if unknown is not None:
        found = [(start, end) for start, end in found if start <= unknown[0] and unknown[1] <= end]
    if not found:
        return Labelled(False, unknown is not None, *clause)
    start, end = min(found, key=lambda match: (match[0], -match[1]))
    return Labelled(True, False, start, end)


def first_clause(text: str) -> tuple[int, int] | None:
    """Return the characters of a text's first clause that says something, without the signs around it.

    Returns:
        None where the text is empty; where it has no letter or digit, all of it but white space.
    """
    start = 0
    for end in [*(match.start() for match in _BREAK.finditer(text)), len(text)]:
        if any(char.isalnum() for char in text[start:end]):
            return _trimmed(text, start, end, _TRIMMED)
    return _trimmed(text, 0, len(text), " \t\r\n") if text.strip() else None


def read_aliases(cell: Any, where: Callable[[], str] = lambda: "a cell") -> list[str] | None:
    """Read the cell of a column of accepted answers: a list, a JSON (or Python) list as text, or one plain text.

    Args:
        where: gives what a failure's message opens with: the column and the row.

    Returns:
        None where the cell says nothing.

    Raises:
        DataError: the cell is a number, a boolean, an object, a list of other things than texts and numbers, or text
            that opens and closes like a list and is none.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if text[:1] + text[-1:] not in ("[]", "{}"):
            return [text] if text else None
        cell = _literal(text)
        if cell is None:
            raise DataError(f"{where()}: {text[:40]!r} opens like a list and is none: write a JSON list, or plain text")
    if cell is None:
        return None
    if not isinstance(cell, (list, tuple)):
        shown = "an object" if isinstance(cell, dict) else repr(cell)[:40]
        raise DataError(
            f"{where()}: {shown} is not a list of accepted answers: name a column of lists or texts, or write it as text"
        )
    items = [item for item in cell if item is not None]
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise DataError(f"{where()}: the list {json.dumps(cell, default=str)[:40]} does not hold texts only")
    return [str(item).strip() for item in items if str(item).strip()] or None


def _literal(text: str) -> Any:
    """Read JSON, or what Python (and a data frame's CSV) writes for a list; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _trimmed(text: str, start: int, end: int, signs: str) -> tuple[int, int]:
    part = text[start:end]
    return end - len(part.lstrip(signs)), start + len(part.rstrip(signs))


def _bare(text: str) -> str:
    return text.strip(_TRIMMED) or text.strip()


def _matches(text: str, clause: tuple[int, int], alias: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of every place where an alias counts."""
    wanted = _pattern(alias)
    if wanted is None:
        return [clause] if alias.strip() and _bare(text) == _bare(alias) else []
    folded = _fold_answer(text, wanted.articles)
    if wanted.letters not in _SEAMS.sub("", folded.key):  # Most are not there, and this is cheaper to see.
        return []
    found = []
    for match in wanted.pattern.finditer(folded.key):
        first = folded.starts.index(match.start())
        last = sum(start < match.end() for start in folded.starts) - 1
        if not _is_denied(text, folded.words, first) and (not wanted.short or _is_told(folded, first, last, clause)):
            found.append((folded.words[first].start, folded.words[last].end))
    return found


_SEAMS = re.compile("[- ]")


class _Wanted(NamedTuple):
    """An alias ready to be looked for.

    Attributes:
        letters: its key without seams, which that of every text that has it contains.
        articles: it is made of nothing but words that are otherwise left out.
    """

    pattern: re.Pattern[str]
    letters: str
    short: bool
    articles: bool


@lru_cache(maxsize=1 << 16)
def _pattern(alias: str) -> _Wanted | None:
    """Write an alias as a pattern of keys: a soft seam is as good as none, and as good as a hard one."""
    folded = fold(alias)
    if not folded.words:
        return None
    pattern = ""
    for word in folded.words:
        pattern += {SOFT: "[- ]?"}.get(word.seam, "[- ]") if pattern else ""
        pattern += f"{SOFT}?".join(map(re.escape, word.text))
    weight = sum(1 + is_unspaced(char) for word in folded.words for char in word.text)
    return _Wanted(
        re.compile(rf"(?:^|(?<=[- ])){pattern}(?=[- ]|$)"),
        _SEAMS.sub("", folded.key),
        weight <= SHORT,
        all(word.text in IGNORED for word in folded.words),
    )


@lru_cache(maxsize=64)
def _fold_answer(text: str, articles: bool) -> Folded:
    return fold(text, articles=articles)


def _is_told(folded: Folded, first: int, last: int, clause: tuple[int, int]) -> bool:
    """Tell whether a short alias stands where it can only be the answer."""
    inside = [n for n, word in enumerate(folded.words) if clause[0] <= word.start < clause[1]]
    if first == 0 and last == len(folded.words) - 1:
        return True
    if last not in inside or len(inside) > SHORT_CLAUSE:
        return False
    digits = all(word.text.isdecimal() for word in folded.words[first : last + 1])
    return digits or last == inside[-1]


def _is_denied(text: str, words: Sequence[Word], first: int) -> bool:
    """Tell whether a negation stands at most two words before a match, in its clause."""
    for before in reversed(words[max(0, first - 2) : first]):
        if before.text == "only" or _BREAK.search(text, before.end, words[first].start):
            return False
        if before.text in NEGATIONS:
            return True
    return False


_ALONE = frozenset(fold(phrase).key for phrase in DONT_KNOW_ALONE)
_UNKNOWN = re.compile(rf"(?:^|(?<= ))(?:{'|'.join(re.escape(fold(phrase).key) for phrase in DONT_KNOW)})(?= |$)")
_BUT = re.compile(r"(?:^| )(?:but|however)(?= |$)")


def _dont_know(text: str, clause: tuple[int, int]) -> tuple[int, int] | None:
    """Return the characters in which an answer says that it has none."""
    if _fold_answer(text[slice(*clause)], False).key in _ALONE:
        return clause
    stop = _SENTENCE.search(text, clause[0])
    folded = _fold_answer(text[: stop.start() if stop else len(text)], False)
    match = _UNKNOWN.search(folded.key)
    if match is None or _BUT.search(folded.key, match.end()):
        return None
    last = sum(start < match.end() for start in folded.starts) - 1
    return folded.words[folded.starts.index(match.start())].start, folded.words[last].end
