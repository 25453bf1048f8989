"""Findings say what the numbers say, also when a baseline wins."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report_store import Plan, build

from layercache.report import frames
from layercache.report.frames import Task
from layercache.report.sentences import entropy_finding, probe_finding


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    store = build(tmp_path_factory.mktemp("report") / "store", Plan(models=("demo",)))
    return frames.tasks(frames.results(store))[0]


def with_tfidf(task: Task, **numbers: Any) -> Task:
    changed = [
        pl.when(pl.col("baseline") == "tf-idf").then(pl.lit(value, pl.Float64)).otherwise(pl.col(name)).alias(name)
        for name, value in numbers.items()
    ]
    return task._replace(baselines=task.baselines.with_columns(changed))


def test_the_best_layer_is_named_with_its_interval_and_baselines(task: Task) -> None:
    assert probe_finding(task) == [
        "certificate is best read at layer 4 of demo (last@prompt): balanced accuracy .80 [.77, .83]"
        " (the best layer in 50 % of resamples); tf-idf .40, majority class .30."
    ]


def test_layers_that_score_the_same_are_named(task: Task) -> None:
    def said(*layers: int) -> str:
        here = pl.col("metric") == task.metric, pl.col("panel") == "last@prompt", pl.col("layer").is_in(layers)
        tied = pl.when(*here).then(pl.lit(0.8)).otherwise(pl.col("value"))
        return probe_finding(task._replace(scores=task.scores.with_columns(value=tied)))[0]

    assert said(4).endswith("majority class .30.")
    assert said(4, 5).endswith("majority class .30. Layer 5 scores the same.")
    assert said(4, 5, 6).endswith("majority class .30. Layers 5, 6 score the same.")


def test_a_winning_baseline_is_said_to_win(task: Task) -> None:
    (said,) = probe_finding(with_tfidf(task, value=0.9, low=0.88, high=0.92))
    assert said == (
        "No layer of demo reads certificate better than tf-idf: balanced accuracy .80 [.77, .83] at layer 4 of demo"
        " (last@prompt), against .90 [.88, .92]."
    )


def test_overlapping_intervals_are_not_a_win(task: Task) -> None:
    (said,) = probe_finding(with_tfidf(task, value=0.79, low=0.76, high=0.82))
    assert "not clearly better than tf-idf (.79 [.76, .82])" in said


def test_shuffled_labels_are_no_rival(task: Task) -> None:
    shuffled = task.baselines.with_columns(
        value=pl.when(pl.col("baseline") == "shuffled labels").then(0.99).otherwise(pl.col("value"))
    )
    (said,) = probe_finding(task._replace(baselines=shuffled))
    assert "is best read at layer 4" in said


def test_without_intervals_or_baselines_only_the_score_is_said(task: Task) -> None:
    bare = task._replace(
        scores=task.scores.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64)),
        baselines=task.baselines.head(0),
        wins=task.wins.head(0),
    )
    assert probe_finding(bare) == ["certificate is best read at layer 4 of demo (last@prompt): balanced accuracy .80."]
    nothing = task._replace(scores=task.scores.with_columns(value=pl.lit(None, pl.Float64)))
    assert probe_finding(nothing) == ["certificate could not be scored."]


def test_less_error_beats_more(task: Task) -> None:
    errors = {"metric": pl.lit("mse")}
    as_errors = task._replace(
        metric="mse", scores=task.scores.with_columns(**errors), baselines=task.baselines.with_columns(**errors)
    )
    (said,) = probe_finding(as_errors)
    assert said.startswith("No layer of demo reads certificate better than majority class: mean squared error ")


def test_entropy_says_where_the_answer_settles(tmp_path: Path) -> None:
    store = build(tmp_path / "s", Plan(models=("demo",)))
    ((_, numbers),) = frames.entropies(frames.results(store))
    assert entropy_finding(numbers) == [
        "demo, last@prompt (24 samples): mean entropy 3.05 nats at layer 0, .65 nats at layer 6; from layer 4 on, at"
        " least half of the samples have the last layer's top token; predictions settle at layer 3.5 on average."
    ]
    late = numbers.with_columns(
        value=pl.when((pl.col("metric") == "agrees_with_final") & (pl.col("layer") < 6))
        .then(0.2)
        .otherwise(pl.col("value"))
    )
    assert "before the last layer, fewer than half" in entropy_finding(late)[0]
    assert entropy_finding(numbers.filter(layer=3)) == [
        "demo, last@prompt (24 samples): mean entropy 1.85 nats at layer 3."
    ]
