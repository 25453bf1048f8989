"""The stages and the analyses as functions, with the settings of a recipe as keywords.

Nothing heavy is imported before a function is called. Progress and notes go to stderr; give `progress=lc.Progress()` for
silence.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layercache.errors import RecipeError
from layercache.progress import Progress, TerminalProgress

if TYPE_CHECKING:
    from layercache.extract.summary import Summary
    from layercache.recipe import Recipe
    from layercache.store.reader import Store
    from layercache.study import Analysed, StudyResult


def run(
    recipe: "Recipe | str | Path",
    store: str | Path = "store",
    progress: Progress | None = None,
    *,
    settings: Iterable[str] = (),
) -> "StudyResult":
    """Run a whole study: extract what is missing, analyse what changed, write the report.

    Args:
        recipe: the name of one that ships (`movies`), a path to a TOML file, or a loaded one.
        store: the store's directory, made where there is none.
        progress: where progress and notes go; stderr when not given.
        settings: `KEY=VALUE` overrides, as of `--set`; only with a name or a path.

    Raises:
        LayercacheError: one line that names what was wrong and what to do.
    """
    from layercache import study

    return study.run(_recipe(recipe, settings), Path(store), progress or TerminalProgress())


def extract(
    recipe: "Recipe | str | Path | None" = None,
    *,
    models: Any = None,
    data: Any = None,
    store: str | Path = "store",
    settings: Iterable[str] = (),
    progress: Progress | None = None,
    dry_run: bool | Literal["measure"] = False,
    **extraction: Any,
) -> "list[Summary]":
    """Run models on data and store what every layer says; what the store holds already is not run again.

        lc.extract("movies", store="films")
        lc.extract(models="gpt2", data={"source": "films.csv", "template": "{title}", "labels": ["rating:number"]},
                   pooling=["mean", "last"], lens=["last"], store="films")

    Args:
        recipe: as of `run`; without one, `models` and `data` say what is run.
        models: a model (a folder, a hub name, `demo`), a list of them, or the recipe's table `models`.
        data: a source (`films.csv`, `hf:…`, `demo:movies`), or the recipe's table `data`; several in a list.
        store: the store's directory, made where there is none.
        settings: `KEY=VALUE` overrides of the recipe named.
        progress: where progress and notes go; stderr when not given.
        dry_run: only say what would be done; `measure` runs a few batches to say how long.
        extraction: keys of the recipe's table `extract` (`layercache.recipe.ExtractSpec`).

    Returns:
        A summary for every data set and model, in that order.

    Raises:
        RecipeError: neither a recipe nor models and data, or both; a key or value that is not allowed.
        LayercacheError: any other user error of the data, the model or the store.
    """
    from layercache import dataset, study
    from layercache import recipe as recipes

    if recipe is not None:
        if models is not None or data is not None or extraction:
            raise RecipeError("with a recipe use settings=['extract.pooling=mean'], not models, data or other keywords")
        asked = _recipe(recipe, settings)
    else:
        if models is None or data is None:
            raise RecipeError("give a recipe, or models and data: lc.extract(models='demo', data='demo:movies')")
        tables = [
            {"source": one} if isinstance(one, str) else one for one in (data if isinstance(data, list) else [data])
        ]
        first = recipes.validate(recipes.DataSpec, tables[0], where="data")
        table = {"name": dataset.data_name(first), "models": models, "data": tables, "extract": extraction}
        for setting in settings:
            recipes.override(table, setting)
        asked = recipes.build(table, where="lc.extract")
    return study.extract(asked, Path(store), progress or TerminalProgress(), dry_run=dry_run)


def analyze(store: "Store | str | Path", kind: str, *, progress: Progress | None = None, **settings: Any) -> "Analysed":
    """Run one analysis on a store; one that was done on the same shards is read back.

        lc.analyze("films", "probe", labels=["rating"], pooling=["mean@prompt"])

    Args:
        store: a store, or its directory.
        kind: `probe`, `probe_depth`, `entropy`, `text`, `choices`, `delta_p`, `quality`, `compare`.
        progress: where progress and notes go; stderr when not given.
        settings: keys of the analysis' table in a recipe (`layercache.recipe.ProbeSpec` and the like).

    Returns:
        What it gave: shown as tables in a notebook; `results` is the tidy pyarrow table, one number a row.

    Raises:
        RecipeError: no such analysis, or no such setting.
        AnalysisError: it cannot be computed from what the store holds.
    """
    from layercache import recipe as recipes
    from layercache import study

    if kind not in recipes.ANALYSES:
        raise RecipeError(f"unknown analysis {kind!r}: use one of {', '.join(recipes.ANALYSES)}")
    spec = recipes.validate(recipes.ANALYSES[kind], settings, where=kind)
    path = Path(store) if isinstance(store, str | Path) else store.path
    return study.analyze(path, [spec], progress or TerminalProgress())[0]


def _analysis(kind: str, what: str) -> "Callable[..., Analysed]":
    """Make the function of one kind of analysis."""

    def one(store: "Store | str | Path", *, progress: Progress | None = None, **settings: Any) -> "Analysed":
        return analyze(store, kind, progress=progress, **settings)

    one.__name__ = one.__qualname__ = kind
    one.__doc__ = f"{what}\n\nArguments, result and errors are those of `layercache.analyze(store, {kind!r}, …)`."
    return one


probe = _analysis("probe", "Predict labels from every layer's states by linear probes, beside baselines.")
probe_depth = _analysis("probe_depth", "Say what stands behind a probe's score: controls, bits, depth, transfer.")
entropy = _analysis("entropy", "Say how the logit lens settles over layers: entropy, divergences, prediction depth.")
text = _analysis("text", "Score the text that every layer wrote against references.")
choices = _analysis("choices", "Say which of the scored answers every layer prefers, and how well it is calibrated.")
delta_p = _analysis("delta_p", "Say what knocking out the question does to a probe of truthfulness, against a control.")
quality = _analysis("quality", "Measure states without labels: entropy, dimension, likeness, invariance.")
compare = _analysis("compare", "Put runs and metrics side by side, from what the other analyses found.")


def _recipe(recipe: "Recipe | str | Path", settings: Iterable[str]) -> "Recipe":
    from layercache import recipe as recipes

    if isinstance(recipe, str | Path):
        return recipes.load(str(recipe), settings)
    if list(settings):
        raise RecipeError("settings go with a recipe's name or path; load it with them: lc.load_recipe(name, settings)")
    return recipe
