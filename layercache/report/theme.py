"""How charts look: one palette that colour-blind readers can tell apart, on paper and on the page, light and dark.

Charts name roles (`style="baseline"`, a nominal colour), never colours. A theme gives the roles their colours: `FILE`
concrete ones, `PAGE` the page's CSS variables, so that a chart follows the reader's light or dark setting with no script.
"""

from typing import Any

# Okabe & Ito (2008), "Color Universal Design", without black (the ink) and yellow (invisible on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Beside colour, so that lines stay apart in print.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
VEIL = "veil"
"""The style of what covers the layers that are not picked."""
_DASHES = {
    **{"tf-idf": [6, 3], "majority class": [2, 2], "mean": [2, 2], "shuffled labels": [9, 3, 2, 3]},
    **{"chance": [2, 2], "views paired at random": [9, 3, 2, 3]},
}

_INK, _FAINT, _RULE, _PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"


def _config(
    ink: str, faint: str, rule: str, paper: str, veil: str, palette: tuple[str, ...], font: str
) -> dict[str, Any]:
    """Return a Vega-Lite config with these colours."""
    text = {"labelColor": faint, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 11}
    return {
        "background": paper,
        "font": font,
        "view": {"stroke": "transparent"},
        "range": {"category": list(palette)},
        "concat": {"spacing": 28},
        "axis": {
            **text,
            "titleFontWeight": "normal",
            "domainColor": faint,
            "tickColor": faint,
            "gridColor": rule,
            "gridOpacity": 0.6,
            "labelLimit": 220,
            "labelFlush": False,
        },
        "legend": {
            **text,
            "orient": "top",
            "symbolOpacity": 1,
            "titleFontWeight": 600,
            "labelLimit": 320,
            "symbolSize": 70,
            "columnPadding": 14,
            "layout": {"top": {"anchor": "start", "direction": "horizontal", "margin": 28}},
            "symbolStrokeColor": faint,
            "symbolBaseFillColor": faint,
        },
        "title": {
            "color": ink,
            "subtitleColor": faint,
            "fontSize": 13,
            "subtitleFontSize": 11,
            "anchor": "start",
            "limit": 900,
        },
        "line": {"strokeWidth": 2},
        "rule": {"color": faint},
        "text": {"color": ink},
        "rect": {"color": palette[0]},
        "point": {"color": palette[0]},
        "style": {
            "baseline": {"color": faint, "strokeWidth": 1.5},
            VEIL: {"color": veil, "opacity": 0.78},
        },
    }


FILE = _config(_INK, _FAINT, _RULE, _PAPER, _PAPER, PALETTE, _FONT)
PAGE = _config(
    "var(--ink)",
    "var(--faint)",
    "var(--rule)",
    "transparent",
    "var(--paper)",
    tuple(f"var(--c{number})" for number in range(1, len(PALETTE) + 1)),
    _FONT,
)


def shapes(count: int) -> list[str]:
    """Return a shape for each of so many models; where colours begin again, the shapes do not go with them."""
    return [SHAPES[(number + number // len(PALETTE)) % len(SHAPES)] for number in range(count)]


def dash(baseline: str) -> list[int]:
    """Return a baseline's dashes, the same in every figure."""
    return _DASHES.get(baseline, [12, 4])
