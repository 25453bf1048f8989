"""What adapters change: who answers how well, whether rank or alpha matters, and at which layers the change is.

An adapter's run is held against the run that is the same but for the adapter, on the rows that both report (the test split,
where there is one). Rows of `results`, under `group`:

    model                     the answer that the last layer prefers
    majority · tf-idf · mean embedding · probe POOLING      what it is held against: on the base's states, probes on every run's
    choices · states · lens   by layer, adapted minus base
    r=8 alpha=16              mean over seeds of a cell of the grid
    r · alpha · interaction   what the grid says of them (see `effects`)

Every system comes with its accuracy, the difference from the base's own answers (`accuracy_minus_base`, a paired interval over
groups: BoolQ repeats its passages), and McNemar's exact p. Baselines and probes are those of the analysis `probe`, as it left
them in the store.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze import adapter_grid, bootstrap, paired, tables
from layercache.analyze.bootstrap import Estimate, Resamples
from layercache.analyze.choices import Scored, read, scored
from layercache.analyze.metrics import weighted_mean
from layercache.analyze.quality.cka import FEWEST, Cka, cka
from layercache.analyze.scaling import one_thread_each
from layercache.analyze.tables import Row
from layercache.outputs import one_row_a_token
from layercache.progress import Progress
from layercache.recipe import ChoicesSpec, CompareSpec
from layercache.store import captured, scores
from layercache.store.layout import Run
from layercache.store.reader import Store

Bools = npt.NDArray[np.bool_]

MODEL, CHOICES, STATES, LENS = "model", "choices", "states", "lens"
EMBEDDING, PROBE = "mean embedding", "probe"
_MEAN = "mean@prompt"


class Family(NamedTuple):
    """A base and its adapters on one label of one data set: their answers, on the rows that all of them have."""

    base: Scored
    adapted: list[Scored]
    resamples: Resamples

    def key(self, run: Run, **further: Any) -> Row:
        """Return the columns that say what a number is of."""
        given = self.base.given
        key = {"run": run.id, "data": given.data, "analysis": "compare", "condition": "clean"}
        return {**key, "label": given.label.name, **further}


def rows(store: Store, runs: Sequence[Run], spec: CompareSpec, progress: Progress) -> list[Row]:
    """Hold the runs with adapters against their bases; nothing where there are none.

    Raises:
        AnalysisError: as `choices`, where answers are scored at all.
    """
    pairs = [(run, base) for run in runs for base in runs if is_adapted(run, base)]
    if not pairs:
        return []
    involved = list({run.id: run for pair in pairs for run in pair}.values())
    if not all(scored(store, run) for run in involved):
        progress.note("adapters are compared by scored answers: extract them and their base with the same --choice")
        return []
    families = _families(store, involved, spec, progress)
    probes = scores.newest(store.path, "probe", "correct")
    if probes.is_empty():
        progress.note("no probes are stored, so none are compared: `layercache analyze probe compare` fits them first")
    found: list[Row] = []
    with one_thread_each() as pool, progress.task("adapters", len(families), "bases") as bar:
        for family in families:
            found += _systems(store, family, probes)
            found += _by_layer(store, family, probes, pool, spec.seed)
            found += _grid(store, family)
            bar.advance()
    return found


def _families(store: Store, runs: Sequence[Run], spec: CompareSpec, progress: Progress) -> list[Family]:
    """Pair every base with its adapters; of several ways of scoring answers the first counts (`whole` before `first`)."""
    asked = ChoicesSpec(data=spec.data, runs=[run.id for run in runs], group_by=spec.group_by, seed=spec.seed)
    found: dict[tuple[str, str, str], Scored] = {}
    for one in read(store, asked, progress):
        if spec.labels is None or one.given.label.name in spec.labels:
            found.setdefault((one.given.run.id, one.given.data, one.given.label.name), one)
    families = []
    for (_, data, label), one in found.items():
        others = [
            other
            for (_, *place), other in found.items()
            if place == [data, label] and is_adapted(other.given.run, one.given.run)
        ]
        if others:
            families.append(_together(one, others, spec))
    return families


def is_adapted(run: Run, base: Run) -> bool:
    """Tell whether a run is another one with an adapter, and nothing else changed."""
    own, other = dict(run.spec), dict(base.spec)
    return own.pop("adapter", None) is not None and other.pop("adapter", None) is None and own == other


def _together(base: Scored, adapted: Sequence[Scored], spec: CompareSpec) -> Family:
    """Keep the rows that all have."""
    common = set(base.given.rows.tolist()).intersection(*(one.given.rows.tolist() for one in adapted))
    kept = [one.take(np.isin(one.given.rows, list(common))) for one in (base, *adapted)]
    resamples = bootstrap.draw(kept[0].given.folds.groups, spec.bootstrap, spec.seed)
    return Family(kept[0], kept[1:], resamples)


def _systems(store: Store, family: Family, probes: pl.DataFrame) -> Iterator[Row]:
    """Yield the table of systems."""
    base = family.base
    last = base.layers.index(max(base.layers))
    own = base.right(last)
    for one in (base, *family.adapted):
        key = family.key(one.given.run, group=MODEL, layer=one.layers[last])
        yield from _system(family, key, one.right(last), None if one is base else own)
        validated = adapter_grid.settings(store, one.given.run).get("validation") or {}
        if "accuracy" in validated:
            yield from tables.row(key, "validation_accuracy", validated["accuracy"], validated["n"])
            yield from tables.row(key, "validation_nll", validated["answer_nll"], validated["n"])
    for name, right in _baselines(family, probes):
        yield from _system(family, family.key(base.given.run, group=name), right, own)
    for one in (base, *family.adapted):
        here = _probes_of(family, one, probes).filter(layer=max(base.layers), site="resid")
        for (pooling,), lines in here.group_by("pooling", maintain_order=True):
            read = _aligned(lines, base)
            if read is not None:
                key = family.key(one.given.run, group=f"{PROBE} {pooling}", layer=max(base.layers))
                yield from _system(family, key, read, own)


def _system(family: Family, key: Row, right: Bools, base: Bools | None) -> Iterator[Row]:
    n = len(right)
    yield from _row(key, "accuracy", _mean(right, family.resamples), n)
    if base is None:
        return
    key = {**key, "other_run": family.base.given.run.id}
    yield from _row(key, "accuracy_minus_base", paired.difference(right, base, family.resamples), n)
    test = paired.mcnemar(right, base)
    for name, value in (("only_right", test.first), ("only_base_right", test.second), ("mcnemar_p", test.p)):
        yield from tables.row(key, name, value, n)


def _baselines(family: Family, probes: pl.DataFrame) -> Iterator[tuple[str, Bools]]:
    """Yield which rows the systems without the model's layers have right; layer 0's mean is an embedding of words."""
    base = family.base
    counts = np.bincount(base.fitted, minlength=len(base.names)) if len(base.fitted) else None
    if counts is not None:
        yield "majority", np.asarray(base.given.y == counts.argmax())
    own = probes.filter(run=base.given.run.id, data=base.given.data, label=base.given.label.name)
    for name, lines in (
        ("tf-idf", own.filter(group="tf-idf")),
        (EMBEDDING, own.filter(pl.col("group").is_null()).filter(layer=0, site="resid", pooling=_MEAN)),
    ):
        known = _aligned(lines, base)
        if known is not None:
            yield name, known


def _probes_of(family: Family, one: Scored, probes: pl.DataFrame) -> pl.DataFrame:
    """Return what the probes of a run got right, by pooling and layer."""
    given = family.base.given
    own = probes.filter(run=one.given.run.id, data=given.data, label=given.label.name)
    return own.filter(pl.col("group").is_null(), pl.col("layer").is_not_null())


def _aligned(lines: pl.DataFrame, base: Scored) -> Bools | None:
    """Return which of the base's rows are right; None where one is not among the lines."""
    known = dict(lines.select("row", "value").iter_rows())
    rows = base.given.rows.tolist()
    return np.array([known[row] == 1 for row in rows]) if all(row in known for row in rows) else None


