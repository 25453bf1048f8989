"""Output formats, with content that would break a careless writer."""

import csv
import io
import json
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layercache import table
from layercache.errors import QueryError

HOSTILE = [
    "plain",
    "",
    None,
    "a,b;c\td",
    'say "hi"',
    "two\nlines",
    "carriage\rreturn\r\n",
    " padded ",
    "=cmd|' /C calc'!A0",
    "|pipe|`tick`*star*_under_\\",
    "<script>alert(1)</script>&amp;",
    "[link](javascript:alert(1))",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31mred\x85\u2028\u2029",
    "\u202eevil\u2066\ufeff",
    "日本語 naïve 👩‍👧 e\u0301",
    "null",
    "NaN",
    "\x00nul",
    "-1e5",
]


def written(content: pa.Table, form: str, **settings: Any) -> str:
    stream = io.BytesIO()
    table.write(content, form, stream, **settings)
    return stream.getvalue().decode("utf-8")


def hostile() -> pa.Table:
    return pa.table({"row": range(len(HOSTILE)), 'te"x,t\n': HOSTILE})


def acts_on_a_terminal(text: str) -> bool:
    return any(not (character.isprintable() or character in "\n\u200d\u200c") for character in text)


def test_csv_is_read_back_by_every_reader() -> None:
    text = written(hostile(), "csv")
    assert text.endswith("\n")
    lines = list(csv.reader(io.StringIO(text, newline="")))
    assert lines[0] == ["row", 'te"x,t\n']
    assert [line[1] for line in lines[1:]] == [value or "" for value in HOSTILE]
    # Polars leaves the doubled quotes of a header as they are, hence by position.
    assert pl.read_csv(text.encode()).to_series(1).fill_null("").to_list() == [value or "" for value in HOSTILE]


def test_csv_ends_lines_in_newline_only_and_tells_null_from_empty() -> None:
    content = pa.table({"a": ["", None, "x"], "b": [1, None, 3]})
    assert written(content, "csv") == 'a,b\n"",1\n,\nx,3\n'
    # A line with nothing on it would be skipped by readers.
    assert written(content.select(["a"]), "csv") == 'a\n""\n""\nx\n'
    assert written(content.slice(0, 0), "csv") == "a,b\n"


def test_csv_values_are_whole() -> None:
    content = pa.table(
        {
            "i": [2**63 - 1],
            "x": [0.1 + 0.2],
            "f": pa.array([0.1], pa.float32()),
            "nan": [float("nan")],
            "b": [True],
            "list": [["a", 'b"', None]],
            "vector": pa.array([[0.1, 1e-30, -0.0]], pa.list_(pa.float32(), 3)),
            "struct": [{"a": 1, "b": None}],
        }
    )
    (line,) = list(csv.DictReader(io.StringIO(written(content, "csv"))))
    assert line == {
        "i": "9223372036854775807",
        "x": "0.30000000000000004",
        "f": "0.1",
        "nan": "nan",
        "b": "true",
        "list": '["a", "b\\"", null]',
        "vector": "[0.1, 1e-30, -0.0]",
        "struct": '{"a": 1, "b": null}',
    }


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_read_back_and_harmless(form: str) -> None:
    text = written(hostile(), form)
    # Characters that act on a terminal or turn the direction of text are escaped, which loses nothing.
    assert not acts_on_a_terminal(text)
    assert not any(character in text for character in "\u202e\u2066\u2028\ufeff")
    rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.split("\n")[:-1]]
    assert [row['te"x,t\n'] for row in rows] == HOSTILE
    assert [row["row"] for row in rows] == list(range(len(HOSTILE)))


def test_json_of_no_rows() -> None:
    assert json.loads(written(hostile().slice(0, 0), "json")) == []
    assert written(hostile().slice(0, 0), "jsonl") == ""


