"""Which known name was perhaps meant: the one hint that every message about an unknown name ends in."""

import difflib
from collections.abc import Iterable

_CUTOFF = 0.5
"""Share of two names' characters that match in order (`difflib`); below it a guess misleads more than it helps."""
_MOST = 20


def nearest(name: str, known: Iterable[str], n: int = 1) -> list[str]:
    """Return the `n` known names most like `name`, upper case aside, the likest first; none that is not like it."""
    spelled = {one.casefold(): one for one in known}
    return [spelled[one] for one in difflib.get_close_matches(name.casefold(), spelled, n=n, cutoff=_CUTOFF)]


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
