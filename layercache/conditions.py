"""Names of the conditions that a model is run under, and how they are read from what a user writes.

    clean                         the prompt as it is
    knockout-<span>               no later token attends to the span's tokens
    control-<span>                the same for as many tokens drawn from the rest of the prompt
    …-layers-<a>-<b>              either one in blocks a to b alone, counted from 1
    answer-only                   the answer's tokens, without the prompt
    patch-<span>                  the span's tokens replaced by another sample's of the same span
    control-patch-<span>          as many tokens from the rest of the prompt replaced by that sample's
    augment-<n>                   the n-th view of the prompt with split words, random characters and typos
    repeat-<p>                    every token replaced with probability p by one token of the same prompt
    random-<p>                    every token replaced with probability p by one of the vocabulary
    truncate-<n>                  the prompt's first n tokens

A parameter that is not at its default adds `-` and eight hex digits of the hash of all parameters. What each one
does to a sample is `layercache.extract.conditions`.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from layercache import nearest
from layercache.errors import RecipeError
from layercache.outputs import WHOLE_PROMPT

CLEAN, ANSWER_ONLY = "clean", "answer-only"
KNOCKOUT, CONTROL, PATCH, CONTROL_PATCH = "knockout", "control", "patch", "control-patch"
AUGMENT, REPEAT, RANDOM, TRUNCATE = "augment", "repeat", "random", "truncate"
ANSWER, EXACT_ANSWER = "answer", "exact_answer"
"""Spans of a prompt that are not part of what is asked: no control token is drawn from them, no view changes them."""

OF_SPANS = (CONTROL_PATCH, KNOCKOUT, CONTROL, PATCH)
"""Kinds with a span; `control-patch-…` is read as the first of these."""
OF_NUMBERS = (AUGMENT, REPEAT, RANDOM, TRUNCATE)
CUTS = (KNOCKOUT, CONTROL)
_FORMS = (
    *("knockout-SPAN", "control-SPAN", "patch-SPAN", "control-patch-SPAN", ANSWER_ONLY),
    *("augment-1", "repeat-0.25", "random-0.25", "truncate-64"),
)
_HASH = r"(?:-(?P<digest>[0-9a-f]{8}))?"
_COUNT, _PROBABILITY = r"(?P<number>[1-9]\d{0,8})", r"(?P<number>(?:\d?\.\d{1,6}|1))"
_NUMBERS = {AUGMENT: _COUNT, TRUNCATE: _COUNT, REPEAT: _PROBABILITY, RANDOM: _PROBABILITY}
_TAIL = re.compile(r"(?:-layers-(?P<first>\d{1,4})-(?P<last>\d{1,4}))?" + _HASH)
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""What a condition's name may be made of, since it is a folder's."""


class Settings(NamedTuple):
    """Parameters that several conditions share; what they are at unless a recipe says otherwise."""

    seed: int = 0
    control_from: str = WHOLE_PROMPT
    augment_rate: float = 0.3


_USED = {
    CONTROL: ("seed", "control_from"),
    CONTROL_PATCH: ("seed", "control_from"),
    PATCH: ("seed",),
    AUGMENT: ("seed", "augment_rate"),
    REPEAT: ("seed",),
    RANDOM: ("seed",),
}
"""The settings that change what a kind does."""


@dataclass(frozen=True)
class Condition:
    """One way to run a model.

    Attributes:
        kind: `knockout`, `control`, `answer-only`, … as the name begins.
        span: the span cut or patched.
        layers: the first and last block of a cut, from 1; None for every block.
        number: the view of `augment`, the probability of `repeat` and `random`, the tokens of `truncate`.
        digest: the eight hex digits that end the name where a parameter is not at its default; else empty.
    """

    kind: str
    span: str | None = None
    layers: tuple[int, int] | None = None
    number: float | None = None
    digest: str = ""

    @property
    def name(self) -> str:
        """The canonical name, also of the condition's folder in a store."""
        parts = [self.kind, self.span, self.layers and "layers-{}-{}".format(*self.layers), _written(self.number)]
        return "-".join(part for part in [*parts, self.digest] if part)


def parse(name: str, spans: Iterable[str]) -> Condition:
    """Read a condition's name, given the names of the spans that there are.

    Raises:
        RecipeError: it is no condition, its span is unknown, or a number in it is not allowed; names what is near.
    """
    text = name.strip()
    check(text)
    if text in (CLEAN, ANSWER_ONLY):
        return Condition(text)
    kind, _, rest = text.partition("-")
    if kind in OF_NUMBERS:
        found = _number(kind, rest)
        return Condition(kind, number=float(found["number"]), digest=found["digest"] or "")
    known = sorted(set(spans), key=lambda span: (-len(span), span))
    for kind in OF_SPANS:
        for span in known:
            match = _tail(kind, span, text)
            if match is not None:
                return Condition(kind, span, _window(text, match), digest=match["digest"] or "")
    near = nearest.nearest(text, [f"{kind}-{span}" for kind in OF_SPANS for span in sorted(known)])
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"condition {name!r}: {hint}no span of the prompts is called so; there are {', '.join(sorted(known)) or 'none'}"
        f" ({remedy(_span_meant(text))})"
    )


