"""The command line called in the test's own process: what it printed and how it ended."""

import json
from collections.abc import Callable
from typing import NamedTuple


class Called(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Call = Callable[..., Called]
