"""The tables of a shard that hold no states: samples and tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from layercache.extract.forward import Absent
from layercache.extract.pooling import absent_reason
from layercache.extract.tokenize import Sample
from layercache.extract.words import Words
from layercache.outputs import parse_output


def sample_columns(samples: Sequence[Sample], outputs: Sequence[str], lacking: Iterable[Absent] = ()) -> dict[str, Any]:
    """Return the columns of the table `samples`; `absent` names the outputs without a row, and why.

    Args:
        lacking: samples whose states gave no row, which their tokens do not tell.
    """
    parsed = {name: output for name in outputs if (output := parse_output(name)) is not None}
    absent = [
        [
            {"output": name, "reason": reason}
            for name, output in parsed.items()
            if (reason := absent_reason(sample, output.feature)) is not None
        ]
        for sample in samples
    ]
    place = {sample.id: n for n, sample in enumerate(samples)}
    for one in lacking:
        absent[place[one.sample_id]].append({"output": one.output, "reason": one.reason})
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
        "donor_id": [sample.donor_id for sample in samples],
        "absent": absent,
    }


def not_run_columns(samples: Sequence[Sample], absent: Iterable[Absent]) -> dict[str, Any]:
    """Return the columns of `samples` of samples that a condition leaves out: the clean prompt, and no token."""
    columns = sample_columns(samples, [], absent)
    none = [0] * len(samples)
    return columns | {"n_tokens": none, "n_special": none, "n_truncated": none, "spans": [[] for _ in samples]}


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
