"""Names of the things that can be captured, and how they are read from what a user writes.

A *feature* says which vector or position of a prompt is meant: `mean@prompt`, `last@question`. An
*output* is one thing captured at every layer, with a canonical name, and is the unit of caching:

    tokens                        the sample's tokens, with the spans they belong to
    hidden:resid:mean@prompt      states at a site, pooled
    lens:last@prompt:top10        the logit lens at a position
    lens:last@prompt:top10:choices-1a2b3c4d    the same, with the scores of given answers
    stats:norm                    a statistic over the prompt's tokens
    generation:1f0c9a2e           text generated from every layer; the hash is of the settings
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from layercache import nearest, token_statistics
from layercache.errors import RecipeError

Site = Literal["resid", "attn_out", "mlp_out"]
Pooling = Literal["mean", "max", "first", "last", "mean+special", "mean-sinks", "token"]
Position = Literal["first", "last", "token"]

SITES: tuple[str, ...] = get_args(Site)
POOLINGS: tuple[str, ...] = get_args(Pooling)
POSITIONS: tuple[str, ...] = get_args(Position)
WHOLE_PROMPT = "prompt"
TOKENS = "tokens"
SINK_CUTOFF = 5.0
"""Tokens whose L2 norm is above this multiple of the sample's median token norm are attention sinks.

A massive activation is about 1,000 times the median magnitude (Sun, Chen, Kolter & Liu 2024, "Massive Activations
in Large Language Models", arXiv:2402.17762). Among d normally distributed elements one such element makes a token's
norm 1000 · 0.6745 / √d times the others': 24 at d = 768, 10.5 at 4,096, 5.3 at 16,384. Ordinary tokens of one layer
differ by about 2, so 5 stands between the two at every width in use.
"""
_LENS = re.compile(r"top(\d+)(?::choices-([0-9a-f]{8}))?")
_SINKS = re.compile(r"(mean-sinks|sinks)(\d+(?:\.\d+)?)?")


class Feature(NamedTuple):
    """How (tokens, d) becomes one vector, or which token is meant: `how` over the span `span`."""

    how: str
    span: str

    def __str__(self) -> str:
        return f"{self.how}@{self.span}"


class Hidden(NamedTuple):
    """States at `site`, pooled by `pooling`."""

    site: str
    pooling: Feature

    @property
    def feature(self) -> Feature:
        """The tokens it reads."""
        return self.pooling

    def __str__(self) -> str:
        return f"hidden:{self.site}:{self.pooling}"


class Lens(NamedTuple):
    """The logit lens at one named position, keeping the `top_k` most probable tokens.

    `choices` is the `choices_hash` of the answers it scores; empty where it scores none.
    """

    position: Feature
    top_k: int
    choices: str = ""

    @property
    def feature(self) -> Feature:
        """The token it reads."""
        return self.position

    def __str__(self) -> str:
        return f"lens:{self.position}:top{self.top_k}" + (f":choices-{self.choices}" if self.choices else "")


class Stats(NamedTuple):
    """A statistic over the prompt's tokens, special ones left out, of the residual stream: `norm`, `sinks6`.

    What there is, and how names are made, is `layercache.token_statistics`.
    """

    metric: str

    @property
    def feature(self) -> Feature:
        """The tokens it reads: those of `mean@prompt`."""
        return Feature("mean", WHOLE_PROMPT)

    @property
    def spectral(self) -> bool:
        """Whether it takes eigenvalues."""
        return token_statistics.parse(self.metric).spectral

    def __str__(self) -> str:
        return f"stats:{self.metric}"


class Generation(NamedTuple):
    """Text generated from every layer; `settings` is the hash of how."""

    settings: str

    @property
    def feature(self) -> Feature:
        """The token that a text goes on from, which every sample has."""
        return Feature("last", WHOLE_PROMPT)

    def __str__(self) -> str:
        return f"generation:{self.settings}"


Output = Hidden | Lens | Stats | Generation


def parse_feature(text: str, known: tuple[str, ...], what: str) -> Feature:
    """Read `mean@question`; a bare `mean` means the whole prompt.

    Raises:
        RecipeError: `how` is not in `known`; `what` names the setting in the message.
    """
    how, _, span = text.strip().partition("@")
    if how not in known:
        close = nearest.nearest(how, known)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(
            f"unknown {what} {text!r}: {meant}use one of {', '.join(known)}, optionally @a span (mean@question)"
        )
    return Feature(how, span or WHOLE_PROMPT)


def parse_pooling(text: str) -> Feature:
    """Read a pooling such as `mean`, `last@question` or, with a cut-off of its own, `mean-sinks6`."""
    how = text.strip().partition("@")[0]
    known = POOLINGS if sink_cutoff(how) is None or not how.startswith("mean") else (how,)
    return parse_feature(text, known, "pooling")


def parse_statistic(text: str) -> str:
    """Return the canonical name of a statistic over tokens: `norm`, `sinks6`, `prompt_entropy2+centre`.

    A cut-off of sinks stays as it is written, since `with_cutoff` gives one to names without.

    Raises:
        RecipeError: it is not known.
    """
    found = token_statistics.parse(text)
    if found.metric == "sinks":
        sink_cutoff(str(found))
    return str(found)


def sink_cutoff(name: str) -> float | None:
    """Return the cut-off that `mean-sinks6` or `sinks` means; None for what has none.

    Raises:
        RecipeError: it is below 1, where the median token itself would be above it.
    """
    match = _SINKS.fullmatch(name)
    if match is None:
        return None
    cutoff = float(match[2]) if match[2] else SINK_CUTOFF
    if cutoff < 1:
        raise RecipeError(f"{name}: a cut-off is a multiple of the median token norm, at least 1")
    return cutoff


def with_cutoff(name: str, cutoff: float) -> str:
    """Return the canonical name of a pooling's `how` or a statistic: `cutoff` is taken where it names none itself."""
    match = _SINKS.fullmatch(name)
    if match is None:
        return name
    value = float(match[2]) if match[2] else cutoff
    return match[1] if value == SINK_CUTOFF else f"{match[1]}{value:.10g}"


def choices_hash(choices: Sequence[str]) -> str:
    """Return eight hex digits that tell sets of answers apart: of the sha256 of their sorted JSON list."""
    text = json.dumps(sorted(choices), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def one_row_a_token(pooling: str) -> bool:
    """Tell whether a stored pooling or lens position has a row for every token (`token@question`)."""
    return pooling.partition("@")[0] == "token"


def parse_position(text: str) -> Feature:
    """Read a lens position such as `last`, `first@answer` or, for every token, `token@question`."""
    return parse_feature(text, POSITIONS, "lens position")


def parse_site(text: str) -> str:
    """Check the name of a site of a block.

    Raises:
        RecipeError: the site is not known.
    """
    if text not in SITES:
        raise RecipeError(f"unknown site {text!r}: use one of {', '.join(SITES)}")
    return text


def parse_output(name: str) -> Output | None:
    """Read an output's canonical name back; None for `tokens`, which has no layers.

    Raises:
        RecipeError: the name is not one that this version writes.
    """
    if name == TOKENS:
        return None
    kind, _, rest = name.partition(":")
    first, _, second = rest.partition(":")
    if kind == "hidden":
        return Hidden(parse_site(first), parse_pooling(second))
    if kind == "lens" and (match := _LENS.fullmatch(second)):
        return Lens(parse_position(first), int(match[1]), match[2] or "")
    if kind == "stats":
        return Stats(parse_statistic(rest))
    if kind == "generation" and rest:
        return Generation(rest)
    raise RecipeError(f"unknown output {name!r}")
