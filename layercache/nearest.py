"""Which known name was perhaps meant: the one hint that every message about an unknown name ends in."""

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6
"""Share of two names' characters that match in order (`difflib`); below it a guess misleads more than it helps."""
_SHORTEST = 3
"""Characters of a name that stands whole in another (`name` in `movie_name`) for that one to be meant."""
_MOST = 20


def nearest(name: str, known: Iterable[str], n: int = 1) -> list[str]:
    """Return the `n` known names most like `name`, upper case aside, the likest first; none that is not like it."""
    spelled = {one.casefold(): one for one in known}
    wanted = name.casefold()
    close = difflib.get_close_matches(wanted, spelled, n=n, cutoff=_CUTOFF)
    close += sorted((one for one in spelled if _is_part(wanted, one)), key=len)
    return [spelled[one] for one in dict.fromkeys(close)][:n]


def _is_part(one: str, other: str) -> bool:
    """Tell whether one of two names stands whole in the other."""
    short, long = sorted((one, other), key=len)
    return len(short) >= _SHORTEST and short in long


def hint(name: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """Say which known name was perhaps meant (`did you mean 'x'?`), or what there is (`there are a, b`)."""
    names = list(dict.fromkeys(known))
    close = nearest(name, names)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {listing(names)}"


def listing(names: Iterable[str]) -> str:
    """Write names with commas, at most twenty of them; `none` where there are none."""
    every = list(names)
    shown = ", ".join(every[:_MOST]) or "none"
    return f"{shown}, … ({len(every)} in all)" if len(every) > _MOST else shown
