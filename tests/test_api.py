"""`import layercache as lc`: the functions, and that they say what the command line and the modules say."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import layercache as lc
from layercache import recipe, study
from layercache.errors import LayercacheError, RecipeError, StoreError
from layercache.store import reader

QUIET = lc.Progress()
DATA = {"source": "demo:movies", "limit": 60, "labels": ["certificate:category", "rating:number"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "store"
    (made,) = lc.extract(
        models="demo", data=DATA, store=path, pooling=["mean"], layers=[0, 5], lens=["last"], progress=QUIET
    )
    assert made.forward_passes == made.samples == 60
    return path


def test_extract_does_what_a_recipe_does(store: Path) -> None:
    table = {"name": "same", "models": "demo", "data": DATA}
    table["extract"] = {"pooling": ["mean"], "layers": [0, 5], "lens": ["last"]}
    (again,) = study.extract(recipe.build(table), store, QUIET)
    assert again.forward_passes == 0
    (planned,) = lc.extract(recipe.build(table), store=store, dry_run=True, progress=QUIET)
    assert planned.forward_passes == 0


def test_an_analysis_is_a_function_that_returns_its_table(store: Path) -> None:
    settings = {"labels": ["rating"], "bootstrap": 50, "folds": 2}
    spec = recipe.ANALYSES["probe"](**settings)
    (expected,) = study.analyze(store, [spec], QUIET)
    for found in (
        lc.probe(store, progress=QUIET, **settings),
        lc.probe(lc.open(store), progress=QUIET, **settings),
        lc.analyze(str(store), "probe", progress=QUIET, **settings),
    ):
        assert found.results.equals(expected.results)
    frame = found.frame()
    assert isinstance(frame, pl.DataFrame)
    assert set(frame["layer"].drop_nulls()) == {0, 5}
    assert "rating: r2" in str(found)


def test_a_notebook_shows_tables_and_no_markup_of_strangers(store: Path) -> None:
    found = lc.entropy(store, progress=QUIET)
    shown = found._repr_html_()
    assert shown.startswith("<pre>movies, lens at last@prompt")
    assert f"{len(found.results):,} numbers" in shown
    column = pl.Series("data", ["<script>alert(1)</script>\n<b>"] * len(found.results))
    hostile = study.Analysed("entropy", found.frame().with_columns(column).to_arrow(), None, False)
    assert "<script>" not in hostile._repr_html_()
    assert "<b>" not in hostile._repr_html_()


@pytest.mark.parametrize("kind", sorted(recipe.ANALYSES))
def test_every_kind_of_analysis_has_a_function(kind: str) -> None:
    function = getattr(lc, kind)
    assert function.__name__ == kind
    assert "layercache.analyze" in (function.__doc__ or "")
    settings = [name for name in recipe.ANALYSES[kind].model_fields if name != "kind"]
    assert list(inspect.signature(function).parameters) == ["store", "progress", *settings]
    for name in settings:
        assert re.search(rf"^    {name}: \w", function.__doc__, re.MULTILINE), name


def test_every_public_name_is_there_and_documented() -> None:
    for name in lc.__all__:
        assert name in dir(lc)
        assert inspect.getdoc(getattr(lc, name)), name


def test_the_stages_can_be_called_whatever_was_imported_before() -> None:
    code = (
        "import layercache as lc, layercache.extract.run, layercache.analyze.probe\n"
        "assert lc.extract.__call__ is lc.api.extract and lc.analyze.__call__ is lc.api.analyze\n"
        "try: lc.extract()\n"
        "except lc.LayercacheError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("give a recipe, or models and data")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, layercache; print({'torch', 'polars', 'pyarrow', 'duckdb', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_cannot_be_is_said_in_one_line(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="with a recipe use settings"):
        lc.extract("demo", models="demo", store=tmp_path)
    with pytest.raises(RecipeError, match="pooling"):
        lc.extract(models="demo", data=DATA, store=tmp_path / "new", pooling=["middle"], progress=QUIET)
    with pytest.raises(RecipeError, match="unknown analysis 'prob'"):
        lc.analyze(store, "prob")
    with pytest.raises(RecipeError, match="unknown key"):
        lc.probe(store, label="rating")
    with pytest.raises(RecipeError, match="settings go with"):
        lc.run(lc.load_recipe("demo"), store, settings=["title=x"])
    assert not (tmp_path / "new").exists()
    assert reader.open(store).runs()


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: lc.open(5), StoreError, "5 is no store: give its directory"),
        (lambda: lc.run(None), RecipeError, "None is no recipe: give the name"),
        (lambda: lc.run("demo", 5), StoreError, "5 is no store"),
        (lambda: lc.run("demo", settings=[5]), RecipeError, "settings: 5 is not KEY=VALUE"),
        (lambda: lc.load_recipe({"models": "demo"}), RecipeError, "is no recipe"),
        (lambda: lc.extract(5), RecipeError, "5 is no recipe"),
        (lambda: lc.extract(models="demo", data=[]), RecipeError, "data is empty: give a source"),
        (lambda: lc.extract(models=5, data="demo:movies"), RecipeError, "5 is not a table"),
        (lambda: lc.extract(models="demo", data="demo:movies", dry_run="maybe"), RecipeError, "dry_run is 'maybe'"),
        (lambda: lc.analyze(5, "probe"), StoreError, "5 is no store"),
        (lambda: lc.analyze("store", "prob"), RecipeError, "did you mean 'probe'"),
        (lambda: lc.entropy("store", quantile=[0.5]), RecipeError, "did you mean 'quantiles'"),
        (lambda: lc.probe("store", folds="many"), RecipeError, "'many' is not a whole number"),
    ],
)
def test_a_wrong_argument_is_told_like_any_other_mistake(
    call: Callable[[], object], kind: type[LayercacheError], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        call()


def test_what_a_store_is_asked_wrongly_is_told(store: Path) -> None:
    opened = lc.open(store)
    with pytest.raises(StoreError, match="0 names no run"):
        opened.matrix(0, 0)  # type: ignore[call-overload]
    with pytest.raises(LayercacheError, match="5 is no query"):
        opened.sql(5)  # type: ignore[arg-type]


def test_paths_and_tuples_do_as_well(store: Path) -> None:
    (planned,) = lc.extract(
        models=("demo",),
        data=(DATA,),
        pooling=["mean"],
        layers=[0, 5],
        lens=["last"],
        store=store,
        dry_run=True,
        progress=QUIET,
    )
    assert planned.forward_passes == 0


@pytest.mark.parametrize(
    ("layers", "seed"), [(np.array([0, 5]), np.int64(3)), ((0, 5), 3), (range(0, 6, 5), 3), (pl.Series([0, 5]), 3)]
)
def test_arrays_tuples_and_ranges_are_lists(layers: object, seed: object) -> None:
    spec = recipe.validate(recipe.ProbeSpec, {"layers": layers, "seed": seed}, where="probe")
    assert (spec.layers, spec.seed) == ([0, 5], 3)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_a_generator_does_not_take_are_refused(seed: int) -> None:
    for kind, key in ((recipe.ProbeSpec, "seed"), (recipe.ExtractSpec, "seed"), (recipe.ExtractSpec, "condition_seed")):
        with pytest.raises(RecipeError, match=f"{key}: {seed} is out of range"):
            recipe.validate(kind, {key: seed}, where="settings")


def test_names_of_the_wrong_kind_are_told_in_one_line(store: Path) -> None:
    opened = lc.open(store)
    run = opened.runs()[0]
    for wrong in ({"pooling": None}, {"pooling": 5}, {"label": ["rating"]}, {"site": 1}, {"condition": None}):
        (what,) = wrong
        with pytest.raises(StoreError, match=f"{what}=.* is no name: give one as text"):
            opened.matrix(run, 0, **wrong)  # type: ignore[call-overload]
    with pytest.raises(StoreError, match="has no rows of data set None: it has movies"):
        opened.rows(run, None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError) as told:
        lc.extract(models="demo", data=pl.DataFrame({"text": ["a", "b"]}), store=store, progress=QUIET)
    assert "\n" not in str(told.value)
