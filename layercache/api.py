"""The stages and the analyses as functions, with the settings of a recipe as keywords.

Nothing heavier than the recipe's tables is imported before a function is called. Progress and notes go to stderr; give `progress=lc.Progress()` for
silence.
"""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layercache import nearest
from layercache import recipe as recipes
from layercache.errors import RecipeError, StoreError
from layercache.progress import Progress, TerminalProgress
from layercache.recipe import Recipe, keys

if TYPE_CHECKING:
    from layercache.extract.summary import Summary
    from layercache.store.reader import Store
    from layercache.study import Analysed, StudyResult


def load_recipe(recipe: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe, for `run` and `extract`.

        study = lc.load_recipe("movies", ["extract.layers=0,8,16", "data.source=films.csv"])

    Args:
        recipe: the name of one that ships (`movies`), or a path to a TOML file.
        settings: `KEY=VALUE` overrides with dotted keys, as of `--set`.

    Raises:
        RecipeError: no such recipe, not TOML, or a key or value that is not allowed.
    """
    if not isinstance(recipe, str | Path):
        raise RecipeError(f"{_shown(recipe)} is no recipe: give the name of one, or the path of a TOML file")
    return recipes.load(str(recipe), _settings(settings))


def run(
    recipe: Recipe | str | Path,
    store: str | Path = "store",
    progress: Progress | None = None,
    *,
    settings: Iterable[str] = (),
) -> "StudyResult":
    """Run a whole study: extract what is missing, analyse what changed, write the report.

    Args:
        recipe: the name of one that ships (`movies`), a path to a TOML file, or a loaded one.
        store: the store's directory, or the URL of a place in a bucket; made where there is none.
        progress: where progress and notes go; stderr when not given.
        settings: `KEY=VALUE` overrides, as of `--set`; only with a name or a path.

    Returns:
        A summary an extraction, a table an analysis, the report's path and the charts', and the seconds it took.

    Raises:
        RecipeError: no such recipe, or a key or value that is not allowed.
        LayercacheError: any other user error: one line that names what was wrong and what to do.
    """
    from layercache import study

    return study.run(_recipe(recipe, settings), _path(store), progress or TerminalProgress())


def extract(
    recipe: Recipe | str | Path | None = None,
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
        store: the store's directory, or the URL of a place in a bucket; made where there is none.
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

    if dry_run not in (False, True, "measure"):
        raise RecipeError(f"dry_run is {_shown(dry_run)}: give True, False or 'measure'")
    if recipe is not None:
        if models is not None or data is not None or extraction:
            raise RecipeError("with a recipe use settings=['extract.pooling=mean'], not models, data or other keywords")
        asked = _recipe(recipe, settings)
    else:
        if models is None or data is None:
            raise RecipeError("give a recipe, or models and data: lc.extract(models='demo', data='demo:movies')")
        tables = [{"source": one} if isinstance(one, str) else one for one in _listed(data)]
        if not tables:
            raise RecipeError("data is empty: give a source ('films.csv'), a table ({'source': …}), or a list of them")
        first = recipes.validate(recipes.DataSpec, tables[0], where="data")
        name = dataset.data_name(first)
        table = {"name": name, "models": _listed(models), "data": tables, "extract": extraction}
        for setting in _settings(settings):
            recipes.override(table, setting)
        asked = recipes.build(table, where="lc.extract")
    return study.extract(asked, _path(store), progress or TerminalProgress(), dry_run=dry_run)


def analyze(store: "Store | str | Path", kind: str, *, progress: Progress | None = None, **settings: Any) -> "Analysed":
    """Run one analysis on a store; one that was done on the same shards is read back.

        lc.analyze("films", "probe", labels=["rating"], pooling=["mean@prompt"])

    Args:
        store: a store, its directory, or the URL of one in a bucket.
        kind: `probe`, `probe_depth`, `entropy`, `text`, `choices`, `delta_p`, `quality`, `compare`.
        progress: where progress and notes go; stderr when not given.
        settings: keys of the analysis' table in a recipe (`layercache.recipe.ProbeSpec` and the like).

    Returns:
        What it gave: shown as tables in a notebook; `results` is the tidy pyarrow table, one number a row.

    Raises:
        RecipeError: no such analysis, or no such setting.
        AnalysisError: it cannot be computed from what the store holds.
        StoreError: there is no such store, or it cannot be read.
    """
    from layercache import study

    if kind not in recipes.ANALYSES:
        raise RecipeError(f"unknown analysis {kind!r}: {nearest.hint(str(kind), recipes.ANALYSES)}")
    spec = recipes.validate(recipes.ANALYSES[kind], settings, where=kind)
    return study.analyze(_path(store), [spec], progress or TerminalProgress())[0]


def _analysis(kind: str, what: str) -> "Callable[..., Analysed]":
    """Make the function of one kind of analysis, whose help and signature are those of its table in a recipe."""
    meanings, fields = keys.meanings(recipes.ANALYSES[kind]), recipes.ANALYSES[kind].model_fields
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items() if name != "kind"}

    def one(store: "Store | str | Path", *, progress: Progress | None = None, **settings: Any) -> "Analysed":
        return analyze(store, kind, progress=progress, **settings)

    one.__name__ = one.__qualname__ = kind
    one.__doc__ = "\n".join(
        [
            what,
            "",
            f"The same as `layercache.analyze(store, {kind!r}, …)`, and as the table `analyze` of that kind in a recipe. What",
            "each metric is, with its unit, is `layercache.analyze.metrics.METRICS`; formulas and sources are in docs/analyses.md.",
            "",
            "Args:",
            "    store: a store, its directory, or the URL of one in a bucket.",
            "    progress: where progress and notes go; stderr when not given.",
            *(f"    {name}: {meanings.get(name, '')}" for name in defaults),
            "",
            "Returns:",
            "    `results`, a pyarrow table with one number a row in `value`, the ends of its 95 % interval in `low` and `high`,",
            "    and what it is of in the other columns (`run`, `data`, `layer`, `pooling`, `label`, `group`, `metric`, …);",
            "    `frame()` gives it for Polars, and a notebook shows tables by layer.",
            "",
            "Raises:",
            "    RecipeError: no such setting, or a value that is not allowed.",
            "    AnalysisError: it cannot be computed from what the store holds.",
            "    StoreError: there is no such store or run, or it cannot be read.",
        ]
    )
    given = [inspect.Parameter("store", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    named = {"progress": None, **defaults}
    given += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in named.items()]
    one.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    return one


probe = _analysis(
    "probe",
    """Predict labels from every layer's states by linear probes, cross-validated, beside baselines.

Ridge regression of numbers (`r2`, `mse`, `spearman`), logistic regression of categories and booleans (`accuracy`,
`balanced_accuracy`, `macro_f1`, `auc`); `group` names the baselines `mean` or `majority`, `tf-idf` and `shuffled`.""",
)
probe_depth = _analysis(
    "probe_depth",
    """Say what stands behind a probe's score: control tasks, bits, concept depth, transfer.

`selectivity` (Hewitt & Liang 2019), `mdl` in bits (Voita & Titov 2020), `v_information` in bits a row (Xu et al. 2020),
`peak_layer` and `converging_layer`, and probes of one layer read on another's states.""",
)
entropy = _analysis(
    "entropy",
    """Say how the logit lens settles over layers: entropy, divergences from the last layer, prediction depth.

`entropy`, `kl_to_final` and `js_to_final` in nats, `agrees_with_final` a share, `prediction_depth` a layer.""",
)
text = _analysis(
    "text",
    """Score the text that every layer wrote against the references of its row.

`bleu` and `chrf` from 0 to 100; `rouge_1`, `rouge_2`, `rouge_l`, `exact_match`, `token_f1` and `bertscore_f1` shares; and
scores that need no reference (`distinct_1`, `repetition`, `empty`).""",
)
choices = _analysis(
    "choices",
    """Say which of the scored answers every layer prefers, and how well its probabilities are calibrated.

Accuracy, the expected calibration error `choice_ece`, `choice_brier`, and the probability `choice_mass` of all answers.""",
)
delta_p = _analysis(
    "delta_p",
    """Say what knocking out the question does to a probe of truthfulness, against a control.

`delta_p` in percentage points and `flip_rate`, a share; what carries the evidence is each `…_minus_control`.""",
)
quality = _analysis(
    "quality",
    """Measure states without labels: entropy (nats), dimension, likeness of layers and runs, invariance to augmentation.

`dataset_entropy`, `dataset_effective_rank`, `intrinsic_dimension`, `cka`, `mutual_knn`, `infonce`, `lidar`, `dime`, and the
statistics over tokens that are stored (`prompt_entropy`, `curvature`, …).""",
)
compare = _analysis(
    "compare",
    """Put runs and metrics side by side, from what the other analyses found: run those first.

Best layers, differences between runs on the same rows, adapters against their base, and which metric that needs no label
finds the best layer.""",
)


def _recipe(recipe: Recipe | str | Path, settings: Iterable[str]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, settings)
    if _settings(settings):
        raise RecipeError("settings go with a recipe's name or path; load it with them: lc.load_recipe(name, settings)")
    return recipe


def _settings(settings: Iterable[str]) -> list[str]:
    found = [settings] if isinstance(settings, str) else list(settings)
    wrong = next((one for one in found if not isinstance(one, str)), None)
    if wrong is not None:
        raise RecipeError(f"settings: {_shown(wrong)} is not KEY=VALUE (for example extract.pooling=mean,last)")
    return found


def _path(store: "Store | str | Path") -> Path:
    """Return where a store is, given open, by its directory, or by a URL."""
    from layercache.store import mirror

    path = getattr(store, "path", store)
    if not isinstance(path, str | Path):
        raise StoreError(f"{_shown(store)} is no store: give its directory, or what lc.open(…) returns")
    return mirror.located(path)


def _listed(given: Any) -> list[Any]:
    """Return one thing or several as a list, paths as text."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    return [str(one) if isinstance(one, Path) else one for one in several]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
