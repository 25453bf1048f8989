"""Charts of the quality of states: what they draw is what the analysis wrote."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from report_store import POOLINGS, STATISTIC, Plan, build, peaks

from layercache import queries, report
from layercache.recipe import ReportSpec
from layercache.report import frames, qualities
from layercache.store import reader, results, writer
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, arrow_schema


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("quality") / "s", Plan(text=False, probes=False, entropy=False, lens=False))


def drawn(chart: Any) -> list[dict[str, Any]]:
    """Every row of data in a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_numbers_over_depth(store: Store) -> None:
    of_states, of_tokens = sorted(
        qualities.by_depth(store, frames.results(store), "films"), key=lambda one: "tokens" in str(one.to_dict())
    )
    rows = drawn(of_states)
    entropy = [row for row in rows if row.get("layer") == 3 and row["value"] == pytest.approx(0.6) and row.get("low")]
    assert {row["model"] for row in entropy} == {"demo", "demo:early"}
    assert {row["depth"] for row in entropy} == {50.0}
    assert max(row["depth"] for row in rows) == 100.0, "what follows the final norm is no deeper"
    lines = {(row["baseline"], row["value"]) for row in rows if row.get("baseline")}
    assert lines == {("views paired at random", 3.2), ("chance", math.log(24))}
    assert {row["value"] for row in drawn(of_tokens)} == {0.5}


def test_depth_is_the_share_of_each_models_own_layers(tmp_path: Path) -> None:
    """Layer 2 of 4 stands where layer 4 of 8 does, in the chart and in SQL; after the final norm is no deeper."""
    finals, rows = {"shallow": 4, "deep": 8}, []
    for model, final in finals.items():
        layers = [(layer, f"block.{layer}") for layer in range(final + 2)]
        run = writer.open_run(tmp_path, {"model": model}, model=model, layers=layers, width=4, final_layer=final)
        key = {"run": run.id, "data": "toy", "analysis": "quality", "condition": "clean", "site": "resid", "n": 9}
        key |= {"pooling": "mean@prompt", "metric": "dataset_entropy_normalized"}
        rows += [{**key, "layer": layer, "value": 10.0 * final + layer} for layer in range(final + 2)]
    table = pa.Table.from_pylist(rows, schema=arrow_schema(RESULTS))
    results.save(tmp_path, "quality", {"kind": "quality"}, ["made"], results.Outcome(table))
    held = reader.open(tmp_path)
    (chart,) = qualities.by_depth(held, frames.results(held), "toy")
    points = {(row["model"], row["layer"]): row["depth"] for row in drawn(chart) if row.get("value") is not None}
    expected = {(model, layer): 100 * layer / final for model, final in finals.items() for layer in range(final + 1)}
    assert points == pytest.approx(expected)
    assert points["shallow", 2] == points["deep", 4] == 50
    query = queries.load_query("quality_by_layer")
    asked = held.sql(query.sql, query.bind({})).to_pylist()
    depths = {(row["model"], row["layer"]): row["depth"] for row in asked}
    # After the final norm is no block further.
    assert [depths.pop((model, final + 1)) for model, final in finals.items()] == [None, None]
    assert depths == pytest.approx(expected)


def test_two_peaks_are_two_cells_of_a_column(store: Store) -> None:
    (figure,) = qualities.histograms(store, "films")
    rows = drawn(figure)
    for layer in range(7):
        here = [row for row in rows if row["layer"] == layer]
        found = sorted((row["low"], row["high"], row["share"], row["n"]) for row in here)
        assert len(here) == len({round(peak, 9) for peak in peaks(layer)}), "both models' data are the same"
        for low, high, share, n in found:
            assert any(low <= peak + 1e-9 and peak <= high + 1e-9 for peak in peaks(layer))
            assert (share, n) in {(0.5, 12), (1.0, 24)}
    assert qualities.histograms(store, "none") == []
    assert STATISTIC == "prompt_entropy"


def test_likeness_is_a_whole_square_within_a_model_and_between_models(store: Store) -> None:
    numbers = frames.results(store)
    for metric in ("cka", "mutual_knn"):
        specs = [chart.to_dict() for chart in qualities.likeness(store, numbers, "films", metric)]
        panels = [(spec, one) for spec in specs for one in spec["concat"]]
        titles = [" ".join([one["title"]] if isinstance(one["title"], str) else one["title"]) for _, one in panels]
        pooling = POOLINGS[1]
        assert titles == [f"demo, {pooling}", f"demo:early, {pooling}", f"demo × demo:early, {pooling}"]
        data = [spec["datasets"][one.get("data", spec.get("data"))["name"]] for spec, one in panels]
        for rows in data:
            assert sorted((row["layer"], row["other_layer"]) for row in rows) == [
                (a, b) for a in range(8) for b in range(8)
            ]
        for row in data[0]:
            assert row["value"] == pytest.approx(1 / (1 + abs(row["layer"] - row["other_layer"])))
        for row in data[2]:
            assert row["value"] == pytest.approx(0.5 / (1 + abs(row["layer"] - row["other_layer"])))
    assert qualities.likeness(store, numbers, "films", "cka_biased") == []


def test_numbers_against_strength(store: Store) -> None:
    (figure,) = qualities.strengths(frames.results(store), "films")
    spec = figure.to_dict()
    assert spec["title"]["text"].startswith("Prompt entropy (share) against the strength")
    assert [one["title"][1] for one in spec["concat"]] == ["random"] * 2 + ["truncate"] * 2
    rows = spec["datasets"][spec["concat"][0]["data"]["name"]]
    assert {row["line"] for row in rows} == {"0", "2", "4", "5", "7"}
    assert {(row["strength"], row["value"]) for row in rows} == {(0.0, 0.5), (0.25, 0.6), (0.5, 0.7)}
    whole = spec["datasets"][spec["concat"][2]["data"]["name"]]
    assert {(row["strength"], row["value"]) for row in whole} == {(4.0, 0.4)}


def test_sentences_say_where_and_how_much(store: Store) -> None:
    found = qualities.finding(frames.results(store), "films")
    assert found[0] == (
        "demo, mean@prompt (24 samples): dataset entropy, as a share of its most, is lowest with .20 [.17, .23] at layer 7"
        " and highest with .90 [.87, .93] at layer 0; InfoNCE of two views of a prompt is lowest with .50 [.47, .53] at"
        " layer 0 (nats, chance 3.18)."
    )


def test_the_page_has_the_section(store: Store, tmp_path: Path) -> None:
    page = report.build(store, tmp_path / "r.html", ReportSpec(samples=0)).read_text()
    assert "What the states are like" in page
    without = build(tmp_path / "s", Plan(quality=False, text=False, probes=False))
    assert "What the states are like" not in report.build(without, tmp_path / "w.html", ReportSpec()).read_text()
    spec = json.loads(report.plot(store, "cka", tmp_path / "cka.json").read_text())
    assert [len(one["concat"]) for one in spec["concat"]] == [2, 1]
