"""Runs a study: extract every model on every data set, analyse, report. What the command line calls."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from layercache import __version__, dataset, engine, nearest, recipe, spans
from layercache.errors import AnalysisError, LayercacheError, RecipeError
from layercache.progress import Once, Progress, held

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from layercache.dataset import Dataset
    from layercache.extract.finetune import Tuned
    from layercache.extract.summary import Summary
    from layercache.parts import Part, Work
    from layercache.store.reader import Store

AnalysisSpec = recipe.AnalysisSpec


@dataclass(frozen=True)
class Analysed:
    """What one analysis gave.

    Attributes:
        kind: the analysis (`probe`, `entropy`).
        results: the tidy table, schema `store.schema.RESULTS`.
        path: where the store keeps it; None when the store is frozen or read-only.
        cached: the same analysis of the same shards was there already.
    """

    kind: str
    results: "pa.Table"
    path: Path | None
    cached: bool

    def frame(self) -> "pl.DataFrame":
        """Return the results as a Polars frame."""
        from layercache.frame import from_arrow

        return from_arrow(self.results)

    def __str__(self) -> str:
        from layercache.analyze import summary

        return summary.summarise(self.results)

    def _repr_html_(self) -> str:
        """Show the tables by layer in a notebook, and every number behind them; text of the store is escaped."""
        from layercache import table

        numbers = f"<details><summary>{len(self.results):,} numbers</summary>{table.html(self.results)}</details>"
        lines = "\n".join(map(table.html_text, str(self).split("\n")))
        return f"<pre>{lines}</pre>{numbers}"


@dataclass(frozen=True)
class StudyResult:
    """What a whole study gave: a summary an extraction, a table an analysis, and the report's place."""

    extracted: "list[Summary]"
    analysed: list[Analysed]
    report: Path | None
    seconds: float
    charts: list[Path] = field(default_factory=list)
    tuned: "list[Tuned]" = field(default_factory=list)


def run(
    study: recipe.Recipe,
    store: Path,
    progress: Progress,
    *,
    devices: Sequence[str] = (),
    workers: int | None = None,
) -> StudyResult:
    """Train the adapters asked for, extract what is missing, analyse what changed, write the report.

    Args:
        devices: where models are run, a process on each; none for what the recipe says.
        workers: on the engine ray, processes that hold a model.

    Raises:
        LayercacheError: any user error of the parts.
    """
    start = time.monotonic()
    # What the data lack, extraction and every analysis would say.
    progress = Once(progress)
    if study.finetune:
        # What is wrong with the data is not to be told after hours of training.
        _datasets(study, Progress())
    tuned = finetune(study, store, progress) if study.finetune else []
    extracted = extract(study, store, progress, devices=devices, workers=workers)
    analysed = analyze(store, study.analyze, progress)
    report, charts = None, []
    if analysed:
        from layercache import report as reports
        from layercache.store import mirror, reader

        opened = reader.open(store)
        title = study.title or study.report.title or study.name
        report = reports.build(opened, mirror.beside(store, "report.html"), study.report, title, progress)
        charts = reports.write_charts(opened, mirror.beside(store, "charts"), progress)
    return StudyResult(extracted, analysed, report, time.monotonic() - start, charts, tuned)


def finetune(study: recipe.Recipe, store: Path, progress: Progress, *, dry_run: bool = False) -> "list[Tuned]":
    """Train the adapters that a recipe asks for and that are not there yet, of every model that has none of its own.

    Args:
        dry_run: train nothing; say what is there.

    Raises:
        RecipeError: the recipe asks for no adapters, or does not say which data set they are trained on.
        LayercacheError: TRL or PEFT are not installed; or any user error of the data, the model or the folder.
    """
    if study.finetune is None:
        raise RecipeError(f"recipe {study.name} has no table [finetune]: it says which adapters are trained on what")
    data = _split(study, dataset.load(_tuned_on(study)))
    with held(progress) as progress:
        return _tune(study, data, store, progress, only_find=dry_run)


def _tune(study: recipe.Recipe, data: "Dataset", store: Path, progress: Progress, *, only_find: bool) -> "list[Tuned]":
    from layercache.extract.finetune import finetune as tune
    from layercache.store import mirror

    assert study.finetune is not None
    folder = Path(PurePosixPath(mirror.name(store)).name) if mirror.of(store) else store
    out = Path(study.finetune.out) if study.finetune.out else folder.with_name(f"{folder.name}-adapters")
    return [
        tune(model, data, study.finetune, study.extract, out, progress, only_find=only_find)
        for model in study.models
        if model.adapter is None
    ]


