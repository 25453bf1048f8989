"""The page, plots and chart files: self-contained, inert whatever the texts say, true to the store."""

import base64
import csv
import hashlib
import html
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report_store import DEEP, Plan, build

from layercache import report
from layercache.cli.report import plot
from layercache.errors import AnalysisError, LayercacheError
from layercache.frame import from_arrow
from layercache.recipe import ReportSpec
from layercache.report import contents, frames, references, texts
from layercache.store import reader, recipes
from layercache.store.reader import Store
from layercache.store.writer import put_rows

NAME = "a\"b].[c\\d.e'<script>alert(2)</script>"
PROMPT = "</script><img src=x onerror=alert(1)> \"q\" 'q' & \u2028\u2029 \x1b[31mred\x1b[0m \u202egnirts {{x}} ${y}"
HOSTILE = Plan(
    models=(NAME, "m[0].x"),
    data='da"ta].[x\\.y<b>\x1b[31m',
    category="la\"bel].[x\\.y'<img src=x onerror=alert(3)>\u2028",
    number="nu.mber[0]",
    prompts=[f"{PROMPT}{number}" for number in range(24)],
    tokens=("</script><script>alert(4)</script>", "\u2028\x1b[31m", "  \n\t"),
    module="</style><style>*{display:none}</style><b onclick=alert(6)>x",
    answer="</td></table><script>alert(5)</script>\u202e",
)


