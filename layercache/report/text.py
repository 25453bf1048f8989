"""Text that strangers wrote, made safe and legible: for HTML, for JSON inside `<script>`, for charts."""

import html
import json
import math
import re
from typing import Any

# `<`, `>` and `&` end or open markup; U+2028 and U+2029 end a line in old JavaScript.
_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
# Controls, and the direction and zero-width marks that reorder or hide what is around them (joiners spell words: kept).
_ACTING = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)


def script_json(value: Any) -> str:
    """Return `value` as JSON that is inert inside a `<script>` element.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_SCRIPT)


def plain(text: str, keep: str = "") -> str:
    """Show control characters and direction marks as `⟨U+001B⟩` instead of letting them act.

    Args:
        text: any text.
        keep: characters to leave alone, such as a prompt's line ends.
    """
    return _ACTING.sub(lambda found: found[0] if found[0] in keep else f"⟨U+{ord(found[0]):04X}⟩", text)


def token(text: str) -> str:
    """Return a token with its white space visible: ␣ for a space at either end, ⏎ for a line end, ⇥ for a tab."""
    body = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    right = len(text) - left - len(body)
    shown = plain(body.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥"))
    # The sign for a space itself (U+2420) is missing from most fonts.
    return "␣" * left + shown + "␣" * right if body else "␣" * len(text) or "∅"


def escape(text: object) -> str:
    """Escape text for HTML, as content or as a quoted attribute."""
    return html.escape(plain(str(text), keep="\n\t"), quote=True)


def number(value: float | None, digits: int = 2) -> str:
    """Write a number the way papers do: `.81`, `−.06`, `1.32`, `1,234.5`; `–` for none."""
    if value is None or math.isnan(value):
        return "–"
    shown = f"{abs(value):,.{digits}f}"
    if shown.startswith("0."):
        shown = shown[1:]
    return f"−{shown}" if value < 0 and float(shown.replace(",", "")) else shown


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Write `.81 [.78, .84]`, or the number alone where there is no interval."""
    if low is None or high is None:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def capital(text: str) -> str:
    """Begin a title or a caption with a capital letter; a name that is written otherwise (chrF) stays as it is."""
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first == first.lower() else text


def count(amount: int, noun: str, plural: str | None = None) -> str:
    """Write `1 sample`, `1,200 samples`."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"
