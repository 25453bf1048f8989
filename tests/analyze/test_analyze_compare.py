"""Models side by side and the choice of layers, from made-up results with known answers."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import probe_stores as stores
import pyarrow as pa
import pytest
from scipy.stats import kendalltau, rankdata

from layercache import study
from layercache.analyze import analyze, metrics
from layercache.analyze.summary import summarise
from layercache.errors import AnalysisError
from layercache.recipe import CompareSpec
from layercache.store import results, writer
from layercache.store.layout import Run
from layercache.store.results import Outcome
from layercache.store.schema import RESULTS, arrow_schema

SCORES = {"small": [0.2, 0.5, 0.9, 0.7, 0.6], "deep": [0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 0.4, 0.3, 0.3]}
FLOOR = 0.1


def rows_of(run: Run, values: Any, **columns: Any) -> list[dict[str, Any]]:
    key = {"run": run.id, "data": "toy", "condition": "clean", "n": 50, **columns}
    return [{**key, "layer": layer, "value": value} for layer, value in enumerate(values)]


def keep(path: Path, kind: str, rows: list[dict[str, Any]], **spec: Any) -> None:
    table = pa.Table.from_pylist([{"analysis": kind, **row} for row in rows], schema=arrow_schema(RESULTS))
    assert results.save(path, kind, {"kind": kind, **spec}, ["made"], Outcome(table)) is not None


def probe_rows(run: Run, values: list[float], low: float = 0.05, pooling: str = "mean@prompt") -> list[dict[str, Any]]:
    key = {"label": "good", "site": "resid", "pooling": pooling, "metric": "balanced_accuracy"}
    scores = [{**row, "low": row["value"] - low, "high": row["value"] + low} for row in rows_of(run, values, **key)]
    floor = {**rows_of(run, [FLOOR], label="good", metric="balanced_accuracy", group="majority")[0], "layer": None}
    worse = rows_of(run, [0.0] * len(values), **key, group="shuffled")
    return [*scores, floor, *worse]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two runs of different depth, each with a data set."""
    for name, scores in SCORES.items():
        run = stores.new_run(tmp_path / "s", model=name, layers=len(scores))
        stores.put_rows(run, pl.DataFrame({"good": [True, False]}), ["a", "b"], ["good:boolean"])
    return tmp_path / "s"


def runs(path: Path) -> dict[str, Run]:
    return {run.model: run for run in stores.opened(path).runs()}


def compare(path: Path, notes: stores.Notes | None = None, **settings: Any) -> pl.DataFrame:
    return stores.frame(analyze(stores.opened(path), CompareSpec(**settings), notes or stores.Notes()).results)


def value(table: pl.DataFrame, **where: Any) -> float:
    found = table.filter(*(pl.col(name) == wanted for name, wanted in where.items()))
    assert len(found) == 1, found
    return float(found["value"][0])


def test_a_final_norm_is_no_block_further(tmp_path: Path) -> None:
    """Layer 2 is after the last block, layer 3 after the final norm: one depth for both would take one for the other."""
    for name in ("block", "norm"):
        names = [(layer, f"layer {layer}") for layer in range(4)]
        run = writer.open_run(tmp_path / "s", {"model": name}, model=name, layers=names, width=4, final_layer=2)
        stores.put_rows(run, pl.DataFrame({"good": [True, False]}), ["a", "b"], ["good:boolean"])
    scores = {"block": [0.2, 0.5, 0.9, 0.7], "norm": [0.2, 0.5, 0.7, 0.9]}
    found = runs(tmp_path / "s")
    keep(tmp_path / "s", "probe", [row for name, run in found.items() for row in probe_rows(run, scores[name])])
    table = compare(tmp_path / "s")
    assert value(table, metric="best_depth", run=found["block"].id) == 1.0
    assert value(table, metric="best_layer", run=found["norm"].id) == 3
    assert table.filter(metric="best_depth", run=found["norm"].id).is_empty()
    lines = [line.split("  ") for line in summarise(table).splitlines() if "mean@prompt" in line]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()][:2] for line in lines}
    assert cells == {"block mean@prompt": ["2", "1.000"], "norm mean@prompt": ["3", "final norm"]}


def test_models_of_different_depth_side_by_side(path: Path) -> None:
    keep(path, "probe", [row for name, run in runs(path).items() for row in probe_rows(run, SCORES[name])])
    table = compare(path)
    for name, layer, depth in (("small", 2, 2 / 4), ("deep", 5, 5 / 8)):
        where = {"run": runs(path)[name].id, "group": "balanced_accuracy"}
        assert value(table, metric="best_layer", **where) == layer
        assert value(table, metric="best_depth", **where) == depth
        assert value(table, metric="best_score", **where) == max(SCORES[name])
    best = table.filter(metric="best_score", run=runs(path)["small"].id)
    assert best.select("low", "high").row(0) == pytest.approx((0.85, 0.95))
    assert set(table["metric"]) <= set(metrics.METRICS)
    share = (np.mean(SCORES["small"]) - FLOOR) / (0.9 - FLOOR)
    where = {"run": runs(path)["small"].id, "metric": "picked_share"}
    assert value(table, group="random layer", **where) == pytest.approx(share)
    assert value(table, group="last layer", **where) == pytest.approx((0.6 - FLOOR) / (0.9 - FLOOR))
    assert value(table, group="middle layer", **where) == 1