def _by_layer(store: Store, family: Family, probes: pl.DataFrame, pool: ThreadPoolExecutor, seed: int) -> Iterator[Row]:
    """Yield adapted minus base by layer: answers, probes, states, entropy."""
    base = family.base
    entropies = _entropies(store, base.given.run)
    for one in family.adapted:
        run = {"other_run": base.given.run.id}
        for index, layer in enumerate(base.layers):
            found = paired.difference(one.right(index), base.right(index), family.resamples)
            key = family.key(one.given.run, group=CHOICES, layer=layer, position="last@prompt", **run)
            yield from _row(key, "choice_accuracy_minus_base", found, len(base.given.y))
        yield from _probe_gaps(family, one, probes)
        yield from _entropy_gaps(family, one, _entropies(store, one.given.run), entropies)
        yield from _similarities(store, family, one, pool, seed)


def _probe_gaps(family: Family, one: Scored, probes: pl.DataFrame) -> Iterator[Row]:
    mine, theirs = _probes_of(family, one, probes), _probes_of(family, family.base, probes)
    places = ["site", "pooling", "layer"]
    for values, lines in mine.group_by(places, maintain_order=True):
        place = dict(zip(places, values))
        right, own = _aligned(lines, family.base), _aligned(theirs.filter(**place), family.base)
        if right is not None and own is not None:
            key = family.key(one.given.run, group=PROBE, other_run=family.base.given.run.id, **place)
            found = paired.difference(right, own, family.resamples)
            yield from _row(key, "probe_accuracy_minus_base", found, len(right))


