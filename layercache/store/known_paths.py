"""Which paths a store may hold: what comes from elsewhere is written only under a name that the format knows."""

import re

from layercache.store.layout import BESIDE_RUN, CONDITION, MANIFEST, RECIPES, RESULTS, ROWS, RUN, RUN_FILE, SHARD

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,149}"
_SEQUENCED = "(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+-[0-9]{6,}-[0-9a-f]{16}"
_KNOWN = re.compile(
    rf"{RUN}{_NAME}/{re.escape(RUN_FILE)}"
    rf"|{RUN}{_NAME}/{BESIDE_RUN.pattern}"
    rf"|{RUN}{_NAME}/{ROWS}/{_SEQUENCED}\.parquet"
    rf"|{RUN}{_NAME}/{CONDITION}{_NAME}/{SHARD}{_NAME}/(?:{re.escape(MANIFEST)}|{_NAME}\.parquet)"
    rf"|{RECIPES}/{_SEQUENCED}\.json"
    rf"|{RESULTS}/{_NAME}/[A-Za-z0-9][A-Za-z0-9_.@-]{{0,199}}"
)


def is_known(path: str) -> bool:
    """Tell whether a path, with `/` between its parts, is that of a file that a store may hold.

    Nothing with `..`, a leading `/`, a drive or a backslash is.
    """
    return _KNOWN.fullmatch(path) is not None and ".." not in path.split("/")
