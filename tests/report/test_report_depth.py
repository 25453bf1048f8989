"""Figures and sections of what lies behind probes, of training steps and of models side by side."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import vl_convert
from report_store import DEEP, POOLINGS, Plan, build

from layercache import report
from layercache.errors import AnalysisError
from layercache.recipe import ReportSpec
from layercache.report import depth_sections, embed, frames, in_depth, marks
from layercache.store import results
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, arrow_schema

HOSTILE = 'la"bel].[x\\y<img src=x onerror=alert(3)>'
LAYERS = range(8)


def store_of(path: Path, label: str = "certificate", net: str = "net") -> Store:
    store = build(path, Plan(models=(f"{net}-step10", f"{net}-step200", "other"), text=False, category=label))
    rows: list[dict[str, Any]] = []
    runs = store.runs()
    for run in runs:
        key = {"run": run.id, "data": "films", "analysis": "probe_depth", "condition": "clean", "n": 24}
        key |= {"site": "resid", "pooling": POOLINGS[0], "label": label, "metric": "balanced_accuracy"}
        for layer in LAYERS:
            rows += [{**key, "layer": layer, "value": 0.5 + 0.05 * layer}]
            rows += [{**key, "layer": layer, "metric": "selectivity", "group": "shuffled", "value": 0.04 * layer}]
            rows += [{**key, "layer": layer, "metric": "v_information", "value": 0.1 * layer, "low": 0.0, "high": 0.9}]
            at = {**key, "group": "transfer", "layer": layer}
            rows += [{**at, "other_layer": other, "value": 1 - 0.1 * abs(other - layer)} for other in LAYERS]
            others = [other for other in runs if other.id != run.id]
            rows += [{**at, "other_layer": layer, "other_run": other.id, "value": 0.4} for other in others]
        rows += [{**key, "metric": "peak_layer", "value": 6.0, "low": 5.0, "high": 7.0}]
        rows += [{**key, "metric": "converging_layer", "value": 4.0, "low": 3.0, "high": 5.0}]
        compared = {**key, "analysis": "compare", "group": "balanced_accuracy"}
        best = (("best_layer", 6.0), ("best_depth", 1.0), ("best_score", 0.8))
        rows += [{**compared, "metric": metric, "value": value} for metric, value in best]
        rows += [{**compared, "metric": "picked_share", "group": "curvature min", "value": 0.93}]
    for kind in ("probe_depth", "compare"):
        table = pa.Table.from_pylist([row for row in rows if row["analysis"] == kind], schema=arrow_schema(RESULTS))
        assert results.save(path, kind, {"kind": kind}, ["test"], results.Outcome(table)) is not None
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("depth") / "store")


def svg(chart: Any, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    drawn = str(vl_convert.vegalite_to_svg(embed.alone(chart)))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    return drawn


def test_labels_that_no_layer_knows_are_said_to_have_no_peak(store: Store) -> None:
    numbers = frames.results(store)
    one = numbers.filter(metric="peak_layer").head(1)
    chance = one.with_columns(metric=pl.lit("layers_above_shuffled"), value=pl.lit(0.0))
    said = (
        f"No peak or converging layer, since no layer is above shuffled labels: {one['model'][0]} ({one['panel'][0]})."
    )
    parts = depth_sections.deep_section(store, pl.concat([numbers, chance])).parts
    assert any(said in str(part) for part in parts)
    assert not any("No peak" in str(part) for part in depth_sections.deep_section(store, numbers).parts)


def test_every_pair_of_layers_is_a_field(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    (chart,) = in_depth.layer_transfer(frames.results(store))
    drawn = svg(chart, capfd)
    assert drawn.count('aria-roledescription="rect mark"') == 3 * len(LAYERS) ** 2
    assert "layer of the probe" in drawn


def test_every_pair_of_models_is_a_line_of_fields(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    (chart,) = in_depth.run_transfer(frames.results(store), frames.model_names(store))
    drawn = svg(chart, capfd)
    assert drawn.count('aria-roledescription="rect mark"') == 6 * len(LAYERS)
    assert "net-step10 on net-step200" in drawn


def test_concept_depth_has_a_row_a_model(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    (chart,) = in_depth.concept_depth(frames.results(store))
    drawn = svg(chart, capfd)
    assert all(name in drawn for name in ("net-step10", "net-step200", "other"))
    assert drawn.count('aria-roledescription="tick"') == 3


def test_steps_of_one_training_are_lined_up(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    charts = in_depth.checkpoints(store, frames.results(store))
    titles = [" ".join(marks.titles(chart)) for chart in charts]
    assert any("Balanced accuracy of certificate over training of net (films)" in title for title in titles)
    assert any(title.startswith("Entropy over training") for title in titles)
    assert not any("other" in title for title in titles)
    drawn = svg(charts[0], capfd)
    assert "training step" in drawn
    assert ">10<" in drawn
    assert ">200<" in drawn


def test_plots_and_the_page(store: Store, tmp_path: Path) -> None:
    for name in DEEP:
        assert report.plot(store, name, tmp_path / f"{name}.svg").stat().st_size > 2000
    text = report.build(store, tmp_path / "report.html", ReportSpec(samples=0)).read_text()
    for heading in ("What is behind the scores", "Models side by side", "Over training", "Which layer to take"):
        assert heading in text
    assert "curvature min" in text


def test_nothing_of_all_that_in_another_store(tmp_path: Path) -> None:
    plain = build(tmp_path / "s", Plan(text=False, models=("one", "two")))
    for name in ("transfer", "concept_depth", "checkpoints"):
        with pytest.raises(AnalysisError, match="nothing to plot"):
            report.plot(plain, name, tmp_path / "x.svg")
    text = report.build(plain, tmp_path / "report.html", ReportSpec(samples=0)).read_text()
    assert "What is behind the scores" not in text
    assert "Over training" not in text


@pytest.mark.parametrize("name", DEEP)
def test_names_of_strangers_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    hostile = store_of(tmp_path / "s", HOSTILE, HOSTILE)
    svg = ET.fromstring(report.plot(hostile, name, tmp_path / "x.svg").read_text())
    assert any(HOSTILE in text for text in svg.itertext())
    page = report.build(hostile, tmp_path / "report.html", ReportSpec(samples=0)).read_text()
    assert "<img src=x" not in page
