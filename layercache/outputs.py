"""Names of the things that can be captured, and how they are read from what a user writes.

A *feature* says which vector or position of a prompt is meant: `mean@prompt`, `last@question`. An
*output* is one thing captured at every layer, with a canonical name, and is the unit of caching:

    tokens                        the sample's tokens, with the spans they belong to
    hidden:resid:mean@prompt      states at a site, pooled
    lens:last@prompt:top10        the logit lens at a position
    generation:1f0c9a2e           text generated from every layer; the hash is of the settings
"""

from typing import Literal, NamedTuple, get_args

from layercache.errors import RecipeError

Site = Literal["resid", "attn_out", "mlp_out"]
Pooling = Literal["mean", "max", "first", "last"]
Position = Literal["first", "last"]

SITES: tuple[str, ...] = get_args(Site)
POOLINGS: tuple[str, ...] = get_args(Pooling)
POSITIONS: tuple[str, ...] = get_args(Position)
WHOLE_PROMPT = "prompt"
TOKENS = "tokens"


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

    def __str__(self) -> str:
        return f"hidden:{self.site}:{self.pooling}"


class Lens(NamedTuple):
    """The logit lens at one named position, keeping the `top_k` most probable tokens."""

    position: Feature
    top_k: int

    def __str__(self) -> str:
        return f"lens:{self.position}:top{self.top_k}"


class Generation(NamedTuple):
    """Text generated from every layer; `settings` is the hash of how."""

    settings: str

    @property
    def position(self) -> Feature:
        """The token that a text goes on from, which every sample has."""
        return Feature("last", WHOLE_PROMPT)

    @property
    def feature(self) -> Feature:
        """The same, as every output has one."""
        return self.position

    def __str__(self) -> str:
        return f"generation:{self.settings}"


Output = Hidden | Lens | Generation


def parse_feature(text: str, known: tuple[str, ...], what: str) -> Feature:
    """Read `mean@question`; a bare `mean` means the whole prompt.

    Raises:
        RecipeError: `how` is not in `known`; `what` names the setting in the message.
    """
    how, _, span = text.strip().partition("@")
    if how not in known:
        raise RecipeError(f"unknown {what} {text!r}: use one of {', '.join(known)}, optionally @a span (mean@question)")
    return Feature(how, span or WHOLE_PROMPT)


def parse_pooling(text: str) -> Feature:
    """Read a pooling such as `mean` or `last@question`."""
    return parse_feature(text, POOLINGS, "pooling")


def parse_position(text: str) -> Feature:
    """Read a lens position such as `last` or `first@answer`."""
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
    if kind == "lens" and second.startswith("top") and second[3:].isdigit():
        return Lens(parse_position(first), int(second[3:]))
    if kind == "generation" and rest:
        return Generation(rest)
    raise RecipeError(f"unknown output {name!r}")
