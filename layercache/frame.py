"""Arrow tables as Polars frames."""

import polars as pl
import pyarrow as pa


def from_arrow(table: pa.Table) -> pl.DataFrame:
    """Return a table as a frame that shares its memory where it can; Polars' own function may also give a series."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