def _tuned_on(study: recipe.Recipe) -> recipe.DataSpec:
    """Return the data set that adapters are trained on."""
    assert study.finetune is not None
    names = [dataset.data_name(one) for one in study.data]
    wanted = study.finetune.data
    if wanted is None and len(names) == 1:
        return study.data[0]
    if wanted not in names:
        raise RecipeError(f"finetune.data: say which data set adapters are trained on: {', '.join(names)}")
    return study.data[names.index(wanted)]


def _split(study: recipe.Recipe, data: "Dataset") -> "Dataset":
    """Give the data set that adapters are trained on splits, where it has none, so that analyses test on the same rows."""
    if study.finetune is None or data.name != dataset.data_name(_tuned_on(study)):
        return data
    from layercache import splits

    tuning = study.finetune
    groups = splits.groups_of(data, splits.kept_together(data, tuning.group_by))
    return splits.with_split(data, groups, validation=tuning.validation, test=tuning.test, seed=tuning.split_seed)


def extract(
    study: recipe.Recipe,
    store: Path,
    progress: Progress,
    *,
    dry_run: bool | Literal["measure"] = False,
    part: "Part | None" = None,
    devices: Sequence[str] = (),
    workers: int | None = None,
) -> "list[Summary]":
    """Run every model of a recipe on every data set; only what the store lacks costs forward passes.

    Args:
        dry_run: only say what would be done; with `measure`, how long it takes too.
        part: run only the samples of this part.
        devices: names as torch has them; a process on each does its share.
        workers: on the engine ray, processes that hold a model.

    Raises:
        ModelError: torch and transformers are not installed, or a model is refused.
        LayercacheError: any other user error of the data, the model or the store.
    """
    from layercache.store import recipes, writer

    writer.check_writable(store)
    with held(progress) as progress:
        # Read before torch is imported, which takes seconds.
        datasets = _datasets(study, progress)
        runner = _runner()
        if devices:
            from layercache.extract import devices as spread

            spread.check(devices, study.extract)
        work = _paired(study, datasets, store, progress)
        if engine.cluster() is not None and not dry_run:
            from layercache.extract import on_ray

            summaries = on_ray.extract(work, study.extract, store, progress, workers, part)
        elif devices and not dry_run:
            summaries = spread.extract(study, work, store, progress, devices, part)
        else:
            summaries = [
                runner.extract(model, data, study.extract, store, progress, dry_run=dry_run, part=part)
                for data, model in work
            ]
    if not dry_run:
        recipes.save(store, study.model_dump(mode="json"))
    return summaries


def plan(study: recipe.Recipe, store: Path, progress: Progress, count: int) -> "list[Work]":
    """Say which of `count` parts of a study's extraction lack something, and what; writes nothing.

    Raises:
        LayercacheError: as `extract`; or there is not one part.
    """
    from layercache import jobs, parts

    parts.every(count)
    with held(progress) as progress:
        datasets = _datasets(study, progress)
        runner = _runner()
        from layercache.extract.kept import Kept

        kept = Kept()
        work = _paired(study, datasets, store, progress)
        return jobs.combined(runner.plan(model, data, study.extract, store, count, kept=kept) for data, model in work)


def pairs(study: recipe.Recipe, store: Path, progress: Progress) -> "list[tuple[Dataset, recipe.ModelSpec]]":
    """Read a study's data sets, and pair each with every model, adapters that are there among them.

    Raises:
        LayercacheError: a data set cannot be read, two have one name, or what is asked of them is of spans that they
            do not have.
    """
    return _paired(study, _datasets(study, progress), store, progress)


def _datasets(study: recipe.Recipe, progress: Progress) -> "list[Dataset]":
    """Read a study's data sets, and check what is asked of their prompts; nothing heavy is imported."""
    datasets = [_split(study, dataset.load(spec)) for spec in study.data]
    _distinct([data.name for data in datasets])
    for data in datasets:
        spans.check(data, study.extract)
        for note in data.notes:
            progress.note(f"{data.name}: {note}")
    return datasets


def _paired(
    study: recipe.Recipe, datasets: "Sequence[Dataset]", store: Path, progress: Progress
) -> "list[tuple[Dataset, recipe.ModelSpec]]":
    models = [*study.models, *_adapters(study, datasets, store, progress)]
    return [(data, model) for data in datasets for model in models]


def _runner() -> Any:
    """Import what runs models, which needs more than the laptop's packages."""
    try:
        from layercache.extract import run as runner
    except ImportError as error:
        if error.name not in ("torch", "transformers", "psutil"):
            raise
        raise LayercacheError(f"extraction needs {error.name}: pip install 'layercache[extract]'") from error
    return runner


