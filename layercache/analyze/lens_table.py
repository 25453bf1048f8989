"""The table that the lens of stored states gives, and its summary by layer."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from layercache.analyze.distributions import Distributions, follow, js, kl, top
from layercache.frame import from_arrow
from layercache.head import Head
from layercache.store.schema import TABLES

_ABSENT = {"position", "kl_to_final", "js_to_final", "agrees_with_final"}
"""Columns that are NULL where a state's position, or the final layer, is not stored."""


def _schema() -> pa.Schema:
    """Return the table's schema: that of `lens`, with whose it is, and the text of the token followed."""
    fields = [pa.field("run", pa.string(), False), pa.field("condition", pa.string(), False)]
    for column in TABLES["lens"].columns:
        if column.name != "choices":
            fields.append(pa.field(column.name, column.type, column.nullable or column.name in _ABSENT))
        if column.name == "target_id":
            fields.append(pa.field("target_token", pa.string()))
    return pa.schema(fields)


SCHEMA = _schema()


class Places(NamedTuple):
    """Where the lens reads, a line a state of a layer: sorted keys, and the tokens followed, -1 for none."""

    keys: np.ndarray
    sample_id: np.ndarray
    position: np.ndarray
    """int32; -1 where the store does not say."""
    targets: np.ndarray
    """int64 [places, targets]."""

    def take(self, which: slice | np.ndarray) -> "Places":
        """Return some of the places, by a slice, their numbers, or bool [places]."""
        return Places(*(column[which] for column in self))


def rows(
    fixed: dict[str, str | int],
    places: Places,
    here: Distributions,
    final: Distributions | None,
    known: np.ndarray,
    head: Head,
    top_k: int,
) -> pa.Table:
    """Return a layer's rows, one a place and target, in the columns of `SCHEMA`.

    Args:
        fixed: columns that have one value.
        here: the layer's distributions, one a place.
        final: the final layer's; None where it is not stored.
        known: bool [places], whether the final layer's state is stored.
    """
    ids, logprobs = top(here, top_k)
    top_ids = _lists(ids.astype(np.int32))
    columns = {
        **{name: pa.repeat(value, len(known)) for name, value in fixed.items()},
        "sample_id": pa.array(places.sample_id),
        "position": pa.array(places.position, mask=places.position < 0),
        "entropy": pa.array(here.entropy),
        "logsumexp": pa.array(here.logsumexp),
        "top_ids": top_ids,
        "top_tokens": pa.ListArray.from_arrays(top_ids.offsets, head.texts.take(top_ids.values)),
        "top_logprobs": _lists(logprobs),
    }
    if final is not None:
        compared = {"kl_to_final": kl(here, final), "js_to_final": js(here, final)}
        compared["agrees_with_final"] = here.best == final.best
        columns |= {name: pa.array(values, mask=~known) for name, values in compared.items()}
    n_targets = places.targets.shape[1]
    each = pa.array(np.repeat(np.arange(len(known)), n_targets))
    whole = {name: values.take(each) for name, values in columns.items()} | _followed(places, here, head)
    arrays = [whole.get(field.name, pa.nulls(len(each), field.type)).cast(field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _followed(places: Places, here: Distributions, head: Head) -> dict[str, pa.Array]:
    logprob, rank = follow(here, np.maximum(places.targets, 0))
    target = places.targets.reshape(-1)
    none = target < 0
    ids = pa.array(target, mask=none)
    return {
        "target_id": ids,
        "target_token": head.texts.take(ids),
        "target_logprob": pa.array(logprob.reshape(-1), mask=none),
        "target_rank": pa.array(rank.reshape(-1), mask=none),
    }


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


def summarise(table: pa.Table, *, by_target: bool) -> pa.Table:
    """Return means over states by layer; with `by_target` by token followed and layer.

    Columns: `target_token` (with `by_target`), `layer`, `n` states; `entropy`, `kl_to_final`,
    `agrees_with_final` (a share), `target_logprob`, `target_probability`, which are means, nats where logs;
    `target_rank`, the median; `top_token`, the commonest most probable token, and `top_share`, how often it is that.
    """
    frame = from_arrow(table)
    keys = ["target_id", "target_token", "layer"] if by_target else ["layer"]
    best = pl.col("top_tokens").list.first()
    logprob = pl.col("target_logprob").cast(pl.Float64)
    found = frame.group_by(keys, maintain_order=True).agg(
        pl.len().alias("n"),
        *(pl.col(name).cast(pl.Float64).mean() for name in ("entropy", "kl_to_final", "agrees_with_final")),
        logprob.mean(),
        logprob.exp().mean().alias("target_probability"),
        pl.col("target_rank").median(),
        best.mode().min().alias("top_token"),
        (best.unique_counts().max() / pl.len()).alias("top_share"),
    )
    if by_target:
        order = {token: number for number, token in enumerate(frame["target_id"].unique(maintain_order=True))}
        found = found.sort(pl.col("target_id").replace_strict(order), "layer").drop("target_id")
    return found.to_arrow()
