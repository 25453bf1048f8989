"""Reading data as it is in the wild: tolerant of what is odd, strict about what is broken."""

import json
from pathlib import Path

import polars as pl
import pytest

from layercache import sources
from layercache.errors import DataError


def _file(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_csv_keeps_multiline_cells_stray_quotes_and_drops_the_byte_order_mark(tmp_path: Path) -> None:
    source = _file(
        tmp_path, "a.csv", '\ufefftitle,note,n\r\n"A, B","two\nlines",1\r\n"say ""hi""",stray " quote,2\r\n\r\n'
    )
    assert sources.read(source) == [
        {"title": "A, B", "note": "two\nlines", "n": "1"},
        {"title": 'say "hi"', "note": 'stray " quote', "n": "2"},
    ]


def test_csv_without_a_last_line_end_keeps_its_last_row(tmp_path: Path) -> None:
    assert sources.read(_file(tmp_path, "a.csv", "a,b\n1,2"))[-1] == {"a": "1", "b": "2"}


def test_csv_finds_semicolons_and_tsv_reads_tabs(tmp_path: Path) -> None:
    assert sources.read(_file(tmp_path, "a.csv", "a;b\n1;2\n")) == [{"a": "1", "b": "2"}]
    assert sources.read(_file(tmp_path, "a.tsv", "a\tb\n1,5\t2\n")) == [{"a": "1,5", "b": "2"}]


def test_an_unnamed_index_column_gets_a_name(tmp_path: Path) -> None:
    assert sources.read(_file(tmp_path, "a.csv", ",a\n0,x\n")) == [{"column_1": "0", "a": "x"}]


def test_json_lines_flatten_nested_objects(tmp_path: Path) -> None:
    rows = [{"q": "who", "metadata": {"s_pop": 3, "deep": {"x": [1]}}}, {"q": "é"}]
    source = _file(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert sources.read(source) == [{"q": "who", "metadata.s_pop": 3, "metadata.deep.x": [1]}, {"q": "é"}]


@pytest.mark.parametrize("text", ['[{"a": 1}]', '{"rows": [{"a": 1}]}'])
def test_json_array_alone_or_under_one_key(tmp_path: Path, text: str) -> None:
    assert sources.read(_file(tmp_path, "a.json", text)) == [{"a": 1}]


def test_parquet_and_text(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2], "s": [{"x": "u"}, {"x": "v"}]}).write_parquet(tmp_path / "a.parquet")
    assert sources.read(str(tmp_path / "a.parquet")) == [{"a": 1, "s.x": "u"}, {"a": 2, "s.x": "v"}]
    assert sources.read(_file(tmp_path, "a.txt", "one\n\n two \n")) == [{"text": "one"}, {"text": "two"}]


def test_hub_data_sets_are_read_through_the_datasets_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"title": "A", "m": {"n": 1}}\n{"title": "B", "m": {"n": 2}}\n')
    assert sources.read(f"hf:{folder}:train") == [{"title": "A", "m.n": 1}, {"title": "B", "m.n": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", "line 3: 3 cells where the header has 2"),
        ("a.csv", 'a,b\n"x\ny",2\n1\n', "line 4: 1 cells where the header has 2"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is opened and never closed"),
        ("a.csv", "a,a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", b"a,b\n1,2\n\xff\xfe,3\n", "line 3: not UTF-8"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.json", '{"a": 1, "b": 2}', "not a JSON array"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', "line 3: not JSON"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.xlsx", "x", "unknown kind of file"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        sources.read(_file(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_the_line_of_bytes_that_are_no_text_is_counted_over_the_whole_file(tmp_path: Path) -> None:
    """A stream's own error counts from its last buffer."""
    with pytest.raises(DataError, match="line 5002: not UTF-8"):
        sources.read(_file(tmp_path, "a.csv", b"a,b\n" + b"long enough,2\n" * 5000 + b"caf\xe9,3\n"))


@pytest.mark.parametrize(("name", "what"), [("a.csv.gz", "unpack it first"), ("a.xlsx", "save the sheet as CSV")])
def test_a_file_that_has_to_be_made_another_first(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(DataError, match=f"unknown kind of file; {what}, then give one of .csv"):
        sources.read(_file(tmp_path, name, "x"))


@pytest.mark.parametrize(
    ("name", "content", "row", "place"),
    [
        ("a.csv", "a,b\n1,2\n3,4\n", 1, "row 1 (line 3 of a.csv)"),
        ("a.csv", 'a,b\n"x\ny",2\n\n3,4\n', 1, "row 1 (line 5 of a.csv)"),
        ("a.csv", "a,b\r\n1,2\r\n3,4", 1, "row 1 (line 3 of a.csv)"),
        ("a.tsv", "a\tb\n1\t2\n", 0, "row 0 (line 2 of a.tsv)"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n', 1, "row 1 (line 3 of a.jsonl)"),
        ("a.txt", "one\n\ntwo\n", 1, "row 1 (line 3 of a.txt)"),
        ("a.json", '[{"a": 1}, {"a": 2}]', 1, "row 1"),
        ("a.csv", "a,b\n1,2\n3\n", 5, "row 5"),
    ],
)
def test_a_row_is_named_as_it_can_be_looked_up(tmp_path: Path, name: str, content: str, row: int, place: str) -> None:
    source = _file(tmp_path, name, content)
    assert sources.place(source, row) == place
    if "line" in place:
        line = int(place.split("line ")[1].split()[0])
        begins = Path(source).read_text().splitlines()[line - 1]
        assert str(next(iter(sources.read(source)[row].values()))).splitlines()[0] in begins


def test_a_row_of_what_has_no_lines(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    assert sources.place(str(tmp_path / "a.parquet"), 1) == "row 1"
    assert sources.place("demo:movies", 7) == "row 7"
    assert sources.place("hf:somebody/films", 7) == "row 7"


@pytest.mark.parametrize(
    ("source", "message"),
    [("no/such.csv", "no data file"), ("demo:nothing", "no demo data set 'nothing'"), (".", "not a file")],
)
def test_missing_sources_are_named(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sources.read(source)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udc00x": 1}', '{"a": "\\ud83d\\ud83d\\ude00"}'])
def test_half_a_character_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text(f'{{"a": "x"}}\n{text}\n')
    with pytest.raises(DataError, match=r"half.jsonl line 2: \\u.* is half of a character"):
        sources.read(str(tmp_path / "half.jsonl"))


def test_a_whole_character_of_two_codes_and_an_escaped_backslash_are_read(tmp_path: Path) -> None:
    (tmp_path / "whole.jsonl").write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}\n')
    assert sources.read(str(tmp_path / "whole.jsonl")) == [{"a": "\U0001f600", "b": "\\ud800"}]
