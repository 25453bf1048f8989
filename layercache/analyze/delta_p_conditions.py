"""Which stored conditions are changed passes, which of them are controls, and whose flips make the groups.

    knockout-subject        control-subject          as many tokens cut, from elsewhere
    patch-subject           control-patch-subject    as many tokens replaced, elsewhere
    answer-only             (none)

A window of layers belongs to both names (`knockout-subject-layers-3-6`, `control-subject-layers-3-6`); a hash of parameters
that are not at their default ends either (`control-subject-1a2b3c4d`).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from layercache import conditions
from layercache.analyze import select
from layercache.errors import AnalysisError
from layercache.store.layout import CLEAN

KNOCKOUT, PATCH, ANSWER_ONLY = f"{conditions.KNOCKOUT}-", f"{conditions.PATCH}-", conditions.ANSWER_ONLY
_CONTROLS = {KNOCKOUT: f"{conditions.CONTROL}-", PATCH: f"{conditions.CONTROL_PATCH}-"}
_HASH = re.compile(r"-[0-9a-f]{8}$")


class Change(NamedTuple):
    """A changed pass, its control where one is stored, and the pass by whose flips its samples are grouped."""

    condition: str
    control: str | None
    anchor: str


def changes(stored: Sequence[str], asked: Sequence[str] | None) -> list[Change]:
    """Pair the stored conditions of a run.

    Args:
        stored: names of conditions.
        asked: those to use; None for every knockout, patch and answer-only with their controls.

    Returns:
        Knockouts first, those of all layers before windows of layers.

    Raises:
        AnalysisError: a condition asked for is not stored, is a control without what it controls, or a changed
            pass has several controls.
    """
    for name in asked or ():
        if name not in stored or name == CLEAN:
            known = [one for one in stored if one != CLEAN]
            raise AnalysisError(f"no condition {name!r} is stored to compare with clean: {select.hint(name, known)}")
    wanted = [name for name in asked or stored if not _is_control(name) and (asked or _is_changed(name))]
    named = [name for name in asked or () if _is_control(name)]
    pairs = {name: _control(name, named or stored) for name in sorted(wanted, key=_order)}
    idle = [name for name in named if name not in pairs.values()]
    if idle:
        raise AnalysisError(f"{idle[0]} is the control of a condition that is not named: name both (--conditions)")
    return [Change(name, control, _anchor(name, list(pairs))) for name, control in pairs.items()]


def _is_control(name: str) -> bool:
    return any(name.startswith(prefix) for prefix in _CONTROLS.values())


def _is_changed(name: str) -> bool:
    return name.startswith((KNOCKOUT, PATCH)) or _plain(name) == ANSWER_ONLY


def _order(name: str) -> tuple[bool, bool, str]:
    return not name.startswith(KNOCKOUT), "-layers-" in name, name


def _plain(name: str) -> str:
    """Return a name without the hash of its parameters."""
    prefix = next((one for one in (*_CONTROLS.values(), *_CONTROLS) if name.startswith(one)), "")
    return prefix + _HASH.sub("", name.removeprefix(prefix))


def _control(name: str, among: Sequence[str]) -> str | None:
    prefix = next((one for one in _CONTROLS if name.startswith(one)), None)
    if prefix is None:
        return None
    exact = _CONTROLS[prefix] + name.removeprefix(prefix)
    found = [one for one in among if _is_control(one) and _plain(one) == _plain(exact)]
    if len(found) > 1 and exact not in found:
        raise AnalysisError(f"{name} has several controls, {', '.join(found)}: name it and one of them (--conditions)")
    return exact if exact in found else next(iter(found), None)


def _anchor(name: str, changed: Sequence[str]) -> str:
    """Return the knockout by whose flips a change is grouped: its own, that of the same span, or the first."""
    knockouts = [one for one in changed if one.startswith(KNOCKOUT)]
    if name in knockouts or not knockouts:
        return name
    same = KNOCKOUT + _plain(name).removeprefix(PATCH)
    return next((one for one in knockouts if _plain(one) == same), knockouts[0])
