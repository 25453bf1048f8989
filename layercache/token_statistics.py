"""Names of the statistics over a prompt's tokens.

A name is a metric, a number where the metric takes one, and options in this order:

    prompt_entropy            entropy of order 1
    prompt_entropy2+centre    of order 2, of the tokens less their mean
    curvature-first           without the first of the tokens

`+centre` takes the tokens' mean from each, then `+unit` makes each of length 1; `-first` leaves the first one out
before either. What the numbers are is `layercache.extract.token_metrics`.
"""

import re
from typing import NamedTuple

from layercache.errors import RecipeError

CENTRE, UNIT, FIRST = "+centre", "+unit", "-first"
_OPTIONS = (CENTRE, UNIT, FIRST)
_TAKES: dict[str, tuple[str, ...]] = {
    "norm": (),
    "max_norm": (),
    "sinks": (),
    "mean_cosine": (CENTRE, FIRST),
    "curvature": (FIRST,),
    "prompt_entropy": (CENTRE, UNIT, FIRST),
    "effective_rank": (CENTRE, UNIT, FIRST),
    # A principal component is of centred tokens.
    "first_pc_share": (UNIT, FIRST),
}
"""Every metric and the options it takes."""
STATISTICS: tuple[str, ...] = tuple(_TAKES)
_NAME = re.compile(r"([a-z_]+)(\d+(?:\.\d+)?)?((?:[+-][a-z]+)*)")
_NUMBERED = {"prompt_entropy": "the order of an entropy", "sinks": "a cut-off"}
_MOST = 100.0
"""The highest order of an entropy."""


class Statistic(NamedTuple):
    """A statistic as its name says it.

    Attributes:
        number: the order of an entropy, the cut-off of sinks; None where the name has none.
        options: of `+centre`, `+unit`, `-first`.
    """

    metric: str
    number: float | None = None
    options: frozenset[str] = frozenset()

    def __str__(self) -> str:
        number = "" if self.number is None else f"{self.number:.10g}"
        return self.metric + number + "".join(one for one in _OPTIONS if one in self.options)

    @property
    def order(self) -> float:
        """The order of an entropy; 1 where the name has no number."""
        return 1.0 if self.number is None else self.number

    @property
    def spectral(self) -> bool:
        """Whether it takes the eigenvalues of the tokens' Gram matrix; order 2 only takes its Frobenius norm."""
        entropy = self.metric == "prompt_entropy" and self.order != 2
        return entropy or self.metric in ("effective_rank", "first_pc_share")


def parse(text: str) -> Statistic:
    """Read a statistic's name; options may stand in any order.

    Raises:
        RecipeError: the metric, its number or an option is not known.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None or match[1] not in _TAKES:
        raise RecipeError(f"unknown statistic {text!r}: use one of {', '.join(STATISTICS)}")
    metric, number, options = match[1], match[2], re.findall("[+-][a-z]+", match[3])
    for option in options:
        if option not in _TAKES[metric]:
            known = ", ".join(_TAKES[metric]) or "none"
            raise RecipeError(f"statistic {text!r}: {metric} has no option {option}; it has {known}")
    if number is not None and metric not in _NUMBERED:
        numbered = " or ".join(f"{what} ({name})" for name, what in _NUMBERED.items())
        raise RecipeError(f"statistic {text!r}: {metric} takes no number; {numbered} is one")
    value = None if number is None else float(number)
    if metric == "prompt_entropy" and value is not None:
        if not 0 < value <= _MOST:
            raise RecipeError(f"statistic {text!r}: the order of an entropy is above 0 and at most {_MOST:.0f}")
        value = None if value == 1 else value
    return Statistic(metric, value, frozenset(options))
