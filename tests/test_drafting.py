"""`layercache init`: what is guessed from columns, and that what is written can be read and run."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command import Call

from layercache import dataset, drafting, recipe
from layercache.drafting import columns, roles, wording, write
from layercache.errors import DataError, RecipeError
from layercache.recipe import Recipe

REAL = os.environ.get("LAYERCACHE_DATA")
NAMES = (
    "boolq.jsonl",
    "hotpotqa.json",
    "movies.csv",
    "nq_open.jsonl",
    "popqa.jsonl",
    "triviaqa.jsonl",
    "wikitext2.txt",
)


def _drafted(source: object, model: str = "demo") -> Recipe:
    return recipe.build(tomllib.loads(drafting.draft(str(source), model).text))


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _roles(rows: list[dict[str, Any]]) -> roles.Roles:
    return roles.assign(columns.look(rows)[0], len(rows))


@pytest.mark.parametrize(
    ("source", "template", "labels", "split", "group_by"),
    [
        ("demo:qa", "Question: {question}\nAnswer:", ["kind:category"], None, "subject"),
        (
            "demo:boolq",
            "{passage}\nQuestion: {question}\nAnswer:",
            ["answer:boolean", "kind:category"],
            "split",
            "passage",
        ),
    ],
)
def test_the_demo_data(source: str, template: str, labels: list[str], split: str | None, group_by: str | None) -> None:
    data = _drafted(source).data[0]
    assert (data.template, data.labels, data.split, data.group_by) == (template, labels, split, group_by)


def test_films(films: Path) -> None:
    """Rating and certificate are labels, what has words is the prompt."""
    study = _drafted(films)
    data = study.data[0]
    assert {"rating:number", "certificate:category"} <= set(data.labels)
    assert "{title}" in str(data.template)
    assert "{description}" in str(data.template)
    assert "{rating}" not in str(data.template)
    assert study.name == "films"


def test_kinds_of_columns() -> None:
    rows = [
        {
            "id": f"x{n}",
            "n": n,
            "number": f"{n / 7:.3f}",
            "grouped": "1,234",
            "flag": n % 2,
            "yes": "yes" if n % 3 else "No",
            "list": ["a", "b"],
            "json": '["a", "b"]',
            "nested": [[1]],
            "text": f"a text number {n}",
            "gap": "N/A" if n % 2 else str(n / 3),
            "dash": "-" if n % 2 else str(n * 2),
            "dashes": "-" if n % 2 else "word",
            "empty": "",
        }
        for n in range(60)
    ]
    found, missing = columns.look(rows)
    kinds = {column.name: column.kind for column in found}
    assert kinds == {
        **{"id": "text", "n": "number", "number": "number", "grouped": "number", "flag": "boolean", "yes": "boolean"},
        **{"list": "list", "json": "list", "nested": "other", "text": "text", "gap": "number", "dash": "number"},
        "dashes": "text",
    }
    assert missing == ["-", "N/A"]
    assert {column.name for column in found if column.identifies} == {"id", "n"}


@pytest.mark.parametrize(
    ("rows", "template", "labels", "answers", "choices"),
    [
        ([{"prompt": f"say {n}", "y": n % 3} for n in range(90)], "{prompt}", ["y:category"], [], []),
        ([{"text": f"some text {n}", "rating": n / 7} for n in range(60)], "{text}", ["rating:number"], [], []),
        (
            [{"question": f"Who made {n}?", "answer": f"Person {n}", "aliases": ["x"]} for n in range(30)],
            *("Question: {question}\nAnswer:", [], ["answer"], []),
        ),
        (
            [{"question": f"Is it {n}?", "answer": n % 2 == 0} for n in range(30)],
            *("Question: {question}\nAnswer:", ["answer:boolean"], [], [" true", " false"]),
        ),
        ([{"a": n / 3, "b": n * n} for n in range(5)], "A: {a}\nB: {b}", ["a:number", "b:number"], [], []),
        ([{"only": f"line {n}"} for n in range(4)], "Only: {only}", [], [], []),
    ],
)
def test_roles(
    rows: list[dict[str, Any]], template: str, labels: list[str], answers: list[str], choices: list[str]
) -> None:
    found = _roles(rows)
    assert (found.template, found.labels, found.answers, found.choices) == (template, labels, answers, choices)


def test_a_label_that_the_questions_words_tell_is_left_out(tmp_path: Path) -> None:
    """PopQA's property repeats the question; which property says nothing of what a model knows."""
    ask = {
        "father": "Who is the father of {}?",
        "place of birth": "Where was {} born?",
        "sport": "What sport does {} play?",
    }
    rows = [
        {
            "question": ask[kind].format(f"Ada {n}"),
            "prop": kind,
            "level": ["low", "high"][n % 7 < 3],
            "n_pop": n * n % 97,
        }
        for n, kind in enumerate(list(ask) * 30)
    ]
    drafted = drafting.draft(str(_jsonl(tmp_path / "asked.jsonl", rows)))
    assert recipe.build(tomllib.loads(drafted.text)).data[0].labels == ["level:category"]
    assert '# Left out, since words of the question tell it: ["prop:category"]' in drafted.text
    assert ("no label", "prop") in [guess[:2] for guess in drafted.guesses]
    without = [{**row, "question": f"Ada {n}?"} for n, row in enumerate(rows)]
    assert _roles(without).labels == ["prop:category", "level:category"]


