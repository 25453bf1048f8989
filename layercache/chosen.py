"""Which of several adapters to take: chosen on the rows to validate on, never on those tested."""

from typing import Any

import polars as pl

ACCURACY, NLL = "validation_accuracy", "validation_nll"


def by_validation(adapters: pl.DataFrame) -> dict[str, Any] | None:
    """Return the line of the adapter that is most accurate on the rows to validate on, of equals the surest one.

    Args:
        adapters: a line an adapter, with `validation_accuracy` and `validation_nll`.

    Returns:
        None where there is no line, or one was not validated.
    """
    if adapters.is_empty() or adapters[ACCURACY].null_count():
        return None
    return adapters.sort(ACCURACY, NLL, descending=[True, False], maintain_order=True).row(0, named=True)


def validated(adapters: pl.DataFrame, numbers: pl.DataFrame) -> pl.DataFrame:
    """Add to lines of `results` about adapters what they scored on the rows to validate on.

    Args:
        adapters: with the columns run and group.
        numbers: rows of `results` of the same data set and label.
    """
    keys = ["run", "group"]
    for name in (ACCURACY, NLL):
        found = numbers.filter(metric=name).select(*keys, pl.col("value").alias(name))
        adapters = adapters.join(found, on=keys, how="left", maintain_order="left")
    return adapters