def test_correlations_and_picks_of_a_metric(path: Path) -> None:
    run, metric = runs(path)["small"], [5.0, 3.0, 1.0, 1.5, 2.0]
    keep(path, "probe", probe_rows(run, SCORES["small"]))
    keep(path, "quality", rows_of(run, metric, metric="prompt_entropy"))
    table = compare(path)
    a, b = rankdata(metric), rankdata(SCORES["small"])
    assert value(table, metric="spearman_over_layers", group="prompt_entropy") == pytest.approx(np.corrcoef(a, b)[0, 1])
    kendall = kendalltau(metric, SCORES["small"]).statistic
    assert value(table, metric="kendall_over_layers", group="prompt_entropy") == pytest.approx(kendall)
    assert table.filter(metric="spearman_over_layers")["n"].to_list() == [5]
    assert value(table, metric="picked_layer", group="prompt_entropy max") == 0
    assert value(table, metric="picked_layer", group="prompt_entropy min") == 2
    assert value(table, metric="picked_share", group="prompt_entropy min") == 1
    assert value(table, metric="picked_share", group="prompt_entropy max") == pytest.approx(
        (0.2 - FLOOR) / (0.9 - FLOOR)
    )


def test_a_metric_stands_beside_the_probes_of_its_own_pooling(path: Path) -> None:
    run = runs(path)["small"]
    keep(
        path,
        "probe",
        [*probe_rows(run, SCORES["small"]), *probe_rows(run, SCORES["small"][::-1], pooling="last@prompt")],
    )
    key = {"metric": "dataset_entropy", "site": "resid"}
    other_condition = rows_of(run, [9.0] * 4 + [0.0], metric="curvature", condition="augment-1")
    labelled = rows_of(run, SCORES["small"], metric="rouge_l")
    keep(path, "quality", [*rows_of(run, [1.0, 2.0, 3.0, 4.0, 5.0], pooling="mean@prompt", **key), *other_condition])
    keep(path, "text", labelled)
    table = compare(path).filter(metric="spearman_over_layers")
    assert table.select("pooling", "group").rows() == [("mean@prompt", "dataset_entropy")]


def test_a_label_that_no_layer_knows_says_nothing_of_metrics(path: Path) -> None:
    run = runs(path)["small"]
    keep(path, "probe", probe_rows(run, [0.1, 0.12, 0.11, 0.1, 0.1]))
    keep(path, "quality", rows_of(run, [1.0, 2.0, 3.0, 4.0, 5.0], metric="prompt_entropy"))
    notes = stores.Notes()
    assert set(compare(path, notes)["metric"]) == {"best_layer", "best_depth", "best_score"}
    assert any("known at no layer" in note and "good" in note for note in notes.notes)


@pytest.mark.parametrize("metric", [[1.0] * 5, [1.0, 2.0]])
def test_a_metric_without_an_order_has_no_correlation(path: Path, metric: list[float]) -> None:
    run = runs(path)["small"]
    keep(path, "probe", probe_rows(run, SCORES["small"]))
    keep(path, "quality", rows_of(run, metric, metric="prompt_entropy"))
    assert "spearman_over_layers" not in set(compare(path)["metric"])


def test_what_is_not_there_is_said(path: Path) -> None:
    with pytest.raises(AnalysisError, match="run `layercache analyze probe` first"):
        compare(path)
    run = runs(path)["small"]
    keep(path, "probe", probe_rows(run, SCORES["small"]))
    notes = stores.Notes()
    compare(path, notes)
    assert any("no metric without labels" in note for note in notes.notes)
    keep(path, "quality", rows_of(run, [1.0, 2.0, 3.0, 4.0, 5.0], metric="prompt_entropy"))
    for settings, said in (
        ({"metrics": ["prompt_entropi"]}, "did you mean 'prompt_entropy'"),
        ({"labels": ["god"]}, "did you mean 'good'"),
        ({"pooling": ["last"]}, "did you mean .mean@prompt"),
        ({"score": "mse"}, "no probe has the score 'mse'"),
        ({"data": ["tooy"]}, "did you mean 'toy'"),
    ):
        with pytest.raises(AnalysisError, match=said):
            compare(path, **settings)


def test_it_is_done_last_and_again_when_there_are_new_results(path: Path) -> None:
    run = runs(path)["small"]
    keep(path, "probe", probe_rows(run, SCORES["small"]))
    first, again = (study.analyze(path, [CompareSpec()], stores.Notes())[0] for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    keep(path, "quality", rows_of(run, [5.0, 4.0, 3.0, 2.0, 1.0], metric="prompt_entropy"))
    (new,) = study.analyze(path, [CompareSpec()], stores.Notes())
    assert not new.cached
    assert "prompt_entropy" in new.results["group"].to_pylist()
    shown = summarise(new.results)
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("small mean@prompt")] == ["2"]
    assert "good: best layer by balanced_accuracy" in shown
    assert "prompt_entropy min" in shown
