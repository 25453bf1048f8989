"""What an array of states is called in a file: `resid.last@prompt.layer4`, in and out alike."""

import re
from typing import NamedTuple
from urllib.parse import unquote

_NAME = re.compile(r"(?P<site>[a-z_]+)\.(?P<pooling>[^/]+)\.layer(?P<layer>[0-9]{1,6})")
_NUMBERED = re.compile(r"(?:layers?|hidden|hidden_states?|h|l)?[._/-]?(?P<layer>[0-9]{1,6})", re.IGNORECASE)


_NOT_PLAIN = re.compile(r"[%/\\\x00-\x1f\x7f]")


def plain(name: str) -> str:
    """Return a name that is safe as a file's: what a span or a column is called comes from somebody's data."""
    return _NOT_PLAIN.sub(lambda match: f"%{ord(match[0]):02X}", name)


class Place(NamedTuple):
    """The states an array holds."""

    site: str
    pooling: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}.{plain(self.pooling)}.layer{self.layer}"


def parse(name: str) -> Place | None:
    """Read a name that an export gave; None for any other."""
    match = _NAME.fullmatch(name)
    return None if match is None else Place(match["site"], unquote(match["pooling"]), int(match["layer"]))


def layer_of(name: str) -> int | None:
    """Return the layer that a name of another tool says: `layer_4`, `layers.4`, `4`; None where it says none."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else int(match["layer"])
