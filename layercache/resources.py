"""Finds the recipes and queries that ship beside the package, in a checkout and in a wheel alike.

In a checkout (or an editable install) `pipelines/` and `queries/` are beside the package; in a wheel
they are under `layercache/_resources/`, because top-level names such as `queries` would collide with
other distributions in site-packages.
"""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent

Kind = Literal["pipelines", "queries"]
_SUFFIX: dict[Kind, str] = {"pipelines": ".toml", "queries": ".sql"}


def folder(kind: Kind) -> Path:
    """Return the folder that holds the shipped files of a kind.

    Raises:
        FileNotFoundError: neither the wheel's folder nor the checkout's is there (a broken install).
    """
    for candidate in (_PACKAGE / "_resources" / kind, _PACKAGE.parent / kind):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the {kind} that ship with layercache are missing; reinstall layercache")


def names(kind: Kind) -> list[str]:
    """List the names (file stems) of the shipped files of a kind, sorted."""
    return sorted(path.stem for path in folder(kind).glob(f"*{_SUFFIX[kind]}"))


def find(kind: Kind, name: str) -> Path | None:
    """Return the shipped file called `name`, or None when there is none."""
    return folder(kind) / f"{name}{_SUFFIX[kind]}" if name in names(kind) else None
