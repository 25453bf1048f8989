"""ΔP in the report: the charts hold the store's numbers, the words say what they support, the page has its part."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import vl_convert
from report_store import CHANGED, GROUPS, LAYERS, Plan, build, lost, pathway_rows

from layercache import report
from layercache.analyze.summary import summarise
from layercache.recipe import ReportSpec
from layercache.report import embed, frames, pathways
from layercache.store import results
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, arrow_schema

MODELS = ("demo", "demo:early")
BARE = Plan(models=MODELS, lens=False, probes=False, entropy=False, text=False, pathways=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = build(tmp_path_factory.mktemp("pathways") / "store", BARE)
    names = frames.model_names(store)
    every = [
        row
        for run in store.runs()
        for data in ("films", "<b>other</b>")
        for row in pathway_rows(run.id, MODELS.index(names[run.id]), data)
    ]
    table = pa.Table.from_pylist(every, schema=arrow_schema(RESULTS))
    results.save(store.path, "delta_p", {"kind": "delta_p"}, ["test"], results.Outcome(table))
    return store


@pytest.fixture
def task(store: Store) -> pathways.PathwayTask:
    (found,) = pathways.tasks(frames.results(store))
    return found


def datasets(chart: Any) -> pl.DataFrame:
    held = embed.alone(chart)["datasets"].values()
    return pl.concat([pl.DataFrame(one, infer_schema_length=None) for one in held], how="diagonal_relaxed")


def drawn(chart: Any) -> list[str]:
    svg = vl_convert.vegalite_to_svg(embed.alone(chart))
    return [one.text or "" for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_difference_is_drawn_for_every_model(task: pathways.PathwayTask) -> None:
    chart = pathways.differences(task, "delta_p_minus_control", "films")
    held = datasets(chart).filter(pl.col("model").is_in(MODELS), pl.col("layer").is_not_null()).drop_nulls("value")
    assert {(row["layer"], row["value"]) for row in held.to_dicts()} == {(layer, -3.0 * layer) for layer in LAYERS}
    texts = drawn(chart)
    assert {"demo", "demo:early", "no difference", CHANGED[1]} <= set(texts)
    assert pathways.differences(task, "delta_p_minus_control", "no such data") is None


def test_the_studys_figure_has_a_line_a_data_set_and_group_and_its_floor(task: pathways.PathwayTask) -> None:
    assert task.conditions() == [CHANGED[1], "answer-only"]
    chart = pathways.split(task, CHANGED[1])
    held = datasets(chart)
    assert set(held["group"]) == set(pathways._GROUPS.values())
    assert set(held["data"]) == {"films", "<b>other</b>"}
    expected = {lost(layer, model, group) for layer in LAYERS for model in (0, 1) for group in GROUPS}
    assert set(held["value"]) == expected
    assert {"demo", "demo:early", "question-anchored (flipped)", "<b>other</b>"} <= set(drawn(chart))
    spec = str(embed.alone(chart))
    assert spec.count("'strokeDash': [4, 4]") == 2
    assert pathways.split(task, "patch-x") is None


def test_what_is_said_is_what_the_numbers_support(task: pathways.PathwayTask) -> None:
    said = pathways.finding(task)
    assert len(said) == 4
    for line in said:
        assert (
            "knockout-sub|ject flips 30.0 % of the predictions at layer 6, 24.00 [14.00, 34.00] percentage points beyond"
            in line
        )
        assert "the interval excludes 0 (of 7 layers 4 lie above 0, 0 below)" in line


def test_the_page_and_the_plots(store: Store, tmp_path: Path) -> None:
    text = report.build(store, tmp_path / "page.html", ReportSpec(samples=0)).read_text()
    # One wording, right in sign, here and under the samples.
    said = "ΔP is what the probability of its clean prediction gains under the change, in percentage points: below 0 where it loses."
    assert said in text
    assert said in (Path(report.__file__).parent / "browser" / "layers.js").read_text("utf-8")
    assert "Does truthfulness hang on the question?" in text
    assert "The split is on the outcome" in text
    assert "<b>other</b>" not in text
    assert "detecting wrong answers" in text
    for name in ("delta_p", "pathways"):
        assert report.plot(store, name, tmp_path / f"{name}.svg").stat().st_size > 5000
    csv = pl.read_csv(next(path for path in report.write_charts(store, tmp_path / "charts") if path.suffix == ".csv"))
    assert {CHANGED[1], "clean"} <= set(csv["condition"])


def test_a_store_without_has_no_such_part(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",), text=False, pathways=False))
    assert "hang on the question" not in report.build(store, tmp_path / "page.html", ReportSpec()).read_text()


def test_a_single_layer_and_no_intervals(tmp_path: Path) -> None:
    store = build(tmp_path / "s", BARE)
    one = [
        {**row, "low": None, "high": None} for row in pathway_rows(store.runs()[0].id, 0, "films") if row["layer"] == 3
    ]
    table = pa.Table.from_pylist(one, schema=arrow_schema(RESULTS))
    results.save(store.path, "delta_p", {"kind": "delta_p"}, ["test"], results.Outcome(table))
    (task,) = pathways.tasks(frames.results(store))
    assert "films: 50 flipped, 50 not" in drawn(pathways.split(task, CHANGED[1]))
    few = pl.when(pl.col("group") == pathways.QUESTION).then(12).otherwise(pl.col("n"))
    small = task._replace(numbers=task.numbers.with_columns(n=few))
    assert "films: 12 (few) flipped, 50 not" in drawn(pathways.split(small, CHANGED[1]))
    assert pathways.finding(task)[0].endswith("at layer 3, 12.00 percentage points beyond its control.")
    turned = task._replace(numbers=task.numbers.with_columns(value=-pl.col("value")))
    assert pathways.finding(turned)[0].endswith("at layer 3, 12.00 percentage points fewer than its control.")


def test_the_terminal_shows_the_difference_and_the_floor(store: Store) -> None:
    run = store.runs()[0]
    table = pa.Table.from_pylist(pathway_rows(run.id, 0, "films"), schema=arrow_schema(RESULTS))
    text = summarise(table)
    assert "films, demo, correct at last@exact_answer: knockout-sub|ject [95 % interval]" in text
    header = text.splitlines()[1]
    assert header.split("  ")[0] == "layer"
    for title in ("clean AUC", "ΔP - control", "flips - control", "ΔP, flipped", "noise, not flipped"):
        assert title in header
    assert "-18.000 [-18.100, -17.900]" in text
    assert "0.810 [0.750, 0.900]" in text