def test_json_numbers() -> None:
    content = pa.table(
        {
            "x": [float("nan"), float("inf"), -0.1],
            "v": pa.array([[0.1, float("nan")], None, [float("-inf"), 2.5]], pa.list_(pa.float32())),
            "s": [{"a": float("nan")}, {"a": 1.0}, None],
            "i": [2**62, None, -1],
        }
    )
    text = written(content, "jsonl")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"x": None, "v": [0.1, None], "s": {"a": None}, "i": 2**62},
        {"x": None, "v": None, "s": {"a": 1.0}, "i": None},
        {"x": -0.1, "v": [None, 2.5], "s": None, "i": -1},
    ]


def test_every_kind_of_value_of_duckdb_can_be_written() -> None:
    query = """
        SELECT sum(range) AS total, avg(range)::DECIMAL(9, 2) AS mean, uuid() AS id, INTERVAL 1 DAY AS span,
               'a'::ENUM('a', 'b') AS e, TIME '01:02:03' AS t, DATE '2020-02-29' AS d, TIMESTAMP '2020-01-01' AS ts,
               now() AS z, MAP {'k': 2} AS m, '101'::BIT AS bit, '\\xFF'::BLOB AS raw, NULL AS n, true AS yes
        FROM range(4)
    """
    with duckdb.connect() as connection:
        content = connection.sql(query).to_arrow_table()
    (row,) = json.loads(written(content, "json"))
    assert (row["total"], row["mean"], row["e"], row["t"], row["d"]) == (6, 1.5, "a", "01:02:03", "2020-02-29")
    assert (row["ts"], row["m"], row["raw"], row["n"], row["yes"]) == (
        "2020-01-01T00:00:00",
        [["k", 2]],
        "/w==",
        None,
        True,
    )
    for form in table.FORMATS:
        stream = io.BytesIO()
        table.write(content.drop(["span"]), form, stream)
        assert stream.getvalue()
    with pytest.raises(QueryError, match=r"cannot be written as Parquet .*interval"):
        table.write(content, "parquet", io.BytesIO())


@pytest.mark.parametrize("value", ["DATE '0001-01-01 (BC)'", "DATE '12345-06-07'", "[TIMESTAMP 'infinity']"])
@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "markdown"])
def test_a_date_that_python_has_none_for_is_told(value: str, form: str) -> None:
    with duckdb.connect() as connection:
        content = connection.sql(f"SELECT 1 AS one, {value} AS day").to_arrow_table()
        text = connection.sql(f"SELECT {value}::VARCHAR AS day").to_arrow_table()
    with pytest.raises(QueryError, match=r"column 'day' holds a date .* cast that column to VARCHAR"):
        written(content, form)
    assert written(text, form)


def test_columns_of_one_name_are_kept_apart() -> None:
    content = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["layer", "layer", "layer_1"])
    assert json.loads(written(content, "jsonl")) == {"layer": 1, "layer_1": 2, "layer_1_1": 3}
    assert written(content, "csv") == "layer,layer_1,layer_1_1\n1,2,3\n"
    stream = io.BytesIO()
    table.write(content, "parquet", stream)
    assert pq.read_table(io.BytesIO(stream.getvalue())).column_names == ["layer", "layer_1", "layer_1_1"]


def test_parquet_is_read_back() -> None:
    vectors = pa.array(np.arange(12, dtype=np.float32).reshape(4, 3).tolist(), pa.list_(pa.float32(), 3))
    content = pa.table({"text": HOSTILE[:4], "vector": vectors})
    stream = io.BytesIO()
    table.write(content, "parquet", stream)
    assert pq.read_table(io.BytesIO(stream.getvalue())).to_pylist() == content.to_pylist()


def test_markdown_keeps_its_cells() -> None:
    lines = written(hostile(), "markdown").split("\n")
    assert lines[-1] == ""
    assert lines[1] == "| ---: | --- |"
    assert len(lines) == len(HOSTILE) + 3
    text = "\n".join(lines)
    assert not acts_on_a_terminal(text)
    for line in lines[:-1]:
        unescaped = line.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") == 3
    assert "<script" not in text
    assert "](" not in text
    assert "two<br>lines" in text
    assert "\\|pipe\\|\\`tick\\`\\*star\\*_under_\\\\ |" in text