class Page(HTMLParser):
    """What an HTML file is made of."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.open, f"</{tag}> closes nothing"
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] == "style":
            self.styles[-1] += data
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def held(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))

    @property
    def specs(self) -> list[dict[str, Any]]:
        return list(self.held["specs"])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a frame that the page holds."""
        columns = {key: _values(column) for key, column in self.held["data"][name]["columns"].items()}
        return [{key: values[at] for key, values in columns.items()} for at in range(int(self.held["data"][name]["n"]))]

    def drawn(self, spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Return the frames that a chart is drawn from."""
        names = dict.fromkeys(re.findall(r'"data": {"name": "(\w+)"}', json.dumps(spec)))
        return [self.rows(name) for name in names]


def _values(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    if "of" in column:
        return [column["of"][place] for place in column["at"]]
    runs = column["runs"]
    return [value for at in range(0, len(runs), 2) for value in [runs[at]] * runs[at + 1]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("report") / "store")


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("hostile") / "store", HOSTILE)


@pytest.fixture(scope="module")
def built(store: Store) -> Page:
    out = report.build(store, store.path.parent / "report.html", ReportSpec(), "A <study> & more")
    assert out.stat().st_size < 5_000_000
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(hostile_store: Store) -> Page:
    out = report.build(hostile_store, hostile_store.path.parent / "report.html", ReportSpec(title=PROMPT))
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(params=["built", "hostile"])
def page(request: pytest.FixtureRequest) -> Page:
    found: Page = request.getfixturevalue(request.param)
    return found


def test_nothing_is_fetched(page: Page) -> None:
    loads = {"src", "srcset", "action", "formaction", "data", "poster", "background", "ping", "manifest"}
    for tag, attributes in page.tags:
        assert not loads & set(attributes), (tag, attributes)
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form", "audio", "video", "svg"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert all((one["href"] or "").startswith("#") for one in page.named("a"))
    assert not re.search(r"url\(|@import", "".join(page.styles))
    urls = re.findall(r'"(?:url|href)":"[^"]*"', page.scripts[0])
    assert urls == []


def test_the_policy_names_exactly_the_two_scripts(page: Page) -> None:
    (policy,) = (one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    kinds = [one.get("type") for one in page.named("script")]
    assert kinds == ["application/json", "application/json", None, None]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [digest(script) for script in page.scripts[2:]]
    assert rules["style-src-elem"].split() == [digest(style) for style in page.styles]
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe-eval" not in (policy or "")
    assert policy == page.named("meta")[1]["content"], "the policy stands before everything that it is to govern"


def test_every_chart_has_its_place_and_every_heading_its_link(page: Page) -> None:
    places = [int(one["data-chart"] or "-1") for one in page.named("div") if "data-chart" in one]
    assert places == list(range(len(page.specs)))
    anchors = {one["id"] for one in page.named("section")}
    assert {f"#{anchor}" for anchor in anchors} | {"#main"} == {one["href"] for one in page.named("a")}
    frames_shown = {name for one in page.named("details") for name in (one.get("data-frames") or "").split()}
    assert frames_shown <= set(page.held["data"])
    assert len(frames_shown) > 40
    assert anchors == {"overview", "probes", "lens", "text", "pathways", "quality", "answers", "adaptation"} | {
        *("samples", "ask", "reproduce")
    }


def test_titles_are_text(built: Page, hostile: Page) -> None:
    assert "A <study> & more" in built.text
    assert "</script><img src=x onerror=alert(1)>" in hostile.text
    assert not {"\x1b", "\u202e", "\u2028"} & set(hostile.text)
    assert "⟨U+001B⟩[31mred" in hostile.text


def test_hostile_names_are_shown_whole(hostile: Page) -> None:
    assert NAME in hostile.text
    assert "nu.mber[0] is best read at layer 4" in hostile.text
    assert not set("<>&\u2028\u2029") & set(hostile.scripts[0])
    assert not set("\x1b\u2028\u2029\u202e") & set("".join(_strings(hostile.held)))
    tokens = set(json.loads(hostile.scripts[1])["tables"]["token_texts"])
    assert tokens == {"</script><script>alert(4)</script>", "⟨U+2028⟩⟨U+001B⟩[31m", "  \n\t", "\n", " is", "<s>"}


def test_text_findings_say_what_the_numbers_say(built: Page) -> None:
    assert "demo writes best at layer 6: token F1 .60 [.57, .63]." in built.text
    assert "Quantisation changes token F1 of demo by −.10 [−.13, −.07] at layer 6." in built.text
    assert (
        "A right answer of demo has lower entropy than a wrong one with probability .80 [.77, .83] at layer 6"
        in built.text
    )


def test_a_store_without_scored_text_has_no_such_part(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",), text=False))
    page = Page(report.build(store, tmp_path / "r.html", ReportSpec()).read_text())
    assert "text" not in {one["id"] for one in page.named("section")}
    with pytest.raises(AnalysisError, match="run `layercache analyze text`"):
        report.plot(store, "text", tmp_path / "p.svg")


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, str):
        yield value


def test_fields_are_never_named_by_users(hostile: Page) -> None:
    known = {"model", "layer", "layer_name", "value", "low", "high", "n", "baseline", "band", "share", "key", "token"}
    known |= {"top_token", "short", "entropy"}
    known |= {"rank", "probability", "role", "row", "truth", "predicted", "data", "group"}
    known |= {"depth", "other_layer", "line", "strength", "r", "alpha", "text", "panel", "metric", "kind", "condition"}
    assert {name for one in hostile.held["data"].values() for name in one["columns"]} <= known
    for spec in hostile.specs:
        fields = set(re.findall(r'"field": "([^"]*)"', json.dumps(spec)))
        assert fields <= known | {"from", "to"}


def test_numbers_in_charts_are_the_stores(built: Page, store: Store) -> None:
    query = (
        "SELECT model, layer, value, low, high FROM results JOIN runs USING (run) WHERE metric = $metric"
        " AND label = 'certificate' AND layer IS NOT NULL AND \"group\" IS NULL AND pooling = 'last@prompt'"
    )
    expected = {tuple(row.values()) for row in store.sql(query, {"metric": "balanced_accuracy"}).to_pylist()}
    (figure,) = (spec for spec in built.specs if spec["description"].startswith("Balanced accuracy of certificate"))
    drawn = [
        {(row["model"], row["layer"], row["value"], row["low"], row["high"]) for row in rows}
        for rows in built.drawn(figure)
        if "layer_name" in rows[0]
    ]
    rounded = {tuple(_rounded(one) for one in row) for row in expected}
    assert rounded in drawn
    assert len(expected) == 16


def _rounded(value: Any) -> Any:
    """Five significant digits, as the page keeps them."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def test_numbers_in_tables_are_the_stores(built: Page, store: Store) -> None:
    expected = from_arrow(store.sql("SELECT value FROM results WHERE metric = 'balanced_accuracy'"))["value"]
    names = {name for one in built.named("details") for name in (one.get("data-frames") or "").split()}
    shown = {row.get("value") for name in names for row in built.rows(name)}
    assert {_rounded(value) for value in expected} <= shown


def test_a_frame_is_held_once(built: Page) -> None:
    frames_held = [json.dumps(one) for name, one in built.held["data"].items() if name.startswith("d")]
    assert len(set(frames_held)) == len(frames_held) > 50
    assert all("datasets" not in spec and "config" not in spec for spec in built.specs)


def test_findings_and_commands_are_there(built: Page) -> None:
    assert "certificate is best read at layer 4 of demo (last@prompt): balanced accuracy .80 [.77, .83]" in built.text
    assert "layercache sql --query entropy_by_layer --store store" in built.text
    assert "layercache report --store store -o report.html" in built.text
    assert "layercache run films.toml --store store" in built.text
    assert re.search(
        r"runs\s*2\s*models\s*2\s*data sets\s*1\s*samples\s*48\s*forward passes\s*48\s*tokens read\s*240", built.text
    )
    assert "2026-01-02 03:04" in built.text
    for private in ("secret-host", "/home/someone"):
        assert private not in built.text


def test_no_samples_when_none_are_asked_for(store: Store, tmp_path: Path) -> None:
    page = Page(report.build(store, tmp_path / "r.html", ReportSpec(samples=0)).read_text())
    assert "samples" not in {one["id"] for one in page.named("section")}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(models=("bert",), lens=False, grid=False), "No logit lens is stored: the model has no next-token head"),
        (Plan(models=("demo",), probes=False), "What each layer knows of the labelslayercache analyze probe --store s"),
        (
            Plan(models=("demo",), entropy=False),
            "How predictions form, read by the logit lenslayercache analyze entropy --store s",
        ),
        (
            Plan(models=("demo",), intervals=False, layers=[3], final_layer=3),
            "certificate is best read at layer 3 of demo",
        ),
        (Plan(models=("demo",), prompts=["one sample"]), "samples1forward passes1tokens read5"),
    ],
    ids=["no lens", "no probes", "no entropy", "one layer, no intervals", "one sample"],
)
def test_what_is_missing_is_said(plan: Plan, said: str, tmp_path: Path) -> None:
    page = Page(report.build(build(tmp_path / "s", plan), tmp_path / "r.html", ReportSpec()).read_text())
    assert said in page.text
    # What has nothing to show is no section.
    anchors = [one["id"] for one in page.named("section")]
    assert ("probes" in anchors, "lens" in anchors) == (plan.probes, plan.lens and plan.entropy)
    assert anchors[-1] == "reproduce"
    assert ("Not analysed yet" in page.text) is not (plan.probes and (plan.entropy or not plan.lens))


