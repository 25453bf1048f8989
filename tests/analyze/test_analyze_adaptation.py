"""Adapters beside their base: every number from the planted scores by hand; which runs belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from choice_stores import LAYERS, WIDTH, new_run, put
from probe_stores import put_rows
from scipy import stats

from layercache import study
from layercache.analyze.quality.cka import cka as reference_cka
from layercache.analyze.summary import summarise
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import CompareSpec, ProbeSpec
from layercache.store import reader


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


N, CHOICES = 160, [" false", " true"]
GRID = [(r, alpha, seed) for r in (1, 8) for alpha in (1, 16) for seed in (0, 1, 2)]


class Planted:
    """A base that knows little and adapters that know the more the larger their alpha is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rng = np.random.default_rng(0)
        self.truth = rng.random(N) < 0.5
        self.texts = [f"{'ship' if i % 4 else 'map'} {i}" for i in range(N)]
        self.frame = pl.DataFrame(
            {
                "split": ["train"] * (N // 2) + ["test"] * (N // 2),
                "answer": self.truth,
                "passage": [f"p{i // 2}" for i in range(N)],
            }
        )
        self.scores: dict[str, np.ndarray] = {}
        self.states: dict[str, np.ndarray] = {}
        self.entropy: dict[str, np.ndarray] = {}
        base = rng.normal(size=(N, LAYERS, WIDTH))
        self._put("toy", None, rng, 0.5, base, {})
        for r, alpha, seed in GRID:
            made: dict[str, Any] = {"adapter_settings": {"r": r, "alpha": alpha, "seed": seed, "targets": ["v", "q"]}}
            made["adapter_settings"]["validation"] = {"accuracy": alpha / 20, "answer_nll": 0.5, "n": 9}
            states = base + (0.1 if alpha == 1 else 1.0) * rng.normal(size=base.shape)
            states[:, 2, 0] += alpha / 4 * (self.truth - 0.5)
            self._put(f"toy+r{r}-a{alpha}-s{seed}", f"{r}-{alpha}-{seed}", rng, 0.5 + alpha / 10, states, made)

    def _put(self, name: str, adapter: str | None, rng: Any, known: float, states: np.ndarray, made: Any) -> None:
        scores = rng.normal(size=(N, LAYERS, 2)) - 2
        scores[:, 2, 1] += 2 * known * (self.truth - 0.5)
        entropy = rng.random((N, LAYERS)).astype(np.float32) + (0 if adapter is None else 0.5)
        self.scores[name], self.states[name], self.entropy[name] = scores.astype(np.float32), states, entropy
        run = new_run(self.path, name, adapter)
        put(
            run, self.texts, self.frame, CHOICES, scores.astype(np.float32), states=states, entropy=entropy,
            made=made, split="split", group_by="passage",
        )  # fmt: skip

    def right(self, name: str, layer: int) -> np.ndarray:
        """On the test split."""
        return np.asarray((self.scores[name][:, layer].argmax(axis=1) == self.truth)[N // 2 :])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("adaptation") / "s")


@pytest.fixture(scope="module")
def found(planted: Planted) -> pl.DataFrame:
    specs = [ProbeSpec(bootstrap=20), CompareSpec(bootstrap=400)]
    frame = pl.from_arrow(study.analyze(planted.path, specs, Progress())[-1].results)
    assert isinstance(frame, pl.DataFrame)
    ids = {run.id: run.model for run in reader.open(planted.path).runs()}
    return frame.with_columns(pl.col("run", "other_run").replace(ids))


def one(found: pl.DataFrame, **where: Any) -> dict[str, Any]:
    lines = found.filter(*(pl.col(key).eq_missing(pl.lit(value)) for key, value in where.items()))
    assert len(lines) == 1, lines
    return lines.row(0, named=True)


def test_systems_are_held_against_the_base(planted: Planted, found: pl.DataFrame) -> None:
    base = planted.right("toy", 2)
    assert one(found, run="toy", group="model", metric="accuracy")["value"] == base.mean()
    for r, alpha, seed in GRID:
        name = f"toy+r{r}-a{alpha}-s{seed}"
        right = planted.right(name, 2)
        key = {"run": name, "group": "model"}
        accuracy = one(found, **key, metric="accuracy")
        assert (accuracy["value"], accuracy["n"], accuracy["layer"]) == (right.mean(), N // 2, 2)
        validated = one(found, **key, metric="validation_accuracy")
        assert (validated["value"], validated["n"]) == (alpha / 20, 9)
        gap = one(found, **key, metric="accuracy_minus_base")
        assert gap["value"] == pytest.approx(right.mean() - base.mean())
        assert gap["other_run"] == "toy"
        assert gap["low"] <= gap["value"] <= gap["high"]
        first, second = int((right & ~base).sum()), int((~right & base).sum())
        assert one(found, **key, metric="only_right")["value"] == first
        assert one(found, **key, metric="only_base_right")["value"] == second
        p = stats.binomtest(first, first + second).pvalue
        assert one(found, **key, metric="mcnemar_p")["value"] == pytest.approx(p)


def test_the_adapter_that_validation_chooses_is_named(found: pl.DataFrame) -> None:
    """Of the most accurate on the rows to validate on, the surest: by a plain sort."""
    lines = found.filter(group="model", metric="validation_accuracy").select("run", "value")
    sure = dict(found.filter(group="model", metric="validation_nll").select("run", "value").iter_rows())
    best = min(lines.iter_rows(), key=lambda line: (-line[1], sure[line[0]]))
    accuracy = one(found, run=best[0], group="model", metric="accuracy")
    tested = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    said = f"chosen of {len(GRID)} adapters by the 9 rows to validate on: {best[0]}, accuracy {best[1]:.3f} there, {tested}"
    text = summarise(found)
    assert f"{said} on the rows tested" in text.splitlines()
    without = found.filter(~pl.col("metric").is_in(["validation_accuracy"]))
    assert "chosen of" not in summarise(without)


def test_baselines_and_probes_stand_beside_them(planted: Planted, found: pl.DataFrame) -> None:
    trained, tested = planted.truth[: N // 2], planted.truth[N // 2 :]
    majority = tested.mean() if trained.mean() > 0.5 else 1 - tested.mean()
    assert one(found, run="toy", group="majority", metric="accuracy")["value"] == majority
    probes = pl.from_arrow(
        reader.open(planted.path).sql("SELECT * FROM results WHERE analysis = 'probe' AND metric = 'accuracy'")
    )
    assert isinstance(probes, pl.DataFrame)
    ids = {run.model: run.id for run in reader.open(planted.path).runs()}
    for group, where in (
        ("tf-idf", {"group": "tf-idf"}),
        ("mean embedding", {"layer": 0, "pooling": "mean@prompt", "group": None}),
        ("probe last@prompt", {"layer": 2, "pooling": "last@prompt", "group": None}),
    ):
        expected = one(probes, run=ids["toy"], **where)["value"]
        assert one(found, run="toy", group=group, metric="accuracy")["value"] == pytest.approx(expected)
    best = "toy+r8-a16-s0"
    expected = one(probes, run=ids[best], layer=2, pooling="mean@prompt", group=None)["value"]
    assert one(found, run=best, group="probe mean@prompt", metric="accuracy")["value"] == pytest.approx(expected)


def test_differences_by_layer(planted: Planted, found: pl.DataFrame) -> None:
    name, half = "toy+r8-a16-s1", N // 2
    for layer in range(LAYERS):
        key = {"run": name, "other_run": "toy", "layer": layer}
        gap = planted.right(name, layer).mean() - planted.right("toy", layer).mean()
        assert one(found, **key, metric="choice_accuracy_minus_base")["value"] == pytest.approx(gap)
        gaps = (planted.entropy[name] - planted.entropy["toy"])[half:, layer].astype(float)
        entropy = one(found, **key, metric="entropy_minus_base")
        assert entropy["value"] == pytest.approx(gaps.mean(), rel=1e-5)
        by_group = gaps.reshape(-1, 2).mean(axis=1)
        assert entropy["high"] - entropy["low"] == pytest.approx(
            2 * 1.96 * by_group.std() / np.sqrt(len(by_group)), rel=0.2
        )
        # What is stored has 10 bits of its mantissa.
        states = [planted.states[one][half:, layer].astype(np.float32) for one in (name, "toy")]
        cka = reference_cka(states, [True], None)[0].value[0, 1]
        stored = one(found, **key, metric="cka_with_base", pooling="last@prompt")
        assert stored["value"] == pytest.approx(cka, abs=1e-3)
    probes = [
        one(found, run=name, metric="probe_accuracy_minus_base", layer=layer, pooling="last@prompt") for layer in (0, 2)
    ]
    assert probes[1]["value"] > 0.2
    assert probes[1]["low"] > 0
    assert probes[0]["low"] < 0 < probes[0]["high"] or probes[0]["value"] == pytest.approx(0, abs=0.1)


def test_alpha_matters_more_than_r(planted: Planted, found: pl.DataFrame) -> None:
    y = np.array(
        [[[planted.right(f"toy+r{r}-a{a}-s{s}", 2).mean() for a in (1, 16)] for r in (1, 8)] for s in (0, 1, 2)]
    )
    grid = found.filter(run="toy")
    for i, r in enumerate((1, 8)):
        for j, alpha in enumerate((1, 16)):
            cell = one(grid, metric="cell_accuracy", group=f"r={r} alpha={alpha}")
            assert (cell["value"], cell["n"]) == (pytest.approx(y[:, i, j].mean()), 3)
    effect = one(grid, metric="effect", group="alpha")
    per_seed = (y[:, :, 1] - y[:, :, 0]).mean(axis=1)
    expected = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    assert (effect["value"], effect["low"], effect["high"]) == pytest.approx(
        (per_seed.mean(), expected.low, expected.high)
    )
    shares = {
        name: one(grid, metric="variance_share", group=name)["value"] for name in ("r", "alpha", "interaction", "seed")
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["alpha"] > 10 * shares["r"]
    assert one(grid, metric="anova_p", group="alpha")["value"] < 0.01


def test_without_probes_and_without_settings(planted: Planted, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "s"
    truth = rng.random(40) < 0.5
    texts, frame = [f"text {i}" for i in range(40)], pl.DataFrame({"answer": truth})
    for name, adapter in (("toy", None), ("toy+mine", "a")):
        put(new_run(path, name, adapter), texts, frame, CHOICES, rng.normal(size=(40, LAYERS, 2)))
    results = study.analyze(path, [CompareSpec(bootstrap=0)], Progress())[0].results
    found = pl.from_arrow(results)
    assert isinstance(found, pl.DataFrame)
    assert set(found["group"]) == {"model", "choices", "lens"}
    assert found["low"].null_count() == len(found)


def test_a_grid_that_is_not_whole_has_cells_and_no_effects(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(40) < 0.5
    texts, frame = [f"text {i}" for i in range(40)], pl.DataFrame({"answer": truth})
    for name, settings in (("toy", None), ("a", (1, 1)), ("b", (8, 1)), ("c", (8, 16))):
        made = {} if settings is None else {"adapter_settings": {"r": settings[0], "alpha": settings[1], "seed": 0}}
        run = new_run(tmp_path / "s", f"toy+{name}" if settings else name, name if settings else None)
        put(run, texts, frame, CHOICES, rng.normal(size=(40, LAYERS, 2)), made=made)
    found = pl.from_arrow(study.analyze(tmp_path / "s", [CompareSpec(bootstrap=0)], Progress())[0].results)
    assert isinstance(found, pl.DataFrame)
    assert found.filter(metric="cell_accuracy")["group"].to_list() == ["r=1 alpha=1", "r=8 alpha=1", "r=8 alpha=16"]
    assert found.filter(metric="effect").is_empty()


def test_only_runs_that_differ_by_the_adapter_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts, frame = list("abcdefgh"), pl.DataFrame({"answer": [True, False] * 4})
    put(new_run(tmp_path / "s", "toy"), texts, frame, CHOICES, rng.normal(size=(8, LAYERS, 2)))
    other = new_run(tmp_path / "s", "other+a", "a", weights="others")
    put(other, texts, frame, CHOICES, rng.normal(size=(8, LAYERS, 2)))
    with pytest.raises(AnalysisError, match="compare needs probe scores by layer"):
        study.analyze(tmp_path / "s", [CompareSpec()], Progress())


def test_adapters_without_scored_answers_are_said(planted: Planted, tmp_path: Path) -> None:
    for name, adapter in (("toy", None), ("toy+a", "a")):
        run = new_run(tmp_path / "s", name, adapter)
        put_rows(run, pl.DataFrame({"answer": [True, False] * 20}), [f"t{i}" for i in range(40)], ["answer:boolean"])
    notes = Notes()
    with pytest.raises(AnalysisError, match="compare needs probe scores by layer"):
        study.analyze(tmp_path / "s", [CompareSpec()], notes)
    assert notes.notes == [
        "adapters are compared by scored answers: extract them and their base with the same --choice"
    ]