def _span_meant(name: str) -> str:
    """Return what stands in a condition's name where its span would."""
    opening = next(f"{kind}-" for kind in OF_SPANS if name.startswith(f"{kind}-"))
    return re.sub(r"-layers-.*", "", name.removeprefix(opening))


def remedy(span: str) -> str:
    """Say what makes a span that is not there."""
    if span in (ANSWER, EXACT_ANSWER):
        return f"--generate-answer makes the spans {ANSWER} and {EXACT_ANSWER}"
    return f"every field of the template is a span, and --span {span}@FIELD makes one of a column's text in a field"


def _tail(kind: str, span: str, text: str) -> "re.Match[str] | None":
    """Match what follows kind and span; None where the name is of another kind or span."""
    opening = f"{kind}-{span}"
    match = _TAIL.fullmatch(text.removeprefix(opening)) if text.startswith(opening) else None
    return match if match is not None and (kind in CUTS or match["first"] is None) else None


def _number(kind: str, rest: str) -> "re.Match[str]":
    match = re.fullmatch(_NUMBERS[kind] + _HASH, rest)
    if match is None or not float(match["number"]) > 0:
        what = "a whole number from 1" if kind in (AUGMENT, TRUNCATE) else "a probability above 0, up to 1"
        raise RecipeError(f"condition '{kind}-{rest}': {kind}- is followed by {what}: write {_rewritten(kind, rest)}")
    if kind in (REPEAT, RANDOM) and float(match["number"]) > 1:
        written = _rewritten(kind, rest)
        raise RecipeError(f"condition '{kind}-{rest}': {match['number']} is no probability: write {written}")
    return match


def _rewritten(kind: str, rest: str) -> str:
    """Return how the number that was perhaps meant is written; an example where there is none."""
    match = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*(%?).*", rest)
    value = float(match[1].replace(",", ".")) if match else 0.0
    if kind in (AUGMENT, TRUNCATE):
        return f"{kind}-{int(value)}" if 1 <= value < 1e9 else f"{kind}-{'2' if kind == AUGMENT else '64'}"
    share = value / 100 if match and (match[2] or value > 1) else value
    return f"{kind}-{_written(share) if 1e-6 <= share <= 1 else '0.25'}"


def check(name: str) -> str:
    """Check a condition's name as far as that goes without knowing the spans; return it without white space.

    Raises:
        RecipeError: no condition is called so, or a number in it is not allowed.
    """
    text = name.strip()
    kind, _, rest = text.partition("-")
    if kind in OF_NUMBERS:
        # Before its characters are looked at: of `random-25%` the number is what is wrong.
        _number(kind, rest)
        return text
    if not _SAFE.fullmatch(text):
        raise RecipeError(
            f"condition {name!r}: it names a folder, so use letters, digits, '.', '_' and '-' alone, at most 100; a"
            " span whose column has other characters needs the column renamed"
        )
    if text in (CLEAN, ANSWER_ONLY) or any(text.startswith(f"{kind}-") and text != f"{kind}-" for kind in OF_SPANS):
        return text
    near = nearest.nearest(kind, [form.partition("-")[0] for form in _FORMS])
    hint = next((f"did you mean {form}? " for form in _FORMS if near and form.startswith(near[0])), "")
    raise RecipeError(f"unknown condition {name!r}: {hint}conditions are {', '.join(_FORMS)}")


def _window(name: str, match: "re.Match[str]") -> tuple[int, int] | None:
    if match["first"] is None:
        return None
    first, last = int(match["first"]), int(match["last"])
    if not 1 <= first <= last:
        raise RecipeError(f"condition {name!r}: blocks are counted from 1 and the first comes first (layers-1-4)")
    return first, last


def _written(number: float | None) -> str | None:
    """Write a number in the one way that names have it: `0.25`, `1`, `64`."""
    return None if number is None else f"{number:.6f}".rstrip("0").rstrip(".")


def parameters(condition: Condition, settings: Settings) -> dict[str, Any]:
    """Return everything that decides what a condition does, as plain values; defaults included."""
    used = {name: getattr(settings, name) for name in _USED.get(condition.kind, ())}
    layers = None if condition.layers is None else list(condition.layers)
    number = {} if condition.number is None else {"number": condition.number}
    span = {} if condition.span is None else {"span": condition.span}
    return {"kind": condition.kind, **span, **({"layers": layers} if condition.kind in CUTS else {}), **number, **used}


def with_settings(condition: Condition, settings: Settings) -> Condition:
    """Give a condition the name that it has under some settings.

    Raises:
        RecipeError: its name ends in the hash of other settings.
    """
    default = Settings()
    special = any(getattr(settings, name) != getattr(default, name) for name in _USED.get(condition.kind, ()))
    text = json.dumps(parameters(condition, settings), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8] if special else ""
    if condition.digest not in ("", digest):
        raise RecipeError(
            f"condition {condition.name!r} was made with other settings than these, which give"
            f" {replace(condition, digest=digest).name!r}: leave out the hash"
        )
    return replace(condition, digest=digest)