@pytest.mark.parametrize(
    ("labels", "texts", "told"),
    [
        (["a", "a", "b", "b"], ["red x", "a red", "blue", "the blue y"], True),
        (["a", "a", "b", "b"], ["red x", "red", "red", "red y"], False),
        # A word of nine rows in ten says nothing where nine in ten are of the class.
        (["a"] * 9 + ["b"], ["of it"] * 10, False),
        # Half of the rows of one class, and none of the other's: Youden's J is 1/2 for the first, and for the second 0.
        (["a", "a", "b", "b"], ["red", "x", "x", "x"], False),
        (["a", "a"], ["red", "red"], False),
        ([None, "a", "b"], ["x", "red", None], False),
    ],
)
def test_what_a_word_tells(labels: list[str | None], texts: list[str | None], told: bool) -> None:
    assert wording.told_by_a_word(labels, texts) is told


def test_a_trial_takes_rows_enough_for_two_classes(tmp_path: Path) -> None:
    """BoolQ's file has every true answer first: 200 rows of it leave nothing to probe."""
    rows = [{"question": f"Is it {n}?", "answer": n < 400} for n in range(800)]
    drafted = drafting.draft(str(_jsonl(tmp_path / "sorted.jsonl", rows)))
    assert drafted.trial == 500
    assert "# limit = 500 " in drafted.text
    assert drafting.draft(str(_jsonl(tmp_path / "mixed.jsonl", rows[::-2] + rows[1::2]))).trial == 500
    assert drafting.draft(str(_jsonl(tmp_path / "turns.jsonl", rows[::400] * 30))).trial == 200
    late = [{"question": f"Is it {n}?", "answer": n < 5990} for n in range(6010)]
    last = drafting.draft(str(_jsonl(tmp_path / "late.jsonl", late)))
    assert last.trial is None
    assert "# The first rows have one class of a label only" in last.text


def test_numbers_with_a_decimal_comma_are_no_classes(tmp_path: Path) -> None:
    """A semicolon file of a spreadsheet: 4,5 is a number, a lone dash is none."""
    stars = ["4,5", "5", "2,5", "3"]
    lines = [
        f"A film of {n};{stars[n % 4]};{'-' if n % 7 == 0 else f'1.{n:03},50'};{'–' if n % 9 == 0 else 'ab'[n % 2]}"
        for n in range(60)
    ]
    path = tmp_path / "stars.csv"
    path.write_text("\n".join(["title;stars;Price (€);kind", *lines]), encoding="utf-8")
    drafted = drafting.draft(str(path))
    data = recipe.build(tomllib.loads(drafted.text)).data[0]
    assert (data.labels, data.template) == (["kind:category"], "Title: {title}")
    said = "# Numbers with a decimal comma are not read: write points in the file, then add"
    assert f'{said} ["stars:number", "Price (€):number"]\n' in drafted.text
    assert ("no label", "stars") in [guess[:2] for guess in drafted.guesses]
    assert data.missing == ["-", "–"]


