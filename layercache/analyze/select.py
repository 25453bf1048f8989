"""Finds what an analysis is asked about: runs, data sets, labels, features, by name."""

from collections.abc import Iterable, Sequence

from layercache import nearest
from layercache.errors import AnalysisError
from layercache.outputs import one_row_a_token
from layercache.recipe import AnalysisSpec, ProbingSpec, QualitySpec
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store
from layercache.store.stored import StoredFeature


def runs(store: Store, spec: AnalysisSpec | ProbingSpec) -> list[Run]:
    """List the runs asked for (by id, a prefix of it, or the model's name), or all.

    Raises:
        AnalysisError: the store has no runs.
        StoreError: a name is not known, or could be several runs.
    """
    known = store.runs()
    if not known:
        raise AnalysisError(f"the store {store.path} holds no runs: run `layercache extract` first")
    if spec.runs is None:
        return known
    wanted: dict[str, Run] = {}
    for name in spec.runs:
        named = [run for run in known if run.model == name] or [store.run(name)]
        wanted.update((run.id, run) for run in named)
    return [run for run in known if run.id in wanted]


def data(store: Store, chosen: Sequence[Run], spec: AnalysisSpec | ProbingSpec) -> list[tuple[Run, RowsInfo]]:
    """List every (run, data set) asked for, in the order of runs and names.

    Raises:
        AnalysisError: a data set is not known, or none is stored.
    """
    found = [(run, info) for run in chosen for info in store.data(run)]
    names = sorted({info.name for _, info in found})
    if not names:
        raise AnalysisError(f"the store {store.path} holds no rows: run `layercache extract` with --data first")
    for name in spec.data or ():
        if name not in names:
            raise AnalysisError(f"no data set {name!r} in {store.path}: {hint(name, names)}")
    return [(run, info) for run, info in found if spec.data is None or info.name in spec.data]


def features(store: Store, run: Run, spec: ProbingSpec | QualitySpec) -> list[StoredFeature]:
    """List the stored states asked for: sites, poolings and layers of a run; those of single tokens are left out.

    Raises:
        AnalysisError: none are stored, or a site, pooling or layer that is asked for is not.
    """
    everything = store.features(run)
    needing = "a probe needs" if spec.kind == "probe" else f"the analysis {spec.kind} needs"
    for pooling in spec.pooling or ():
        if one_row_a_token(pooling):
            raise AnalysisError(f"{pooling} is one row a token and {needing} one a sample: name another pooling")
    stored = [feature for feature in everything if not one_row_a_token(feature.pooling)]
    if everything and not stored:
        raise AnalysisError(
            f"run {run.id} holds only states of single tokens and {needing} one a sample: run `layercache extract"
            " --pooling mean` first"
        )
    if not stored:
        raise AnalysisError(f"run {run.id} holds no states: run `layercache extract --pooling mean` first")
    _check("pooling", spec.pooling, (feature.pooling for feature in stored), run)
    _check("site", spec.sites, (feature.site for feature in stored), run)
    chosen = []
    for feature in stored:
        if (spec.pooling and feature.pooling not in spec.pooling) or (spec.sites and feature.site not in spec.sites):
            continue
        layers = feature.layers if spec.layers == "all" else sorted(set(spec.layers))
        lacking = sorted(set(layers) - set(feature.layers))
        if lacking:
            have = ", ".join(map(str, feature.layers))
            raise AnalysisError(f"run {run.id} has no layer {lacking[0]} of {feature.pooling}: it has {have}")
        chosen.append(feature._replace(layers=layers))
    if not chosen:
        have = "; ".join(f"{feature.site} {feature.pooling}" for feature in stored)
        raise AnalysisError(f"run {run.id} has no such site and pooling together: it has {have}")
    return chosen


def hint(name: str, known: Sequence[str]) -> str:
    """Say which known name was perhaps meant, or what there is."""
    return nearest.hint(name, known, "it has")


def _check(what: str, asked: list[str] | None, stored: Iterable[str], run: Run) -> None:
    known = sorted(set(stored))
    for name in asked or ():
        if name not in known:
            raise AnalysisError(f"run {run.id} has no {what} {name!r}: {hint(name, known)}")
