"""Every table and column of the store, format 1: the only place in the code where a column is declared.

`store/FORMAT.md`, the writers and the SQL views follow from this module, and a test holds them together.
"""

from typing import NamedTuple

import pyarrow as pa

FORMAT = 1
"""The store's format that this version writes, and the newest that it reads."""
READER = "0.1.0"
"""The first version of layercache that reads `FORMAT`; written into every file that carries a format."""
CAPTURE_SCHEMA = 1
"""Raised when the meaning of a captured number changes; part of every run's identity."""


class Column(NamedTuple):
    """A column: its name, Arrow type, whether NULL may stand in it, and what it holds (with units).

    One that was `added` to its table later is nullable, and a file without it holds NULL. `added` is a regular
    expression of the outputs that have values there: of other shards nobody needs to open a file to know.
    """

    name: str
    type: pa.DataType
    nullable: bool
    doc: str
    added: str = ""


class Table(NamedTuple):
    """A table of a shard: its columns, the columns that identify a row, and the order of rows in the file."""

    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    doc: str


_STR, _I32, _I64, _F32, _F64, _BOOL = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()
_SPAN = pa.struct([pa.field("name", _STR, False), pa.field("start", _I32, False), pa.field("end", _I32, False)])
_SINKS = "hidden:[^:]*:mean-sinks.*"
_ABSENT = pa.struct([pa.field("output", _STR, False), pa.field("reason", _STR, False)])
_CHOICE = pa.struct([pa.field("choice", _STR, False), pa.field("first_logprob", _F32), pa.field("logprob", _F32)])