def test_signs_are_a_class_beside_other_signs() -> None:
    """A dash beside classes that have letters means no value; beside a plus it is a class itself."""
    assert columns.look([{"mood": "+-"[n % 2]} for n in range(60)])[1] == []
    assert columns.look([{"mood": ["good", "bad", "?"][n % 3]} for n in range(60)])[1] == ["?"]
    assert columns.look([{"mood": ["good", "bad", "none"][n % 3]} for n in range(60)])[1] == []
    assert columns.look([{"text": f"text {n}" if n % 3 else "?"} for n in range(60)])[1] == []


def test_letters_of_a_files_name_stay(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "cafés.csv"
    path.write_text("title,kind\n" + "".join(f"Film {n},{'ab'[n % 2]}\n" for n in range(6)), encoding="utf-8")
    assert call("init", path).out == "cafés.toml\n"
    assert recipe.load("cafés.toml").name == "cafés"
    made = call("run", "cafés.toml", "-q", "--store", "s", "--set", "extract.layers=0")
    assert made.code == 0, made.err
    assert [run["data"] for run in call("ls", "--json", "--store", "s").json] == ["cafés"]  # type: ignore[attr-defined]
    assert call("verify", "--store", "s").code == 0


def test_no_trial_of_more_rows_than_there_are(tmp_path: Path, call: Call) -> None:
    _jsonl(tmp_path / "few.jsonl", [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(60)])
    assert "next: layercache run few.toml --store few-store" in call("init", tmp_path / "few.jsonl").err
    assert "limit" not in Path("few.toml").read_text()
    _jsonl(tmp_path / "many.jsonl", [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(201)])
    said = "next: layercache run many.toml --set data.limit=200 --store many-store"
    assert said in call("init", tmp_path / "many.jsonl").err


def test_probes_wait_for_enough_rows(tmp_path: Path) -> None:
    few = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(30)]
    assert [spec.kind for spec in _drafted(_jsonl(tmp_path / "few.jsonl", few)).analyze] == ["entropy"]
    many = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(60)]
    assert [spec.kind for spec in _drafted(_jsonl(tmp_path / "many.jsonl", many)).analyze] == ["probe", "entropy"]
    one_sided = [{"text": f"t {n}", "label": "ab"[n < 3]} for n in range(60)]
    assert [spec.kind for spec in _drafted(_jsonl(tmp_path / "one.jsonl", one_sided)).analyze] == ["entropy"]