def _entropies(store: Store, run: Run) -> dict[int, dict[str, float]]:
    """Return the entropy of the lens at the prompt's last token, by layer and sample."""
    frame = captured.lens(store, run, "last@prompt", ["entropy"])
    return {
        int(layer): dict(own.select("sample_id", "entropy").iter_rows())
        for (layer,), own in frame.group_by("layer", maintain_order=True)
    }


def _entropy_gaps(
    family: Family, one: Scored, mine: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]
) -> Iterator[Row]:
    ids = family.base.given.sample_ids.tolist()
    for layer in sorted(mine.keys() & theirs.keys()):
        if all(name in mine[layer] and name in theirs[layer] for name in ids):
            first, second = (np.array([each[layer][name] for name in ids]) for each in (mine, theirs))
            found = paired.difference(first, second, family.resamples)
            where = {"group": LENS, "layer": layer, "position": "last@prompt", "other_run": family.base.given.run.id}
            yield from _row(family.key(one.given.run, **where), "entropy_minus_base", found, len(ids))


def _similarities(store: Store, family: Family, one: Scored, pool: ThreadPoolExecutor, seed: int) -> Iterator[Row]:
    """Yield how alike the states of the distinct samples are, by pooling and layer; 1 is the same up to a rotation."""
    base, run = family.base.given, one.given.run
    # In random order, since intervals leave out neighbours in turn.
    ids = np.random.default_rng(seed).permutation(np.unique(base.sample_ids))
    held = {(feature.site, feature.pooling): feature.layers for feature in store.features(base.run)}
    places = [
        {"site": feature.site, "pooling": feature.pooling, "layer": layer}
        for feature in store.features(run)
        if not one_row_a_token(feature.pooling)
        for layer in feature.layers
        if layer in held.get((feature.site, feature.pooling), ())
    ]

    def similarity(place: dict[str, Any]) -> tuple[Cka | None, int]:
        sets = [store.matrix(which, **place) for which in (run, base.run)]
        kept = ids[np.isin(ids, np.intersect1d(sets[0].sample_ids, sets[1].sample_ids))]
        states = [one.values[np.searchsorted(one.sample_ids, kept)] for one in sets]
        return (cka(states, [True], None)[0] if len(kept) >= FEWEST else None), len(kept)

    for place, (found, n) in zip(places, pool.map(similarity, places), strict=True):
        if found is not None:
            key = {**family.key(run, group=STATES, other_run=base.run.id, **place), "label": None}
            ends = (None if np.isnan(end[0, 1]) else float(end[0, 1]) for end in (found.low, found.high))
            yield from tables.row(key, "cka_with_base", float(found.value[0, 1]), n, *ends)


def _grid(store: Store, family: Family) -> Iterator[Row]:
    """Yield the cells of the grid of ranks and alphas, and what matters in it."""
    last = family.base.layers.index(max(family.base.layers))
    accuracies = [(one.given.run, float(one.right(last).mean())) for one in family.adapted]
    for metric, group, found in adapter_grid.summary(store, accuracies):
        key = family.key(family.base.given.run, group=group)
        yield from tables.row(key, metric, found.value, found.n, found.low, found.high)


def _mean(values: Bools, resamples: Resamples) -> Estimate:
    wide = values.astype(np.float64)
    return bootstrap.estimate(lambda weights: weighted_mean(wide, weights), resamples)


def _row(key: Row, metric: str, found: Estimate, n: int) -> list[Row]:
    return tables.row(key, metric, found.value, n, found.low, found.high)
