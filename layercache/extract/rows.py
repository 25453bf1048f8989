"""The tables that hold no states: a shard's samples and tokens, and a run's rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from layercache.dataset import Dataset
from layercache.extract.pooling import absent_reason
from layercache.extract.tokenize import Sample
from layercache.extract.words import Words
from layercache.outputs import Hidden, parse_output
from layercache.recipe import Label
from layercache.store.schema import RESERVED


def sample_columns(samples: Sequence[Sample], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the columns of the table `samples`; `absent` names the outputs without a row, and why."""
    features = {}
    for name in outputs:
        output = parse_output(name)
        if output is not None:
            features[name] = output.pooling if isinstance(output, Hidden) else output.position
    absent = [
        [
            {"output": name, "reason": reason}
            for name, feature in features.items()
            if (reason := absent_reason(sample, feature)) is not None
        ]
        for sample in samples
    ]
    return {
        "sample_id": [sample.id for sample in samples],
        "prompt": [sample.text for sample in samples],
        "n_tokens": [len(sample) for sample in samples],
        "n_special": [int(sample.special.sum()) for sample in samples],
        "n_truncated": [sample.n_truncated for sample in samples],
        "spans": [
            [{"name": name, "start": start, "end": end} for name, (start, end) in sorted(sample.spans.items())]
            for sample in samples
        ],
        "target_id": [sample.target for sample in samples],
        "absent": absent,
    }


def token_columns(samples: Sequence[Sample], words: Words) -> dict[str, Any]:
    """Return the columns of the table `tokens`, a row a token."""
    ids = np.concatenate([sample.tokens for sample in samples])
    lengths = np.array([len(sample) for sample in samples])
    owners = pa.array([sample.id for sample in samples], pa.string()).take(
        pa.array(np.repeat(np.arange(len(samples)), lengths))
    )
    return {
        "sample_id": owners,
        "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "token_id": ids,
        "text": words.texts(ids),
        "spans": _span_lists(samples, lengths),
    }


def _span_lists(samples: Sequence[Sample], lengths: np.ndarray) -> pa.ListArray:
    """List, for every token of every sample, the names of the spans it is in."""
    names = sorted({name for sample in samples for name in sample.spans})
    starts = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.zeros((int(starts[-1]), len(names)), dtype=bool)
    for sample, offset in zip(samples, starts[:-1], strict=True):
        for name, (start, end) in sample.spans.items():
            inside[offset + start : offset + end, names.index(name)] = True
    values = pa.array(names, pa.string()).take(pa.array(np.nonzero(inside)[1]))
    offsets = np.concatenate([[0], np.cumsum(inside.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def row_frame(data: Dataset, sample_ids: Sequence[str | None]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Put the rows' numbers, samples and split before the user's own columns.

    Returns:
        The frame, and the keyword arguments of `put_rows` that name its columns: a user's column called
        like one of ours is `user_…` there.
    """
    own = data.frame.drop("split") if data.split == "split" else data.frame
    names = _free_names(own.columns)
    opening = pl.DataFrame(
        {
            "row": pl.Series(range(len(sample_ids)), dtype=pl.Int64),
            "sample_id": pl.Series(sample_ids, dtype=pl.String),
            "split": _split(data, len(sample_ids)),
        }
    )
    frame = pl.concat([opening, own.rename(names)], how="horizontal") if own.width else opening
    labels = [Label(names.get(label.name, label.name), label.kind) for label in data.labels]
    return frame, {
        "labels": labels,
        "split": data.split,
        "group_by": _renamed(names, data.group_by),
        "target": _renamed(names, data.target),
        "reference": [names[name] for name in data.references],
    }


def _split(data: Dataset, n: int) -> pl.Series:
    if data.split is None:
        return pl.Series([None] * n, dtype=pl.String)
    column = data.frame[data.split]
    if column.dtype == pl.Boolean or isinstance(column.dtype, pl.List):
        return pl.Series([None if value is None else str(value) for value in column.to_list()], dtype=pl.String)
    return column.cast(pl.String)


def _free_names(columns: Sequence[str]) -> dict[str, str]:
    taken = set(columns)
    names: dict[str, str] = {}
    for name in columns:
        new = name
        while new in RESERVED or (new != name and new in taken):
            new = f"user_{new}"
        taken.add(new)
        names[name] = new
    return names


def _renamed(names: Mapping[str, str], name: str | None) -> str | None:
    return None if name is None else names.get(name, name)
