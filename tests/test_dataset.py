"""Templates, spans and labels: every character range is checked against the text it points into."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from layercache import dataset, recipe
from layercache.errors import DataError
from layercache.recipe import Label


def _load(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> dataset.Dataset:
    path = tmp_path / "films.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return dataset.load(recipe.validate(recipe.DataSpec, {"source": str(path), **settings}, where="test"))


ROWS = [
    {"title": "Ünder", "meta": {"year": 1999}, "certificate": "PG", "rating": "7.5", "ok": "yes", "aka": ["U", "V"]},
    {"title": "", "meta": {"year": None}, "certificate": None, "rating": "", "ok": "No", "aka": []},
    {"title": "Q {x}", "meta": {"year": 2001}, "certificate": "18", "rating": "1,234.5", "ok": "1", "aka": ["W"]},
]
TEMPLATE = "Title: {title} ({meta.year}) {{literal}}\nAgain {title}"


def test_spans_point_at_the_fields(tmp_path: Path) -> None:
    prompts = _load(tmp_path, ROWS, template=TEMPLATE).prompts
    assert prompts[0].text == "Title: Ünder (1999) {literal}\nAgain Ünder"
    found = {name: prompts[0].text[start:end] for name, (start, end) in prompts[0].spans.items()}
    assert found == {"title": "Ünder", "meta.year": "1999", "title#2": "Ünder"}
    assert prompts[1].text == "Title:  () {literal}\nAgain "
    assert prompts[1].spans == {}
    assert prompts[1].absent == ("title", "meta.year", "title#2")
    assert prompts[2].text.startswith("Title: Q {x} (2001)"), "braces in data are data"


def test_labels_are_typed_by_their_kind(tmp_path: Path) -> None:
    labels = ["rating:number", "certificate:category", "ok:boolean", "aka:text"]
    data = _load(tmp_path, ROWS, template=TEMPLATE, labels=labels)
    assert data.labels[0] == Label("rating", "number")
    assert data.frame["rating"].to_list() == [7.5, None, 1234.5]
    assert data.frame["certificate"].to_list() == ["PG", None, "18"]
    assert data.frame["ok"].to_list() == [True, False, True]
    assert data.frame["aka"].to_list() == [["U", "V"], [], ["W"]]
    assert any("rating: 1 of 3 rows have no value" in note for note in data.notes)
    assert any("rating: 1 cells are read with a thousands separator, such as '1,234.5'" in note for note in data.notes)
    assert any("{title} is empty in 1 of 3 rows" in note for note in data.notes)


def test_undeclared_columns_lose_nothing(tmp_path: Path) -> None:
    rows = [
        {"id": "007", "n": "12", "x": "1.5", "mix": 1, "t": "a"},
        {"id": "010", "n": "-3", "x": "2", "mix": "b", "t": "a"},
    ]
    frame = _load(tmp_path, rows, template="{t}").frame
    assert frame["id"].to_list() == ["007", "010"]
    assert frame["n"].dtype == pl.Int64
    assert frame["x"].to_list() == [1.5, 2.0]
    assert frame["mix"].to_list() == ["1", "b"]


def test_dates_and_decimal_numbers_of_parquet_are_their_text(tmp_path: Path) -> None:
    path = tmp_path / "typed.parquet"
    day = date(2020, 2, 29)
    pl.DataFrame({"t": ["a"], "day": [day], "price": [Decimal("1.50")], "days": [[day]]}).write_parquet(path)
    spec = recipe.DataSpec(source=str(path), template="{t} {day} {price}")
    frame = dataset.load(spec).frame
    assert frame.row(0) == ("a", "2020-02-29", "1.50", '["2020-02-29"]')


def test_missing_markers_target_split_and_limit(tmp_path: Path) -> None:
    rows = [
        {"t": "a", "y": "N/A", "answers": ["x", "z"], "split": "train"},
        {"t": "b", "y": "2", "answers": [], "split": "test"},
    ]
    data = _load(tmp_path, rows, template="{t}", labels=["y:number"], missing=["N/A"], target="answers")
    assert data.frame["y"].to_list() == [None, 2.0]
    assert [prompt.target for prompt in data.prompts] == ["x", None]
    assert data.split == "split"
    assert len(_load(tmp_path, rows, template="{t}", limit=1).prompts) == 1


def test_a_label_in_the_template_is_said(tmp_path: Path) -> None:
    data = _load(tmp_path, ROWS, template="{certificate} {title}", labels=["certificate:category"])
    assert any("stands in the template" in note for note in data.notes)


def test_a_text_column_is_its_own_template(tmp_path: Path) -> None:
    assert [prompt.text for prompt in _load(tmp_path, [{"text": "x"}, {"text": "y"}]).prompts] == ["x", "y"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{titel}"}, "template names a column 'titel' that is not there; did you mean 'title'"),
        ({"template": "{title"}, "lone '{'"),
        ({"template": "a } b"}, "lone '}'"),
        ({}, "no template given"),
        (
            {"template": "{title}", "labels": ["title:number"]},
            r"label 'title', row 0 \(line 1 of films.jsonl\): 'Ünder' is not a number",
        ),
        (
            {"template": "{title}", "labels": ["title:boolean"]},
            r"row 0 \(line 1 of films.jsonl\): 'Ünder' is not true or false",
        ),
        ({"template": "{title}", "labels": ["nope:number"]}, "label names a column 'nope'"),
        ({"template": "{title}", "split": "nope"}, "split names a column 'nope'"),
        ({"template": "{title}", "group_by": "nope"}, "group_by names a column 'nope'"),
        ({"template": "{title}", "target": "nope"}, "target names a column 'nope'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path, ROWS, **settings)
    assert "\n" not in str(caught.value)


def test_a_number_label_that_is_text_names_the_row(tmp_path: Path) -> None:
    rows = [{"t": "a", "y": "1"}, {"t": "b", "y": ""}, {"t": "c", "y": "about 2"}]
    with pytest.raises(DataError, match=r"label 'y', row 2 \(line 3 of films.jsonl\): 'about 2' is not a number"):
        _load(tmp_path, rows, template="{t}", labels=["y:number"])


@pytest.mark.parametrize("cell", ["4,5", " -0,25", "1.250,5"])
def test_a_decimal_comma_is_named(tmp_path: Path, cell: str) -> None:
    said = rf"'{cell.strip()}' is not a number; it has a decimal comma, write a point$"
    with pytest.raises(DataError, match=said):
        _load(tmp_path, [{"t": "a", "y": cell}], template="{t}", labels=["y:number"])


def test_references_stay_text_and_may_be_several(tmp_path: Path) -> None:
    rows = [
        {"t": "a", "short": "007", "long": ["x", "y"], "year": 1999},
        {"t": "b", "short": "2.50", "long": [], "year": 2001},
        {"t": "c", "short": "", "long": ["z"], "year": 2002},
    ]
    data = _load(tmp_path, rows, template="{t}", reference=["short", "long", "year"])
    assert data.references == ("short", "long", "year")
    assert data.frame["short"].to_list() == ["007", "2.50", None]
    assert data.frame["long"].to_list() == [["x", "y"], [], ["z"]]
    assert data.frame["year"].to_list() == ["1999", "2001", "2002"]
    assert "short: 1 of 3 rows have no value and are not scored against it" in data.notes
    assert _load(tmp_path, rows, template="{t}", reference="short").references == ("short",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": ["lon"]}, "reference names a column 'lon' that is not there; did you mean 'long'"),
        ({"reference": ["none"]}, "reference 'none' has no value in any row"),
        ({"reference": ["long"], "labels": ["long:category"]}, "reference 'long' holds lists and is a category label"),
    ],
)
def test_wrong_references_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path, [{"t": "a", "long": ["x"], "none": None}], template="{t}", **settings)


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        _load(tmp_path, [{"t": "a", "y": "inf"}], template="{t}", labels=["y:number"])


def test_a_label_without_any_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label 'y' has no value in any row"):
        _load(tmp_path, [{"t": "a", "y": None}], template="{t}", labels=["y:number"])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b/my films.csv", "my_films"),
        ("hf:google/boolq:validation", "boolq"),
        ("demo:qa", "qa"),
        ("../..csv", "data"),
        ("cafés.csv", "cafés"),
        ("cafe\u0301s.csv", "cafés"),
        ("映画 1.csv", "映画_1"),
        ("映" * 30 + "1.csv", "1"),
        ("映" * 30 + ".csv", "data"),
        ("« a/../é\n».csv", "é"),
    ],
)
def test_data_sets_are_named_after_their_source(source: str, name: str) -> None:
    assert dataset.data_name(recipe.DataSpec(source=source)) == name


MOVIES = Path(__file__).parents[2] / "shared" / "data" / "movies.csv"


@pytest.mark.skipif(not MOVIES.exists(), reason="the real film data is not beside the checkout")
def test_real_films_load_whole() -> None:
    data = dataset.load(
        recipe.DataSpec(
            source=str(MOVIES), template="{movie_name}: {description}", labels=["rating:number", "certificate:category"]
        )
    )
    assert len(data.prompts) == 8419
    both = data.frame.filter(pl.col("rating").is_not_null() & pl.col("certificate").is_not_null())
    assert len(both) == 1953


QUESTIONS = [
    {"question": "Who made It?", "subject": "It", "gold": ["A", "B"], "more": "C", "told": ""},
    {
        "question": "Who plays Ada  Byron in it?",
        "subject": "ada byron",
        "gold": '["A, B"]',
        "more": "A, B",
        "told": "B",
    },
    {"question": "Where is Parisa?", "subject": "Paris", "gold": [], "more": "", "told": "x"},
    {"question": "东京在哪里?", "subject": "东京", "gold": "plain", "more": None, "told": None},
    {"question": "Why?", "subject": "", "gold": None, "more": None, "told": None},
]


def test_spans_that_are_looked_for(tmp_path: Path) -> None:
    data = _load(tmp_path, QUESTIONS, template="it Ada Byron. Q: {question}", spans=["subject@question"])
    found = [prompt.text[slice(*prompt.spans.get("subject", (0, 0)))] for prompt in data.prompts]
    assert found == ["It", "Ada  Byron", "", "东京", ""]
    assert data.prompts[0].spans["subject"][0] > len("it Ada Byron. Q: "), "only its own field is searched"
    assert (data.prompts[2].unfound, data.prompts[2].absent) == (("subject",), ())
    assert (data.prompts[4].unfound, data.prompts[4].absent) == ((), ("subject",))
    assert "subject does not stand in its field in 1 of 5 rows: no such span there" in data.notes


def test_accepted_answers_are_gathered_from_columns(tmp_path: Path) -> None:
    data = _load(tmp_path, QUESTIONS, template="{question}", answers=["gold", "more"], exact_answer="told")
    assert data.answers == [["A", "B", "C"], ["A, B"], None, ["plain"], None]
    assert data.exact_answers == [None, "B", "x", None, None]
    assert data.answer_columns == ("gold", "more")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"answers": ["score"]},
            r"answers column 'score', row 0 \(line 1 of \w+.jsonl\): 7 is not a list of accepted answers",
        ),
        ({"answers": ["meta"]}, "did you mean 'meta.a'"),
        ({"answers": ["nothing"]}, "answers: nothing has no value in any row"),
        ({"answers": ["gone"]}, "answers names a column 'gone'"),
        ({"exact_answer": "gone"}, "exact_answer names a column 'gone'"),
        ({"spans": ["gone@question"]}, "spans names a column 'gone'"),
        ({"spans": ["nothing@title"]}, "the template has no field 'title'; it has question"),
        ({"spans": ["question@question"]}, "there is a span 'question' already"),
    ],
)
def test_answers_and_spans_that_cannot_be(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    rows = [{"question": "q", "score": 7, "meta": {"a": 1}, "nothing": None}]
    with pytest.raises(DataError, match=message):
        _load(tmp_path, rows, template="{question}", **settings)
