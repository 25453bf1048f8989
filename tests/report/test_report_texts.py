"""What the report says of generated text, from numbers alone."""

import polars as pl
import pytest

from layercache.report import texts


def said(intervals: list[tuple[float, float]], other: str = "b") -> list[str]:
    """Return what is said of quantisation, of one run's differences by layer from another's, and of a score that is the same."""
    where = {"model": "nf4", "data": "films", "label": "answer", "group": "generation", "analysis": "text"}
    where |= {"condition": "clean"}
    lines = [
        {**where, "layer": layer, "other_run": other, "metric": "token_f1_minus_other", "low": low, "high": high}
        for layer, (low, high) in enumerate(intervals)
    ]
    # Another pair of runs, whose intervals must not be counted with these.
    lines += [{**line, "model": "int8", "other_run": "c", "low": 0.0, "high": 0.0} for line in lines]
    lines += [{**where, "layer": 0, "other_run": None, "metric": "token_f1", "low": 0.4, "high": 0.6}]
    frame = pl.DataFrame(lines).with_columns(value=(pl.col("low") + pl.col("high")) / 2)
    (task,) = texts.tasks(frame)
    return [line for line in texts.finding(task) if "Quantisation" in line and "nf4" in line]


LOST = (-0.15, -0.05)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        (
            [LOST, LOST, (-0.1, 0.1)],
            ".00 [−.10, .10] at layer 2: the interval holds 0, no clear difference there. The interval excludes 0 at 2 of 3"
            " layers (0, 1).",
        ),
        (
            [(0.0, 0.2), (0.05, 0.15), LOST],
            "−.10 [−.15, −.05] at layer 2. The interval excludes 0 at 2 of 3 layers (1, 2).",
        ),
        ([LOST, LOST], "−.10 [−.15, −.05] at layer 1. The interval excludes 0 at 2 of 2 layers."),
        (
            [(0.0, 0.0), (-0.1, 0.1)],
            ".00 [−.10, .10] at layer 1: the interval holds 0, no clear difference there. The interval excludes 0 at 0 of 2"
            " layers.",
        ),
    ],
)
def test_every_layer_counts_in_what_quantisation_changes(intervals: list[tuple[float, float]], expected: str) -> None:
    assert said(intervals) == [f"Quantisation changes token F1 of nf4 by {expected}"]