def _adapters(
    study: recipe.Recipe, datasets: "Sequence[Dataset]", store: Path, progress: Progress
) -> list[recipe.ModelSpec]:
    """Return the models with the adapters that are there."""
    if study.finetune is None:
        return []
    name = dataset.data_name(_tuned_on(study))
    data = next(one for one in datasets if one.name == name)
    tuned = _tune(study, data, store, Progress(), only_find=True)
    pending = sum(one.pending for one in tuned)
    if pending:
        progress.note(
            f"{pending:,} adapters are not trained yet, and left out: `layercache finetune` trains them, as does"
            " `layercache run`"
        )
    return [model for one in tuned for model in one.adapters]


def analyze(path: Path, specs: Sequence[AnalysisSpec], progress: Progress) -> list[Analysed]:
    """Run analyses on a store; one that this version did on the same shards is read back.

    Raises:
        AnalysisError: an analysis cannot be computed from what the store holds.
        StoreError: there is no store at `path`.
    """
    from layercache.analyze import analyze as analyze_one
    from layercache.analyze import reads
    from layercache.store import reader, results

    if engine.cluster() is not None:
        # Read in processes that are in another folder.
        path = path.resolve()
    store = reader.open(path)
    done = []
    for spec in in_order(specs):
        settings = spec.model_dump(mode="json")
        inputs = [f"layercache/{__version__}", *_inputs(store, spec)]
        if spec.kind == "compare":
            inputs += [info.path.name for info in results.listing(path) if info.analysis != spec.kind]
        found = results.find(path, spec.kind, settings, [*inputs, *reads(spec)])
        if found is not None:
            results.renew(path, found)
            done.append(Analysed(spec.kind, results.load(found), found, cached=True))
            continue
        outcome = analyze_one(store, spec, progress)
        # Named again: a model of the hub may have been fetched only now.
        inputs += reads(spec)
        kept = results.save(path, spec.kind, settings, inputs, outcome)
        done.append(Analysed(spec.kind, outcome.results, kept, cached=False))
    return done


def in_order(specs: Sequence[AnalysisSpec]) -> list[AnalysisSpec]:
    """Return analyses in the order they are done: `compare` reads what the others found, and comes last."""
    return sorted(specs, key=lambda one: one.kind == "compare")


def _inputs(store: "Store", spec: AnalysisSpec) -> list[str]:
    """Name what an analysis reads: rows and shards of every run, of other conditions only where it reads them."""
    runs = store.runs()
    if not spec.every_condition:
        return [name for run in runs for name in store.input_names(run)]
    return [name for run in runs for name in store.input_names(run, conditions=store.conditions(run))]


def specs_to_run(path: Path, kinds: Sequence[str], overrides: dict[str, Any]) -> list[AnalysisSpec]:
    """Say which analyses to run: the kinds named, or what the recipes kept in the store ask for.

    A kind that a kept recipe describes starts from that description; `overrides` change its settings.

    Raises:
        RecipeError: an unknown kind, or a setting that no chosen kind has.
        AnalysisError: no kind is named and no recipe in the store asks for any.
    """
    from layercache.store import recipes

    kept = [recipe.build(table, where="recipe kept in the store") for table in recipes.load_all(path)]
    asked = [spec for study in kept for spec in study.analyze]
    for kind in kinds:
        if kind not in recipe.ANALYSES:
            raise RecipeError(f"unknown analysis {kind!r}: {nearest.hint(kind, recipe.ANALYSES)}")
    chosen = [spec for spec in asked if not kinds or spec.kind in kinds]
    present = {spec.kind for spec in chosen}
    chosen += [recipe.ANALYSES[kind]() for kind in kinds if kind not in present]
    if not chosen:
        raise AnalysisError(f"no recipe kept in {path} asks for an analysis; name one: {', '.join(recipe.ANALYSES)}")
    unused = [key for key in overrides if not any(key in type(spec).model_fields for spec in chosen)]
    if unused:
        raise RecipeError(f"{unused[0]} is no setting of {', '.join(sorted({spec.kind for spec in chosen}))}")
    return _distinct_specs(chosen, overrides)


def _distinct_specs(chosen: Sequence[AnalysisSpec], overrides: dict[str, Any]) -> list[AnalysisSpec]:
    """Apply overrides to every spec that has the setting; equal specs (from several recipes) run once."""
    specs: dict[str, AnalysisSpec] = {}
    for spec in chosen:
        own = {key: value for key, value in overrides.items() if key in type(spec).model_fields}
        spec = recipe.validate(type(spec), {**spec.model_dump(), **own}, where=spec.kind)
        specs[spec.model_dump_json()] = spec
    return list(specs.values())


def _distinct(names: list[str]) -> None:
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise RecipeError(f"two data sets are called {doubled!r}; give one another name")
