"""Lays numbers of results out as plain-text tables, for a terminal."""

from typing import Any

import polars as pl

from layercache.analyze.metrics import WHOLE

ACROSS = 4
"""Columns beside each other in one table; more go into a table below."""
_P_VALUES = {"mcnemar_p", "anova_p"}


def of(frame: pl.DataFrame, **values: Any) -> pl.DataFrame:
    """Return the lines with these values."""
    return frame.filter(*(pl.col(name) == value for name, value in values.items()))


def cell(found: pl.DataFrame, interval: bool = True) -> str:
    """Write the one value found, with its interval where it has one that is wanted; layers and counts as whole numbers."""
    if found.is_empty():
        return "-"
    value, low, high = found.row(0, named=True)["value"], found["low"][0], found["high"][0]
    if found["metric"][0] in WHOLE:
        return f"{value:,.0f}"
    if found["metric"][0] in _P_VALUES and value < 0.0005:
        return "<0.001"
    return number(value) + ("" if low is None or not interval else f" [{number(low)}, {number(high)}]")


def number(value: float) -> str:
    """Write a number with three digits after the point, or four in all where it is large."""
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return text.removeprefix("-") if float(text) == 0 else text


def tables(
    title: str,
    names: list[str],
    titles: list[str],
    columns: list[list[str]],
    across: int = ACROSS,
    corner: str = "layer",
) -> str:
    """Lay out named lines and titled columns under a title, a few columns beside each other."""
    parts = [title]
    for start in range(0, len(columns), across):
        block = list(zip(titles, columns))[start : start + across]
        laid = [[corner, *names], *([" " + head, *cells] for head, cells in block)]
        widths = [max(map(len, cells)) for cells in laid]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in zip(*laid)]
        parts.append("\n".join(lines))
    return "\n".join(parts)