def test_table_cannot_act_on_a_terminal() -> None:
    text = written(hostile(), "table")
    assert not acts_on_a_terminal(text)
    lines = text.split("\n")
    assert len(lines) == len(HOSTILE) + 3
    assert "\\x1b[31mred\\x1b]0;title\\x07" in text
    assert "two\\nlines" in text
    assert "\\u202eevil" in text


def test_csv_cannot_act_on_a_terminal_and_is_whole_elsewhere() -> None:
    acting = pa.table({"a\x1b": ["\x1b[2J", "two\nlines"]})
    assert written(acting, "csv", width=80) == 'a\\x1b\n\\x1b[2J\n"two\\nlines"\n'
    assert written(acting, "csv", width=None) == 'a\x1b\n\x1b[2J\n"two\nlines"\n'


def test_table_is_aligned() -> None:
    content = pa.table({"layer": [0, 10], "run": ["日本", "abc"], "value": [0.123456789, None], "note": ["", None]})
    assert written(content, "table") == (
        "layer  run      value  note\n─────  ────  ────────  ────\n    0  日本  0.123457\n   10  abc\n"
    )


def test_table_shortens_vectors_but_not_text() -> None:
    vector = pa.array([np.linspace(0, 1, 64).astype(np.float32).tolist()], pa.list_(pa.float32(), 64))
    content = pa.table({"v": vector, "short": [[0.5, 2.0]], "tags": [["a", "b"]], "text": ["x" * 300]})
    text = written(content, "table")
    assert "[0, 0.015873, 0.031746, … 64]" in text
    assert "[0.5, 2]" in text
    assert '["a", "b"]' in text
    assert "x" * 300 in text


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_table_fits_the_terminal(width: int) -> None:
    content = pa.table({"n": [1], "text": ["w" * 300], "wide": ["日" * 200], "short": ["abc"]})
    lines = written(content, "table", width=width).splitlines()
    cells = [sum(2 if character in "日" else 1 for character in line) for line in lines]
    # Below its narrowest columns a table does not shrink.
    assert max(cells) <= max(width, 1 + 8 + 8 + 5 + 6)
    assert "…" in lines[2]
    assert "abc" in lines[2]


def test_a_plan_keeps_its_lines() -> None:
    content = pa.table({"explain_key": ["plan"], "explain_value": ["╭─ Scan ─╮\n│ \x1b[31m │\n╰────────╯\n"]})
    assert written(content, "table") == "╭─ Scan ─╮\n│ \\x1b[31m │\n╰────────╯\n"


def test_slices_and_batches_are_written_whole() -> None:
    n = 2500
    vectors = pa.array([[k / 8, None] if k % 3 else None for k in range(n)], pa.list_(pa.float32()))
    content = pa.table({"k": range(n), "v": vectors}).slice(5, n - 10)
    rows = [json.loads(line) for line in written(content, "jsonl").splitlines()]
    assert rows == content.to_pylist()


def test_float32_is_the_shortest_number_that_rounds_to_it() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    text = written(
        pa.table({"x": values, "v": pa.array(values.reshape(-1, 1).tolist(), pa.list_(pa.float32(), 1))}), "jsonl"
    )
    rows = [json.loads(line) for line in text.splitlines()]
    np.testing.assert_array_equal(np.float32([row["x"] for row in rows]), values)
    np.testing.assert_array_equal(np.float32([row["v"][0] for row in rows]), values)
    assert [repr(row["x"]) for row in rows] == [str(value) for value in values]


def test_unknown_format_is_the_users_error() -> None:
    with pytest.raises(QueryError, match="unknown format 'xml': use one of table, csv, json, jsonl, markdown, parquet"):
        table.write(pa.table({"a": [1]}), "xml", io.BytesIO())