HOSTILE = [
    'x"]\n[extract]\ndtype = "int8"\n#',
    '"""',
    "'''",
    "\\",
    "a\nb",
    "a\r\nb",
    "tab\tand\x00nul\x7fdel\x1b[31m",
    "# comment",
    "é \u202e \U0001f600",
    "a:number",
    "a,b",
    "it's @home",
    "{braced}",
    "  spaces ",
    "prompt",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_cells_stay_text(name: str, tmp_path: Path) -> None:
    rows = [
        {name: f"{HOSTILE[n % len(HOSTILE)]} words {n}", "label": HOSTILE[n % 2], "other": name} for n in range(120)
    ]
    path = _jsonl(tmp_path / "hostile.jsonl", rows)
    drafted = drafting.draft(str(path))
    study = recipe.build(tomllib.loads(drafted.text))
    assert study.extract.dtype == "auto"
    assert study.data[0].labels == ["label:category"]
    data = dataset.load(study.data[0])
    assert len(data.prompts) == 120
    if columns.Column(name, "text", 1, columns.Counter(), 1, 1, False).usable:
        assert f"{{{name}}}" in str(study.data[0].template)
    else:
        assert "braced" not in str(study.data[0].template)
    for line in drafted.text.splitlines():
        assert line.isprintable() or line == ""


@pytest.mark.parametrize("text", [*HOSTILE, "", "a\n", '"\n"""\n', "line \\\nnext"])
def test_strings_come_back(text: str) -> None:
    read = tomllib.loads(
        f"a = {write.text(text)}\nb = {write.block(text)}\nc = {write.strings([text, 'x'])} {write.comment(text)}"
    )
    assert read == {"a": text, "b": text, "c": [text, "x"]}


def test_names_that_cannot_be_written_are_left_out(tmp_path: Path) -> None:
    found, _ = columns.look([{"\ud800": "x", "text": "some text"}])
    assert [column.name for column in found] == ["text"]
    with pytest.raises(RecipeError, match="is not UTF-8"):
        drafting.draft("\udcff.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", "", "is empty"),
        ("head.csv", "a,b\n", "holds no rows"),
        ("nothing.csv", "a,b\n,\n", "none of its columns (none)"),
        ("braces.csv", "{a},{b}\nx,y\n", "can stand in a prompt"),
        ("what.xyz", "x", "unknown kind of file"),
    ],
)
def test_files_without_a_prompt(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as refused:
        drafting.draft(str(tmp_path / name))
    assert said in str(refused.value)


def test_plain_text_and_nested_values(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one line\n\nanother\n")
    assert _drafted(tmp_path / "lines.txt").data[0].template == "{text}"
    rows = [
        {"question": f"q {n}?", "meta": {"kind": "ab"[n % 2], "gold": [f"a{n}"], "deep": {"x": [[n]]}}}
        for n in range(40)
    ]
    data = _drafted(_jsonl(tmp_path / "nested.jsonl", rows)).data[0]
    assert data.labels == ["meta.kind:category"]
    assert data.answers == ["meta.gold"]
    assert data.target == "meta.gold"


def test_long_prompts_are_cut_where_the_model_is_known(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "long.jsonl", [{"text": "word " * 400}, {"text": "short"}])
    assert _drafted(path).extract.truncate
    assert not _drafted(path, "org/unknown").extract.truncate
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"max_position_embeddings": 8192}}')
    assert not _drafted(path, str(tmp_path / "model")).extract.truncate


def test_the_command(call: Call, films: Path) -> None:
    done = call("init", films)
    assert (done.code, done.out) == (0, "films.toml\n")
    assert "label: rating:number (every cell is a number" in done.err
    assert "next: layercache run films.toml --store films-store" in done.err
    first = Path("films.toml").read_text()
    Path("films.toml").write_text("mine")
    refused = call("init", films)
    assert (refused.code, Path("films.toml").read_text()) == (2, "mine")
    assert "is there already" in refused.err
    forced = call("init", films, "--force", "--json", "-q")
    assert forced.err == ""
    assert Path("films.toml").read_text() == first
    assert forced.json["recipe"] == "films.toml"  # type: ignore[index]
    assert {"what", "value", "why"} == set(forced.json["guesses"][0])  # type: ignore[index]
    assert "cannot be written" in call("init", films, "-o", "no/such/folder.toml").err
    made = call("extract", "films.toml", "--store", "s", "-q", "--set", "data.limit=20", "--json")
    assert made.code == 0, made.err
    assert made.json[0]["rows"] == 20  # type: ignore[index]