def test_what_a_recipe_asks_for_comes_first(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",), grid=False, quality=False, adapted=False))
    numbers = frames.results(store)
    found = [part for made in contents.makers(store, numbers) for part in made()]
    assert [part.anchor for part in contents.ordered(store, found)] == ["probes", "lens", "text", "pathways"]
    recipes.save(store.path, {"name": "films", "analyze": [{"kind": "delta_p"}, {"kind": "text"}]})
    asked = [part.anchor for part in contents.ordered(store, found)]
    assert asked == ["pathways", "text", "probes", "lens"]
    page = Page(report.build(store, tmp_path / "r.html", ReportSpec(samples=0)).read_text())
    assert [one["id"] for one in page.named("section")] == ["overview", *asked, "ask", "reproduce"]


def test_charts_are_picked_by_words_of_their_titles(store: Store, tmp_path: Path) -> None:
    def titles(name: str, only: str) -> list[tuple[str, list[str]]]:
        spec = json.loads(report.plot(store, name, tmp_path / "p.json", only).read_text())
        figures = spec["concat"] if "spacing" in spec else [spec]
        return [(one["title"]["text"], [panel["title"] for panel in one["concat"]]) for one in figures]

    poolings = ["last@prompt", "mean@prompt"]
    certificate, rating = "Balanced accuracy of certificate (films)", "R² of rating (films)"
    assert titles("probe", "") == [(certificate, poolings), (rating, poolings)]
    assert titles("probe", "RATING") == [(rating, poolings)]
    assert titles("probe", "rating mean@") == [(rating, ["mean@prompt"])]
    assert [title for title, _ in titles("probe", "accuracy")] == ["Accuracy of certificate (films)"]
    assert titles("probe", "error mean@") == [("Mean squared error of rating (films)", ["mean@prompt"])]
    assert titles("probe", "mean squared") == [("Mean squared error of rating (films)", poolings)]
    assert [title for title, _ in titles("text", "bleu")] == ["BLEU (films)"]
    assert [title for title, _ in titles("text", "empty")] == ["Empty outputs (films)"]
    with pytest.raises(
        AnalysisError, match=r"no chart of 'text' has 'nothing' in its title: there are Token F1 \(films\), "
    ):
        report.plot(store, "text", tmp_path / "p.svg", "nothing")


def test_what_an_extraction_has_to_take_for_a_plot_is_said(tmp_path: Path) -> None:
    """The analysis that the lens at every token also needs is there, and running it again brings nothing."""
    plan = Plan(models=("demo",), grid=False, quality=False, adapted=False, pathways=False, text=False)
    store = build(tmp_path / "s", plan)
    with pytest.raises(
        AnalysisError, match=r"it needs the lens at every token \(`layercache extract … --lens token`\)"
    ):
        report.plot(store, "lens", tmp_path / "p.svg")
    with pytest.raises(AnalysisError, match=r"nothing to plot as 'text' in .*: run `layercache analyze text`$"):
        report.plot(store, "text", tmp_path / "p.svg")


def test_the_title_is_the_newest_recipes_where_none_is_given(tmp_path: Path) -> None:
    plan = Plan(models=("demo",), grid=False, quality=False, adapted=False, pathways=False, text=False)
    store = build(tmp_path / "s", plan)

    def heading(spec: ReportSpec, title: str | None = None) -> str:
        page = report.build(store, tmp_path / "r.html", spec, title).read_text()
        return str(ET.fromstring(re.search(r"<h1.*?</h1>", page, re.DOTALL)[0]).text)  # type: ignore[index]

    few = ReportSpec(samples=0)
    kept = recipes.save(store.path, {"name": "films", "title": "Films, layer by layer"})
    assert heading(few) == "Films, layer by layer"
    assert heading(few, "Mine") == "Mine"
    assert heading(ReportSpec(samples=0, title="Its own")) == "Its own"
    later = recipes.save(store.path, {"name": "a later <one>", "title": None})
    os.utime(kept, ns=(0, 0))
    assert heading(few) == "a later <one>"
    os.utime(later, ns=(0, 0))
    os.utime(kept)
    assert heading(few) == "Films, layer by layer"
    recipes.save(store.path, {"name": "films", "title": None, "report": {"title": "Of its page"}})
    assert heading(few) == "Of its page"
    for path in later.parent.iterdir():
        path.unlink()
    assert heading(few) == "layercache report"


def test_several_charts_are_rows_of_a_sheet_and_figures_of_a_page(store: Store, tmp_path: Path) -> None:
    spec = json.loads(report.plot(store, "text", tmp_path / "p.json").read_text())
    assert (len(spec["concat"]), spec["columns"]) == (4, 2)
    assert len(Page(report.plot(store, "text", tmp_path / "p.html").read_text()).specs) == 4


def test_bleu_of_short_references_is_said_to_mean_little(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",), grid=False, quality=False, adapted=False, pathways=False))
    said = "100 % of the references have fewer than 4 words"
    for only in ("bleu", "token f1"):
        svg = report.plot(store, "text", tmp_path / "p.svg", only).read_text()
        assert (said in " ".join(ET.fromstring(svg).itertext())) is (only == "bleu")
    (run,) = store.runs()
    for words, share in (("one two three four", 0.0), ("one two", 1.0)):
        frame = store.rows(run, "films").with_columns(certificate=pl.lit(words))
        put_rows(run, frame, data="films", source="films.csv", labels=[], reference=["certificate"])
        changed = reader.open(store.path)
        (task,) = texts.tasks(frames.results(changed))
        assert references.short_share(changed, task) == share
        assert bool(references.caution(changed, task, "bleu")) is (share == 1)
        assert not references.caution(changed, task, "rouge_l")


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(AnalysisError, match="is empty: run `layercache extract`"):
        report.build(reader.open(tmp_path / "s"), tmp_path / "r.html", ReportSpec())
    bare = build(
        tmp_path / "t", Plan(probes=False, entropy=False, text=False, pathways=False, quality=False, adapted=False)
    )
    for call in (
        lambda: report.build(bare, tmp_path / "r.html", ReportSpec()),
        lambda: report.plot(bare, "probe", tmp_path / "r.svg"),
        lambda: report.write_charts(bare, tmp_path / "charts"),
    ):
        with pytest.raises(AnalysisError, match="has been analysed: run `layercache analyze"):
            call()
    assert not list(tmp_path.glob("r.*"))


def test_the_file_appears_whole_or_not_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.html"
    out.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LayercacheError, match="No space left on device"):
        report.build(store, out, ReportSpec(samples=0))
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert out.read_text() == "old"


def test_a_missing_folder_is_named(store: Store, tmp_path: Path) -> None:
    for call in (
        lambda: report.build(store, tmp_path / "no" / "r.html", ReportSpec()),
        lambda: report.plot(store, "probe", tmp_path / "no" / "r.svg"),
        lambda: report.write_charts(store, tmp_path / "no" / "charts"),
    ):
        with pytest.raises(LayercacheError, match="there is no folder"):
            call()


@pytest.mark.parametrize("name", [name for name in report.PLOTS if name not in DEEP])
def test_every_plot_can_be_drawn(name: str, hostile_store: Store, tmp_path: Path) -> None:
    svg = report.plot(hostile_store, name, tmp_path / f"{name}.svg").read_text()
    # A name that is longer than its place is broken into lines.
    assert NAME in "".join(ET.fromstring(svg).itertext())


def test_a_plot_takes_its_format_from_the_suffix(store: Store, tmp_path: Path) -> None:
    assert report.plot(store, "probe", tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    spec = json.loads(report.plot(store, "entropy", tmp_path / "p.json").read_text())
    assert "vega-lite" in spec["$schema"]
    page = Page(report.plot(store, "depth", tmp_path / "p.HTML").read_text())
    assert len(page.specs) == 1
    assert report.plot(store, "probe", tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(LayercacheError, match=r"end it in \.svg, \.png, \.pdf, \.html, \.json"):
        report.plot(store, "probe", tmp_path / "p.gif")


def test_a_misspelt_plot_is_guessed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="did you mean 'entropy'"):
        report.plot(store, "entrophy", tmp_path / "p.svg")
    with pytest.raises(AnalysisError, match="there are probe, predictions"):
        report.plot(store, "qqq", tmp_path / "p.svg")


def test_a_plot_without_numbers_names_the_analysis(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("bert",), lens=False, grid=False))
    for name in ("entropy", "depth", "tokens"):
        with pytest.raises(AnalysisError, match="run `layercache analyze entropy`"):
            report.plot(store, name, tmp_path / "p.svg")


def test_charts_and_numbers_are_written_to_files(store: Store, tmp_path: Path) -> None:
    written = report.write_charts(store, tmp_path / "charts")
    assert [path.name for path in written] == [
        *(f"{name}.svg" for name in report.PLOTS if name not in DEEP),
        "results.csv",
    ]
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == sorted(path.name for path in written)
    with written[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = frames.stored(frames.results(store))
    assert list(rows[0]) == expected.columns
    assert [row["value"] and float(row["value"]) for row in rows] == expected["value"].to_list()
    assert report.write_charts(store, tmp_path / "charts") == written, "files that are there are replaced"


def test_large_tables_are_cut_and_say_so() -> None:
    from layercache.report import page as pages

    frame = pl.DataFrame({"number": range(pages.MAX_TABLE_ROWS + 5), "text": ["<b>"] * (pages.MAX_TABLE_ROWS + 5)})
    table = pages.table(frame)
    assert table.count("<tr>") == pages.MAX_TABLE_ROWS + 1
    assert "5 more rows" in html.unescape(table)
    assert "<b>" not in table


def test_the_command_names_every_plot() -> None:
    named = " ".join((plot.help or "").split())
    assert [name for name in report.PLOTS if not re.search(rf"\b{name}\b", named)] == []
