"""What a run captured, as frames: the lens at a position, generated texts, scored choices, statistics over tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from layercache.frame import from_arrow
from layercache.store.layout import CLEAN, Run
from layercache.store.reader import Store


def frame(store: Store, query: str, **params: Any) -> pl.DataFrame:
    """Run a query of our own and return a Polars frame."""
    return from_arrow(store.sql(query, params))


def lens(store: Store, run: Run, position: str, columns: Sequence[str]) -> pl.DataFrame:
    """Return the clean lens at a position: `sample_id`, `layer` and columns of the table `lens`, sorted by the first two.

    Where it is stored with several numbers of top tokens, one of them counts: what is read here is the same in all.
    """
    query = (
        f"SELECT sample_id, layer, {', '.join(columns)} FROM lens"
        " WHERE run = $run AND condition = $condition AND position_name = $position ORDER BY sample_id, layer, output"
    )
    found = frame(store, query, run=run.id, condition=CLEAN, position=position)
    return found.unique(["sample_id", "layer"], keep="first", maintain_order=True)


def texts(store: Store, run: Run, output: str) -> pl.DataFrame:
    """Return the texts of a generated output: `sample_id`, `layer`, `text`, `token_ids`, `finish_reason`."""
    query = (
        "SELECT sample_id, layer, text, token_ids, finish_reason FROM generations"
        " WHERE run = $run AND condition = $condition AND output = $output"
    )
    return frame(store, query, run=run.id, condition=CLEAN, output=output)


def choices(store: Store, run: Run) -> pl.DataFrame:
    """Return the scores of answers: `output`, `layer`, `sample_id`, `choice`, `first_logprob`, `logprob`, sorted by these."""
    query = (
        "SELECT output, layer, sample_id, choice, first_logprob, logprob FROM choices"
        " WHERE run = $run AND condition = $condition"
    )
    return frame(store, query, run=run.id, condition=CLEAN).sort("output", "layer", "sample_id", "choice")


def statistics(store: Store, run: Run, condition: str) -> pl.DataFrame:
    """Return the statistics over tokens under a condition: `sample_id`, `layer`, `metric`, `value`."""
    query = "SELECT sample_id, layer, metric, value FROM token_stats WHERE run = $run AND condition = $condition"
    return frame(store, query, run=run.id, condition=condition)


def some_states(store: Store, run: Run, layer: int, most: int) -> np.ndarray:
    """Return a few states of the residual stream at a layer, of any pooling and condition: float32 [n, d], n at most `most`."""
    query = f"SELECT vector FROM hidden WHERE run = $run AND site = 'resid' AND layer = $layer LIMIT {int(most)}"
    vectors = store.sql(query, {"run": run.id, "layer": layer})["vector"].to_pylist()
    return np.array(vectors, dtype=np.float32).reshape(-1, run.width)
