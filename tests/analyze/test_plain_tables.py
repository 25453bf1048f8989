"""How numbers are written in the tables of a terminal."""

import polars as pl
import pytest

from layercache.analyze.plain_tables import cell


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("mcnemar_p", 0.00001, "<0.001"),
        ("anova_p", 0.0021, "0.002"),
        ("delta_p", 0.0, "0.000"),
        ("delta_p", -0.0001, "0.000"),
        ("peak_layer", 4.0, "4"),
        ("mse", 1234.5, "1234"),
    ],
)
def test_a_number_is_written_as_its_metric_asks(metric: str, value: float, shown: str) -> None:
    found = pl.DataFrame({"metric": [metric], "value": [value], "low": [None], "high": [None]})
    assert cell(found) == shown