ODD = {
    "mark.csv": b"\xef\xbb\xbftitle,kind\n" + b"".join(b"Film %d,%s\n" % (n, b"ab"[n % 2 :][:1]) for n in range(60)),
    "semicolons.csv": "title;kind\n" + "".join(f"Film {n};{'ab'[n % 2]}\n" for n in range(60)),
    "bars.csv": "title|kind\n" + "".join(f"Film {n}|{'ab'[n % 2]}\n" for n in range(60)),
    "gaps.csv": "title,,kind,nothing\n" + "".join(f"Film {n},,{'ab'[n % 2]},\n" for n in range(60)),
    "names.csv": '"movie name","a.b","{c}","it\'s ""it""","a,b","gross(in $)","new\nline",kind\n'
    + "".join(f"Film {n},x{n % 2},c{n % 3},words {n},{n / 3:.2f},{n * 99},line {n},{'ab'[n % 2]}\n" for n in range(60)),
    "wide.csv": ",".join([*(f"c{n}" for n in range(199)), "kind"])
    + "\n"
    + "".join(",".join([*(f"word{i} {n}" for i in range(199)), "ab"[n % 2]]) + "\n" for n in range(60)),
    "list.json": json.dumps([{"title": f"Film {n}", "kind": "ab"[n % 2]} for n in range(60)]),
    "nested.json": json.dumps(
        {
            "data": [
                {"film": {"title": f"Film {n}", "tags": ["x"]}, "kind": "ab"[n % 2], "s": [{"n": n}]} for n in range(60)
            ]
        }
    ),
}


@pytest.mark.parametrize("name", [*ODD, "lists.parquet"])
def test_odd_files_give_drafts_that_run(name: str, tmp_path: Path, call: Call) -> None:
    path = tmp_path / name
    if name == "lists.parquet":
        columns = {"title": [f"Film {n}" for n in range(60)], "kind": ["a", "b"] * 30, "tags": [["x", "y"]] * 60}
        pl.DataFrame(
            {**columns, "numbers": [[1.0]] * 60, "nothing": pl.Series([None] * 60, dtype=pl.Date)}
        ).write_parquet(path)
    else:
        path.write_bytes(content if isinstance(content := ODD[name], bytes) else content.encode())
    made = call("init", path, "-o", "odd.toml")
    assert made.code == 0, made.err
    assert all(line.isprintable() for line in made.err.splitlines())
    assert "kind:category" in recipe.load("odd.toml").data[0].labels
    done = call("run", "odd.toml", "--dry-run", "-q", "--store", "s")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith(f"demo on {path.stem}: 60 rows, 60 samples")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("doubled.csv", "title,title\na,b\n", "line 1: two columns are called 'title'; rename one"),
        ("doubled.csv", "title, title\na,b\n", "two columns are called 'title'"),
        ("latin.csv", b"title\ncaf\xe9\n", "latin.csv line 2: not UTF-8 text; save the file as UTF-8"),
        ("none.csv", "title,kind\n", "none.csv holds no rows"),
        ("packed.csv.gz", b"\x1f\x8b", "unpack it first"),
        ("texts.json", '["a"]', "texts.json row 0: not a JSON object"),
    ],
)
def test_files_that_cannot_be_drafted_from(
    name: str, content: str | bytes, said: str, tmp_path: Path, call: Call
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused = call("init", tmp_path / name)
    assert (refused.code, refused.out) == (2, "")
    assert said in refused.err
    assert not list(Path().glob("*.toml"))


def test_a_file_of_one_row(tmp_path: Path, call: Call) -> None:
    (tmp_path / "one.csv").write_text("title,kind\nA film,a\n")
    assert call("init", tmp_path / "one.csv").code == 0
    assert call("run", "one.toml", "-q", "--store", "s").code == 0


@pytest.mark.skipif(REAL is None, reason="set LAYERCACHE_DATA to a folder with the real data sets")
@pytest.mark.parametrize("name", NAMES)
def test_real_data_sets_run(name: str, call: Call) -> None:
    assert REAL is not None
    made = call("init", Path(REAL) / name, "-o", "real.toml")
    assert made.code == 0, made.err
    settings = [word for text in ("data.limit=20", "extract.layers=0,3") for word in ("--set", text)]
    done = call("run", "real.toml", "--store", "s", "-q", *settings)
    if name == "boolq.jsonl":
        # Its first half is all true, which is why more rows are advised.
        assert "data.limit=2000" in made.err
        assert "all 20 rows have the class 'true'" in done.err
    else:
        assert done.code == 0, done.err
        assert Path("s/report.html").is_file()
