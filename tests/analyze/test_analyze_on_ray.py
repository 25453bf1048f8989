"""Every kind of analysis gives the same on Ray as in one process: the same rows in the same order, bit for bit."""

import pickle
from collections.abc import Callable
from pathlib import Path

import delta_stores
import numpy as np
import polars as pl
import probe_stores as stores
import pytest
import text_stores
from choice_stores import new_run, put
from command import Call

from layercache import engine, recipe
from layercache.analyze import analyze
from layercache.errors import AnalysisError
from layercache.recipe import AnalysisSpec, ProbeSpec
from layercache.store import reader
from layercache.store.reader import Store

pytestmark = pytest.mark.xdist_group("ray")

SAMPLE = Path(__file__).parents[2] / "store"
SMALL = {"bootstrap": 10, "layers": [0, 2], "pooling": ["mean@prompt"]}


def sample(_: Path) -> Store:
    return reader.open(SAMPLE)


def changed(path: Path) -> Store:
    return delta_stores.build(path)[0]


def texts(path: Path) -> Store:
    text_stores.text_store(path, quantization="int8")
    text_stores.text_store(path)
    return stores.opened(path)


def chosen(path: Path) -> Store:
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.5
    frame = pl.DataFrame({"answer": truth, "passage": [f"p{i // 3}" for i in range(60)]})
    scores = rng.normal(size=(60, 3, 2)).astype(np.float32) - 2
    put(new_run(path, "toy"), [f"text {i}" for i in range(60)], frame, [" false", " true"], scores)
    return reader.open(path)


CASES: dict[str, tuple[Callable[[Path], Store], dict[str, object]]] = {
    "probe": (sample, SMALL),
    "probe_depth": (sample, {**SMALL, "measures": "selectivity,mdl,information,depth,transfer,transfer_runs"}),
    "entropy": (sample, {"bootstrap": 10}),
    "quality": (sample, {**SMALL, "metrics": ["dataset_entropy", "cka", "intrinsic_dimension"]}),
    "delta_p": (changed, {"bootstrap": 10, "noise": 5, "repeats": 2}),
    "text": (texts, {"bootstrap": 10, "metrics": ["bleu", "exact_match", "empty"]}),
    "choices": (chosen, {"bootstrap": 10}),
}


@pytest.mark.parametrize("kind", CASES)
def test_results_are_those_of_one_process(kind: str, ray_here: None, tmp_path: Path) -> None:
    build, settings = CASES[kind]
    store, spec = build(tmp_path / "store"), recipe.validate(recipe.ANALYSES[kind], settings, where=kind)
    notes, again = stores.Notes(), stores.Notes()
    here = analyze(store, spec, notes)
    with engine.on("ray"):
        there = analyze(reader.open(store.path.resolve()), spec, again)
    assert here.results.num_rows > 10
    assert there.results.equals(here.results)
    assert there.sample_scores.equals(here.sample_scores)
    assert there.files == here.files
    assert again.notes == notes.notes
    assert again.done == again.total == notes.done


def test_every_kind_but_the_one_on_the_driver_is_among_them() -> None:
    assert {*recipe.ANALYSES} - {*CASES} == {"compare"}


def test_a_store_crosses_as_its_path() -> None:
    store = reader.open(SAMPLE)
    store.held(store.runs()[0])
    again = pickle.loads(pickle.dumps(store))
    assert again.path == store.path
    assert len(pickle.dumps(store)) < 500
    assert pickle.loads(pickle.dumps(store)) is again
    assert again.runs() == store.runs()


def test_what_a_worker_finds_wrong_is_the_users_one_line(ray_here: None, tmp_path: Path) -> None:
    run = stores.new_run(tmp_path / "store", layers=2)
    words, x, y = [f"text {i}" for i in range(60)], np.ones((60, 16), np.float32), np.arange(60.0)
    x[3] = np.inf
    stores.put_rows(run, pl.DataFrame({"y": y}), words, ["y:number"])
    stores.put_states(run, words, {("resid", "mean@prompt"): {0: x, 1: x}})
    spec: AnalysisSpec = ProbeSpec(bootstrap=0)
    with pytest.raises(AnalysisError) as here:
        analyze(stores.opened(tmp_path / "store"), spec, stores.Notes())
    with engine.on("ray"), pytest.raises(AnalysisError) as there:
        analyze(stores.opened(tmp_path / "store"), spec, stores.Notes())
    assert str(there.value) == str(here.value)
    assert "infinite or NaN" in str(here.value)


def test_the_command_line_analyses_on_ray(ray_here: None, call: Call) -> None:
    asked = ("analyze", "entropy", "--bootstrap", "5", "--format", "csv", "--store", SAMPLE)
    here, there = call(*asked), call(*asked, "--engine", "ray")
    assert (here.code, there.code) == (0, 0)
    assert there.out == here.out
    assert "Traceback" not in there.err
