"""`layercache init`: what is guessed from columns, and that what is written can be read and run."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command import Call

from layercache import dataset, drafting, recipe
from layercache.drafting import columns, roles, write
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
    assert "next: layercache run films.toml --set data.limit=200 --store films-store" in done.err
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


@pytest.mark.skipif(REAL is None, reason="set LAYERCACHE_DATA to a folder with the real data sets")
@pytest.mark.parametrize("name", NAMES)
def test_real_data_sets_run(name: str, call: Call) -> None:
    assert REAL is not None
    made = call("init", Path(REAL) / name, "-o", "real.toml")
    assert made.code == 0, made.err
    settings = [word for text in ("models=demo", "data.limit=100", "extract.layers=0,3") for word in ("--set", text)]
    done = call("extract", "real.toml", "--store", "s", "-q", *settings)
    assert done.code == 0, done.err
