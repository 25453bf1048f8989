"""What the sample browser's data hold: true to the store, within their bytes, inert whatever the texts say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing_store import CHANGES, CLASSES, GRID, LENS, Plan, build, p_correct, sample_id
from test_report_page import Page

from layercache import report
from layercache.errors import AnalysisError
from layercache.recipe import ReportSpec
from layercache.report import browser, frames
from layercache.report.browser import choosing, encode, filling, inside, listed, listing
from layercache.report.text import script_json
from layercache.store.reader import Store

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u202e\x1b'\"${y}"


def data_of(store: Store, **settings: Any) -> dict[str, Any]:
    found = browser.section(store, frames.results(store), ReportSpec(**settings), "store").data
    assert found is not None
    return dict(json.loads(script_json(found)))


def tokens(data: dict[str, Any], numbers: list[int]) -> list[str]:
    return [data["tables"]["token_texts"][number] for number in numbers]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("samples") / "store")


@pytest.fixture(scope="module")
def data(store: Store) -> dict[str, Any]:
    return data_of(store)


def test_every_row_is_listed_with_its_labels(data: dict[str, Any]) -> None:
    (towns,) = data["sets"]
    assert towns["rows"] == list(range(12))
    assert towns["prefix"] + towns["prompts"][4] == " w1 w2 town4 w4 w5 w6 w7:\n"
    assert towns["prefix"] == " w1 w2 "
    size, age = towns["runs"][0]["labels"]
    assert [size["classes"][value] for value in size["values"]] == [CLASSES[row % 2] for row in range(12)]
    assert age["values"] == [row / 2 for row in range(12)]


def test_rows_with_one_prompt_share_a_sample(data: dict[str, Any]) -> None:
    part = data["sets"][0]["runs"][0]
    assert [part["ids"][place] for place in part["samples"]] == [sample_id(row, Plan()) for row in range(12)]
    assert part["samples"][11] == part["samples"][0] == 0
    assert len(data["samples"]) == 11
    whole = data["sets"][0]["whole"]
    assert set(whole) == {str(row) for row in range(12)}
    assert data["tables"]["texts"][whole["0"]] == "the prompt of row 11"


def test_predictions_of_rows_are_those_of_the_best_layer(data: dict[str, Any], store: Store) -> None:
    scores = {(score["kind"], score["name"]): score for score in data["sets"][0]["runs"][0]["scores"]}
    said = scores["class", "size"]
    assert said["place"] == "layer 2, last@prompt"
    asked = "SELECT row, text, value FROM sample_scores WHERE metric = 'predicted' AND layer = 2 ORDER BY row"
    expected = store.sql(asked).to_pylist()
    assert [said["classes"][value] for value in said["values"]] == [row["text"] for row in expected]
    assert said["p"] == [round(10_000 * row["value"]) for row in expected]
    assert said["right"] == [int(row % 3 != 2) for row in range(12)]
    assert scores["number", "age"]["value"] == [pytest.approx(row * 0.6) for row in range(12)]


def test_extremes_come_first(data: dict[str, Any]) -> None:
    scores = {(score["kind"], score["name"]): score["order"] for score in data["sets"][0]["runs"][0]["scores"]}
    # Wrong ones by falling probability, then right ones by rising probability.
    assert scores["class", "size"] == [11, 8, 5, 2, 0, 1, 3, 4, 6, 7, 9, 10]
    assert scores["number", "age"] == list(range(11, -1, -1))
    assert scores["entropy", "entropy"][0] == 10
    assert scores["loss", "knockout-name"] == sorted(range(12), key=lambda row: (-row, row))


def test_losses_are_the_stores(data: dict[str, Any]) -> None:
    (loss,) = (score for score in data["sets"][0]["runs"][0]["scores"] if score["kind"] == "loss")
    assert loss["value"] == [-round(100 * 100 * 0.8 * row / 100) for row in range(12)]
    assert set(loss["flip"]) == {0}
    assert loss["place"] == "layer 2, last@prompt, right"


def test_tokens_spans_and_what_is_absent(data: dict[str, Any]) -> None:
    first, other = data["samples"]["0/0/0"], data["samples"]["0/0/3"]
    assert tokens(data, other["tokens"]) == ["<s>", " w1", " w2", " town3", " w4", " w5", " w6", " w7", ":\n"]
    texts = data["tables"]["texts"]
    assert [[texts[name], *ends] for name, *ends in other["spans"]] == [
        ["prompt", 1, 9],
        ["question", 2, 8],
        ["name", 3, 5],
    ]
    assert [[texts[part] for part in gone] for gone in first["absent"]] == [["hidden:resid:mean@hint", "empty span"]]
    assert "absent" not in other
    assert [data["tables"]["token_ids"][number] for number in other["tokens"]] == list(range(100, 109))


def test_lenses_are_the_stores(data: dict[str, Any], store: Store) -> None:
    own = data["samples"]["0/0/3"]
    asked = (
        "SELECT layer, position, entropy, top_tokens, top_logprobs FROM lens WHERE output = $output AND sample_id = $sample"
        " ORDER BY layer, position"
    )
    rows = store.sql(asked, {"output": LENS, "sample": sample_id(3, Plan())}).to_pylist()
    (lens,) = own["lens"]
    assert [tokens(data, top) for top in lens["top"]] == [row["top_tokens"] for row in rows]
    assert np.array(lens["p"]) == pytest.approx(1e4 * np.exp([row["top_logprobs"] for row in rows]), abs=0.51)
    assert lens["h"] == [round(100 * row["entropy"]) for row in rows]
    assert tokens(data, [lens["target"]]) == [" t5"]
    assert lens["target_rank"] == [0] * 5
    rows = store.sql(asked, {"output": GRID, "sample": sample_id(3, Plan())}).to_pylist()
    grid = own["grid"]
    assert grid["positions"] == [6, 7, 8]
    assert [tokens(data, line) for line in grid["top"]] == [
        [row["top_tokens"][0] for row in rows[n : n + 3]] for n in range(0, 15, 3)
    ]
    assert grid["h"] == [[round(100 * row["entropy"]) for row in rows[n : n + 3]] for n in range(0, 15, 3)]
    assert data["runs"][0]["grid"] == {"at": "token@prompt", "layers": [0, 1, 2, 3, 4]}


def test_texts_stand_beside_their_reference(data: dict[str, Any]) -> None:
    texts = data["tables"]["texts"]
    (own,) = data["samples"]["0/0/3"]["texts"]
    assert [texts[number] for number in own] == [" ", *(f"text 3 of layer {layer} of one" for layer in range(1, 5))]
    # Two rows of one sample have each their own reference.
    for row in (0, 11):
        assert [texts[number] for number in data["rows"][f"0/0/{row}"]["references"]] == [f"reference {row}"]


def test_curves_by_layer_are_the_stores(data: dict[str, Any]) -> None:
    (about,) = data["abouts"]["0/0"]["pathways"]
    assert about["conditions"] == ["clean", *CHANGES]
    for row in range(12):
        (curves,) = data["rows"][f"0/0/{row}"]["pathways"]
        for condition, own in zip(about["conditions"], curves, strict=True):
            assert own == [round(10_000 * p_correct(row, layer, condition)) for layer in range(5)]
    kinds = [(one["label"], one["kind"], one["place"]) for one in data["abouts"]["0/0"]["predictions"]]
    assert kinds == [("age", "number", "last@prompt"), ("size", "class", "last@prompt")]
    numbers, classes = data["rows"]["0/0/5"]["predictions"]
    assert numbers == [[3] * 5]
    assert [data["tables"]["texts"][name] for name in classes[0]] == [CLASSES[0]] * 5
    assert classes[2] == [0] * 5


def test_several_runs_and_data_sets(tmp_path: Path) -> None:
    data = data_of(build(tmp_path / "s", Plan(models=("one", "two"), data=("towns", "cities"))), samples=6)
    assert [run["name"] for run in data["runs"]] == ["one", "two"]
    assert [(own["name"], [part["run"] for part in own["runs"]]) for own in data["sets"]] == [
        ("cities", [0, 1]),
        ("towns", [0, 1]),
    ]
    assert [len({*own["whole"]} - {"0"}) for own in data["sets"]] == [3, 3]
    for part, model in ((0, 0), (1, 1)):
        (said,) = (score for score in data["sets"][1]["runs"][part]["scores"] if score["kind"] == "class")
        assert said["p"][0] == 5000 + 100 * model
    whole = next(place for place in data["sets"][0]["whole"] if place not in ("0", "11"))
    written = {data["samples"][f"0/{run}/{whole}"]["texts"][0][1] for run in (0, 1)}
    assert {data["tables"]["texts"][number] for number in written} == {
        f"text {whole} of layer 1 of {model}" for model in ("one", "two")
    }


def test_what_is_not_in_the_store_is_not_in_the_page(tmp_path: Path) -> None:
    bare = build(tmp_path / "s", Plan(tokens=False, lens=False, texts=False, columns=0))
    data = data_of(bare)
    assert data["runs"][0]["lenses"] == []
    assert data["runs"][0]["grid"] is None
    assert data["runs"][0]["texts"] == []
    own = data["samples"]["0/0/3"]
    assert set(own) == {"n", "prompt", "spans"}
    assert data["tables"]["texts"][own["prompt"]] == " w1 w2 town3 w4 w5 w6 w7:\n"
    plain = build(tmp_path / "t", Plan(scores=False))
    part = browser.section(plain, frames.results(plain), ReportSpec(), "store").data["sets"][0]["runs"][0]  # type: ignore[index]
    assert [score["kind"] for score in part["scores"]] == ["entropy"]


def test_hostile_texts_are_inert(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(n=4, word=HOSTILE))
    text = report.build(store, tmp_path / "r.html", ReportSpec()).read_text(encoding="utf-8")
    page = Page(text)
    element = next(one for one in page.named("script") if one.get("id") == "samples-data")
    assert element["type"] == "application/json"
    embedded = page.scripts[[one.get("id") for one in page.named("script")].index("samples-data")]
    assert not set("<>&\u2028\u2029") & set(embedded)
    strings = list(_strings(json.loads(embedded)))
    assert not {"\x1b", "\u2028", "\u202e"} & set("".join(strings))
    assert any("</script><img src=x onerror=alert(1)>⟨U+2028⟩⟨U+202E⟩⟨U+001B⟩" in one for one in strings)
    assert not [tag for tag, _ in page.tags if tag == "img"]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, str):
        yield value


def test_the_page_says_which_samples_it_shows(store: Store) -> None:
    def said(**settings: Any) -> str:
        parts = browser.section(store, frames.results(store), ReportSpec(**settings), "my-store").parts
        return " ".join(part for part in parts if isinstance(part, str))

    assert "All 12 rows are in the list; 4 of them, marked ●, have every panel." in said(samples=4)
    assert "About half of them were chosen because they stand out" in said(samples=4)
    assert "layercache report --store my-store --sample DATA:ROW" in said(samples=4)
    # Row 0 has row 11's prompt, which is one sample.
    assert "All 12 rows are in the list; 11 of them, marked ●, have every panel." in said(samples=50)


def test_the_page_opens_at_what_stands_out_most_and_says_why(store: Store, tmp_path: Path) -> None:
    def first(held: Store, **settings: Any) -> dict[str, Any]:
        data = browser.section(held, frames.results(held), ReportSpec(**settings), "my-store").data
        assert data is not None
        found: dict[str, Any] = data["first"]
        assert str(found["place"]) in data["sets"][0]["whole"]
        return found

    assert first(store, samples=4) == {
        "set": 0,
        "place": 11,
        "run": 0,
        "said": "The page opens here because this row comes first by “age: most wrong”.",
    }
    asked = first(store, samples=4, show=["towns:7"])
    assert (asked["place"], asked["said"]) == (7, "The page opens here because this row was asked for.")
    plain = build(tmp_path / "s", Plan(scores=False, lens=False))
    assert first(plain, samples=50)["place"] == 0
    assert first(plain, samples=50)["said"] == "The page opens here: this is the first row with every panel."


def test_a_reason_names_the_model_where_there_are_several(tmp_path: Path) -> None:
    held = build(tmp_path / "s", Plan(models=("one", "two")))
    data = browser.section(held, frames.results(held), ReportSpec(samples=6), "my-store").data
    assert data is not None
    whys = {data["tables"]["texts"][number] for number in data["sets"][0]["whole"].values()}
    assert {"age: most wrong (one)", "size: surest and wrong (one)"} <= whys


def test_half_of_the_choice_are_extremes_and_the_rest_is_the_same_every_time(
    data: dict[str, Any], store: Store
) -> None:
    sets = listing.read(store)
    scored = browser.scores.of_rows(store, frames.results(store), sets[0])
    chosen = choosing.choose(sets[0], scored, [], 8)
    assert len(chosen) == 8
    whys = [one.why for one in chosen]
    assert whys[4:] == [choosing.CHANCE] * 4
    assert choosing.CHANCE not in whys[:4]
    assert {one.place for one in chosen[:2]} <= {10, 11}
    assert chosen == choosing.choose(sets[0], scored, [], 8)
    assert {one.place for one in choosing.choose(sets[0], scored, [], 50)} == set(range(1, 12)), (
        "row 0 has row 11's prompt"
    )


def test_only_what_is_wrong_is_called_so(store: Store) -> None:
    sets = listing.read(store)
    scored = browser.scores.of_rows(store, frames.results(store), sets[0])
    (said,) = (score for score in scored if score.kind == "class")
    assert said.extremes == [11, 8, 5, 2]
    (lost,) = (score for score in scored if score.kind == "loss")
    assert lost.extremes == list(range(11, 0, -1)), "row 0 loses nothing"
    chosen = choosing.choose(sets[0], scored, [], 100)
    assert {one.place for one in chosen if one.why == said.extreme} <= {11, 8, 5, 2}
    assert said.take({2: 0, 3: 1, 8: 2}).extremes == [2, 0]


@pytest.mark.parametrize("wanted", ["towns:7", f"{7:024x}", f"{7:024x}"[:24]])
def test_a_sample_asked_for_is_shown_whole(wanted: str, store: Store) -> None:
    data = data_of(store, samples=1, show=[wanted])
    whole = {place: data["tables"]["texts"][why] for place, why in data["sets"][0]["whole"].items()}
    assert whole["7"] == "asked for"
    assert set(whole) == {"0", "11", "7"}
    assert "lens" in data["samples"]["0/0/7"]
    assert "lens" not in data["samples"]["0/0/6"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("twons:7", "did you mean 'towns'"),
        ("towns:99", "numbered 0 to 11"),
        ("feed", "give a row as towns:0, or the first digits of a sample's id"),
        ("x", "give a row as towns:0"),
    ],
)
def test_a_sample_that_is_not_there_is_named(wanted: str, said: str, store: Store) -> None:
    with pytest.raises(AnalysisError, match=f"no sample '{wanted}' to show: .*{said}"):
        data_of(store, show=[wanted])


def test_bytes_are_kept_to_whatever_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s", Plan(n=60, final_layer=12))
    everything = data_of(store)
    assert set(everything["sets"][0]["whole"]) >= {"0", "59"}, "two rows of one prompt"
    assert len(everything["sets"][0]["whole"]) == 41
    assert len(everything["rows"]) == 60
    for most in (60_000, 110_000):
        monkeypatch.setattr(browser, "MOST_BYTES", most)
        data = data_of(store)
        assert len(data["sets"][0]["rows"]) == 60, "all are listed"
        held = {name: data[name] for name in ("sets", "samples", "rows", "abouts", "tables")}
        assert len(script_json(held).encode()) < most + 1000
        assert 0 < len(data["samples"]) <= len(everything["samples"])
        assert len(data["sets"][0]["whole"]) < 40
        for name in data["sets"][0]["whole"]:
            sample = data["sets"][0]["runs"][0]["samples"][int(name)]
            assert "lens" in data["samples"][f"0/0/{sample}"], "what is marked whole is whole"


def test_lists_are_cut_where_there_are_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "LISTED", 20)
    store = build(tmp_path / "s", Plan(n=60, models=("one", "two")))
    data = data_of(store, samples=4)
    (own,) = data["sets"]
    assert (len(own["rows"]), own["of"]) == (20, 60)
    assert own["rows"] == sorted(own["rows"])
    part = own["runs"][0]
    (said,) = (score for score in part["scores"] if score["kind"] == "class")
    for place, row in enumerate(own["rows"]):
        assert part["ids"][part["samples"][place]] == sample_id(row, Plan(n=60))
        assert said["right"][place] == (row % 3 != 2)
        assert part["labels"][1]["values"][place] == row / 2
        (curves,) = data["rows"][f"0/0/{place}"]["pathways"]
        assert curves[0] == [round(10_000 * p_correct(row, layer, "clean")) for layer in range(5)]
    assert sorted(said["order"]) == list(range(20))
    assert said["order"][0] == own["rows"].index(59), "the extremes are among them"
    monkeypatch.setattr(listed, "LIST_BYTES", 4000)
    section = browser.section(store, frames.results(store), ReportSpec(samples=4), "store")
    assert "1 model found no room in the list" in str(section.parts[1])
    assert section.data is not None
    assert [part["run"] for part in section.data["sets"][0]["runs"]] == [0]


def test_prompts_are_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listing.longest(["a" * 10, "b" * 90], 1000) == 90
    cut = listing.longest(["a" * 10, "b" * 90], 50)
    assert encode.size("a" * 10) + encode.size(encode.cut("b" * 90, cut)) <= 50
    assert encode.size("a" * 10) + encode.size(encode.cut("b" * 90, cut + 1)) > 50


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [([5, 50], 20, [5, 15]), ([50, 50, 50], 20, [7, 7, 6]), ([1, 2], 20, [1, 2]), ([], 5, []), ([4, 4], 0, [0, 0])],
)
def test_shares(sizes: list[int], total: int, expected: list[int]) -> None:
    assert sorted(choosing.shares(sizes, total), reverse=True) == sorted(expected, reverse=True)
    assert all(share <= size for share, size in zip(choosing.shares(sizes, total), sizes, strict=True))


@pytest.mark.parametrize(
    ("prompt", "pieces", "expected"),
    [
        ("The cat sat", ["<s>", "The", " cat", " sat"], ["<s>", "The", " cat", " sat"]),
        ("The cat sat", ["<s>", "The", "cat", "sat"], ["<s>", "The", " cat", " sat"]),
        ("Unhappy cats", ["[CLS]", "un", "##happy", "cats", "[SEP]"], ["[CLS]", "un", "happy", " cats", "[SEP]"]),
        ("a é b", ["a", " \ufffd", "\ufffd", " b"], ["a", " \ufffd", "\ufffd", " b"]),
        ("x\n\ny", ["x", "\n\n", "y", None], ["x", "\n\n", "y", ""]),
    ],
)
def test_white_space_that_decoding_lost_comes_back(prompt: str, pieces: list[str | None], expected: list[str]) -> None:
    assert inside.spaced(prompt, pieces) == expected


def test_numbers_are_written_short() -> None:
    assert encode.probabilities(np.array([0.12345, 1.0, np.nan])) == [1234, 10_000, None]
    assert encode.significant([1.0, 0.123456, None, float("inf"), -123456.0]) == [1, 0.1235, None, None, -123500]
    assert encode.hundredths(np.array([[1.005, np.nan]])) == [[100, None]]


def test_undone_texts_leave_no_trace() -> None:
    tables = encode.Tables()
    kept = tables.text("kept"), tables.token(" a", 1)
    before = tables.json(), tables.bytes
    mark = tables.mark()
    tables.text("gone")
    tables.token(" b", 2)
    tables.undo(mark)
    assert (tables.json(), tables.bytes) == before
    assert (tables.text("kept"), tables.token(" a", 1)) == kept
    assert tables.text("new") == 1


def test_long_prompts_show_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "MOST_TOKENS", 4)
    data = data_of(build(tmp_path / "s", Plan(n=3)))
    own = data["samples"]["0/0/1"]
    assert own["first"] == 5
    assert tokens(data, own["tokens"]) == [" w5", " w6", " w7", ":\n"]


def test_rows_fill_in_turn(store: Store) -> None:
    data = listing.read(store)[0]
    shown = listed.Shown(data, [], [choosing.Choice(4, "why")], 12)
    order = list(filling._order([shown, shown]))
    assert order[:2] == [(0, 4, True), (1, 4, True)]
    assert {(number, place) for number, place, _ in order} == {
        (number, place) for number in (0, 1) for place in range(12)
    }
    assert [complete for *_, complete in order[2:]] == [False] * 22


@pytest.mark.torture
def test_a_thousand_samples_of_32_layers_make_a_page_below_five_megabytes(tmp_path: Path) -> None:
    plan = Plan(n=1000, final_layer=32, n_tokens=80, columns=16)
    out = report.build(build(tmp_path / "s", plan), tmp_path / "r.html", ReportSpec())
    assert out.stat().st_size < 5_000_000
    page = Page(out.read_text(encoding="utf-8"))
    data = json.loads(page.scripts[[one.get("id") for one in page.named("script")].index("samples-data")])
    assert len(data["sets"][0]["rows"]) == 1000
    assert len(data["sets"][0]["whole"]) >= 20