def _list(of: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", of, nullable=False))


def vector(width: int) -> pa.DataType:
    """Return the type of a stored vector: a fixed-size list of `width` non-null float32."""
    return pa.list_(pa.field("element", _F32, nullable=False), width)


VECTOR = _list(_F32)
"""Stands for `vector(d)` where the width is not known yet; `vector` columns are written fixed-size."""

TABLES: dict[str, Table] = {
    "samples": Table(
        (
            Column("sample_id", _STR, False, "hash of the clean token ids, span boundaries and target"),
            Column("prompt", _STR, False, "the text that was tokenised"),
            Column("n_tokens", _I32, False, "tokens the model saw, special ones included"),
            Column("n_special", _I32, False, "of these, tokens the tokenizer added or marks as special"),
            Column("n_truncated", _I32, False, "tokens cut off to fit the model's context"),
            Column("spans", _list(_SPAN), False, "named spans as token positions [start, end)"),
            Column("target_id", _I32, True, "token id the lens follows at the prompt's last position"),
            Column("donor_id", _STR, True, "sample that a patch was taken from"),
            Column(
                "absent",
                _list(_ABSENT),
                False,
                "outputs of this shard with no row for this sample, at some layers or all, and why",
            ),
        ),
        ("sample_id",),
        ("sample_id",),
        "one row a sample of the shard",
    ),
    "tokens": Table(
        (
            Column("sample_id", _STR, False, "the sample"),
            Column("position", _I32, False, "token position, from 0, padding not counted"),
            Column("token_id", _I32, False, "id in the tokenizer's vocabulary"),
            Column("text", _STR, False, "the token decoded alone"),
            Column("spans", _list(_STR), False, "names of the spans the token overlaps by at least one character"),
        ),
        ("sample_id", "position"),
        ("sample_id", "position"),
        "one row a token",
    ),
    "hidden": Table(
        (
            Column("sample_id", _STR, False, "the sample"),
            Column("site", _STR, False, "resid, attn_out or mlp_out"),
            Column("layer", _I32, False, "0 = embedding output, k = after block k, L+1 = after the final norm"),
            Column("pooling", _STR, False, "how tokens became one vector, and over which span: mean@prompt"),
            Column("position", _I32, True, "token position, where the vector is that of one token"),
            Column("vector", VECTOR, False, "the state, d float32 with a rounded mantissa"),
            Column("n_excluded", _I32, True, "mean-sinks: tokens of the span left out as attention sinks", _SINKS),
        ),
        ("sample_id", "site", "layer", "pooling", "position"),
        ("site", "pooling", "layer", "sample_id", "position"),
        "one row a (sample, site, layer, pooling), and with token poolings a position",
    ),
    "lens": Table(
        (
            Column("sample_id", _STR, False, "the sample"),
            Column(
                "output",
                _STR,
                False,
                "the output's name: lens:last@prompt:top10, with choices-<hash> where answers are scored",
            ),
            Column("layer", _I32, False, "0…L; L is the model's own next-token distribution"),
            Column("position", _I32, False, "token position the lens reads"),
            Column("position_name", _STR, False, "last@prompt, last@question, …"),
            Column("entropy", _F32, False, "entropy of the distribution over the vocabulary, nats"),
            Column("logsumexp", _F32, False, "log of the sum of exponentiated logits, nats"),
            Column("top_ids", _list(_I32), False, "ids of the most probable tokens, best first"),
            Column("top_tokens", _list(_STR), False, "the same, decoded"),
            Column("top_logprobs", _list(_F32), False, "their log-probabilities, nats"),
            Column("target_id", _I32, True, "token id followed: the prompt's own next token, or the target's first"),
            Column("target_logprob", _F32, True, "its log-probability, nats"),
            Column("target_rank", _I32, True, "its rank, 0 = most probable (tokens with a strictly larger logit)"),
            Column("kl_to_final", _F32, False, "KL(this layer ‖ layer L), nats"),
            Column("js_to_final", _F32, False, "Jensen-Shannon divergence from layer L, nats"),
            Column("agrees_with_final", _BOOL, False, "the most probable token is layer L's"),
            Column("choices", _list(_CHOICE), True, "log-probabilities of given answers, nats"),
        ),
        ("sample_id", "output", "layer", "position"),
        ("output", "layer", "sample_id", "position"),
        "one row a (sample, layer, position)",
    ),
    "token_stats": Table(
        (
            Column("sample_id", _STR, False, "the sample"),
            Column("layer", _I32, False, "the layer"),
            Column("metric", _STR, False, "name of the statistic over the sample's tokens"),
            Column("value", _F64, False, "its value"),
        ),
        ("sample_id", "layer", "metric"),
        ("metric", "layer", "sample_id"),
        "one row a (sample, layer, metric)",
    ),
    "generations": Table(
        (
            Column("sample_id", _STR, False, "the sample"),
            Column("output", _STR, False, "the output's name, with a hash of the generation settings"),
            Column("layer", _I32, False, "the layer whose state was decoded"),
            Column("text", _STR, False, "the generated text, special tokens left out"),
            Column("token_ids", _list(_I32), False, "its token ids, the one that ended it included"),
            Column("token_logprobs", _list(_F32), False, "log-probability of each before temperature, nats"),
            Column("token_entropies", _list(_F32), False, "entropy of that distribution at each, nats"),
            Column("finish_reason", _STR, False, "eos, stop or length"),
        ),
        ("sample_id", "output", "layer"),
        ("output", "layer", "sample_id"),
        "one row a (sample, layer)",
    ),
}

RESULTS = (
    Column("run", _STR, False, "the run"),
    Column("data", _STR, False, "the data set"),
    Column("analysis", _STR, False, "kind of analysis: probe, entropy, …"),
    Column("condition", _STR, True, "the condition"),
    Column("site", _STR, True, "the site"),
    Column("layer", _I32, True, "the layer; NULL for a system without layers (tf-idf, majority)"),
    Column("pooling", _STR, True, "the pooling"),
    Column("position", _STR, True, "name of the lens position"),
    Column("label", _STR, True, "the label"),
    Column("group", _STR, True, "the split within the analysis; a baseline's or system's name"),
    Column("metric", _STR, False, "the field's name of the number"),
    Column("value", _F64, False, "the number"),
    Column("low", _F64, True, "lower end of the 95 % interval"),
    Column("high", _F64, True, "upper end"),
    Column("n", _I64, True, "samples behind the number"),
    Column("other_run", _STR, True, "the run compared with"),
    Column("other_layer", _I32, True, "the layer compared with"),
)

SAMPLE_SCORES = (
    *(column for column in RESULTS if column.name in {"run", "data", "analysis", "condition", "site", "layer"}),
    *(column for column in RESULTS if column.name in {"pooling", "position", "label", "group", "metric"}),
    Column("row", _I64, False, "row of the data set, from 0"),
    Column("sample_id", _STR, False, "the sample"),
    Column("value", _F64, True, "the score"),
    Column("text", _STR, True, "the score where it is a class or a text"),
)

LABELS = (
    Column("data", _STR, False, "the data set"),
    Column("row", _I64, False, "row of the data set, from 0"),
    Column("sample_id", _STR, False, "the sample"),
    Column("name", _STR, False, "the label"),
    Column("kind", _STR, False, "number, category, boolean or text"),
    Column("number", _F64, True, "value of a number or boolean (0, 1)"),
    Column("text", _STR, True, "value of the others (a list's elements joined by a newline)"),
)

ROW_COLUMNS = (
    Column("row", _I64, False, "row of the data set, from 0"),
    Column("sample_id", _STR, True, "the row's sample; NULL when the row could not be made one"),
    Column("split", _STR, True, "the row's split"),
)
"""Columns every rows file opens with; the user's own follow, renamed `user_…` where they would collide."""

RESERVED = frozenset({"run", "condition", "data", *(column.name for column in ROW_COLUMNS)})
"""Names a user's column cannot have in a rows file."""


def arrow_schema(columns: tuple[Column, ...], width: int | None = None) -> pa.Schema:
    """Return the Arrow schema of columns; `width` fixes the size of a `vector` column."""
    fields = []
    for column in columns:
        kind = vector(width) if column.name == "vector" and width is not None else column.type
        fields.append(pa.field(column.name, kind, column.nullable))
    return pa.schema(fields)
