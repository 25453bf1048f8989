"""Reads what the analysis looks at: states of a data set's samples by layer, in one random order of the samples.

The order is that of a hash of the seed and the sample's id: the same in every condition and layer, and in every run that
has the sample, so that a choice of samples is the same everywhere, and neighbouring rows are unrelated.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze.quality.estimates import Ints, States
from layercache.errors import AnalysisError
from layercache.recipe import QualitySpec
from layercache.store.layout import CLEAN, Run, digest
from layercache.store.reader import Store
from layercache.store.stored import StoredFeature

_VIEW = re.compile(r"augment-(\d+)(-[0-9a-f]{8})?")
PERTURBED = re.compile(r"(?:repeat|random|truncate)-.*")
"""Names of the conditions that change a prompt by degrees."""


class Stack(NamedTuple):
    """States of the same samples at several layers: `layers[k]` is float32 [n, d], rows in the order of `ids` [n]."""

    ids: npt.NDArray[np.str_]
    layers: dict[int, States]


class Views(NamedTuple):
    """The conditions that hold the views of one way to augment, by number, and what their results' condition is."""

    name: str
    conditions: list[str]


class ViewStates(NamedTuple):
    """States [n, d] of every view of the same samples, `ids` [n], at one layer."""

    ids: npt.NDArray[np.str_]
    states: list[States]


def stack(
    store: Store, run: Run, feature: StoredFeature, ids: set[str], spec: QualitySpec, condition: str = CLEAN
) -> Stack:
    """Read the states of those of some samples that have one at every layer of a feature.

    Raises:
        AnalysisError: a state is infinite or NaN, or no sample has a state at every layer.
        StoreError: a layer is not stored.
    """
    read = {layer: _matrix(store, run, feature, layer, condition) for layer in feature.layers}
    common = chosen(reduce(np.intersect1d, (one_ids for one_ids, _ in read.values())), ids, spec)
    if not len(common):
        raise AnalysisError("no sample has a state at every layer: run `layercache extract` first")
    return Stack(common, {layer: values[np.searchsorted(own, common)] for layer, (own, values) in read.items()})


def views(
    store: Store, run: Run, feature: StoredFeature, layer: int, ids: set[str], spec: QualitySpec, given: Views
) -> ViewStates:
    """Read every view of those of some samples that have all of them at a layer."""
    read = [_matrix(store, run, feature, layer, name) for name in given.conditions]
    common = chosen(reduce(np.intersect1d, (own for own, _ in read)), ids, spec)
    return ViewStates(common, [values[np.searchsorted(own, common)] for own, values in read])


def chosen(stored: npt.NDArray[np.str_], ids: set[str] | None, spec: QualitySpec) -> npt.NDArray[np.str_]:
    """Return those stored ids [n] that are wanted (None: all), in random order, at most `max_samples` of them."""
    wanted = [name for name in stored.tolist() if ids is None or name in ids]
    wanted.sort(key=lambda name: hashlib.blake2b(f"{spec.seed}:{name}".encode(), digest_size=16).digest())
    return np.array(wanted[: spec.max_samples], dtype=str)


def conditions(store: Store, run: Run, spec: QualitySpec) -> list[str]:
    """List the conditions of a run to look at."""
    stored = store.conditions(run)
    if spec.conditions is not None:
        return [name for name in stored if name in spec.conditions]
    return [name for name in stored if name == CLEAN or PERTURBED.fullmatch(name)]


def augmentations(store: Store, run: Run, feature: StoredFeature) -> list[Views]:
    """List the ways to augment whose views hold a feature, each with its views in order.

    Names end in a hash of all parameters, the view's number among them, where one is not at its default: which views
    belong together is then told by the parameters in the shards' provenance.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for name in store.conditions(run):
        match = _VIEW.fullmatch(name)
        held = any((one.site, one.pooling) == (feature.site, feature.pooling) for one in store.features(run, name))
        if match and held:
            found.setdefault(_way(store, run, name, match[2]), []).append((int(match[1]), name))
    return [Views(way, [name for _, name in sorted(own)]) for way, own in sorted(found.items())]


def _way(store: Store, run: Run, name: str, suffix: str | None) -> str:
    if suffix is None:
        return "augment"
    given = store.shards(run, name)[0].provenance.get("condition")
    if not isinstance(given, dict):
        return "augment-other"
    return f"augment-{digest({key: value for key, value in given.items() if key != 'number'})[:8]}"


def view_layers(store: Store, run: Run, feature: StoredFeature, given: Views) -> list[int]:
    """List the layers of a feature that every view holds."""
    stored = [
        set(one.layers)
        for name in given.conditions
        for one in store.features(run, name)
        if (one.site, one.pooling) == (feature.site, feature.pooling)
    ]
    return sorted(set(feature.layers).intersection(*stored))


def samples_of(store: Store, run: Run, data: str) -> set[str]:
    """Return the distinct samples of a data set."""
    return set(store.rows(run, data)["sample_id"].drop_nulls().to_list())


def paired(
    store: Store, runs: tuple[Run, Run], data: str, features: tuple[StoredFeature, StoredFeature], spec: QualitySpec
) -> tuple[dict[int, States], dict[int, States]]:
    """Read the states by layer of two runs, row i of both being of one sample, at most `max_samples` of them.

    Raises:
        AnalysisError: no sample has states in both, or a state is infinite or NaN.
    """
    everyone = spec.model_copy(update={"max_samples": 2**62})
    ids = [chosen(np.array(sorted(samples_of(store, run, data)), dtype=str), None, everyone) for run in runs]
    places = shared(store, runs, ids)
    cut = [set(own[place[: spec.max_samples]].tolist()) for own, place in zip(ids, places)]
    stacks = [stack(store, run, one, some, spec) for run, one, some in zip(runs, features, cut)]
    a, b = shared(store, runs, [one.ids for one in stacks])
    if not len(a):
        raise AnalysisError("no prompt has states in both")
    first, second = stacks
    return {k: x[a] for k, x in first.layers.items()}, {k: x[b] for k, x in second.layers.items()}


def shared(store: Store, runs: tuple[Run, Run], ids: Sequence[npt.NDArray[np.str_]]) -> tuple[Ints, Ints]:
    """Pair the samples of two runs: by id where they have some in common, else, for other tokenizers, by prompt.

    Returns:
        Places of the paired samples in the first and the second of `ids`, int64 [pairs] each, in the order of the first.
    """
    names: list[list[str | None]] = [own.tolist() for own in ids]
    if not set(names[0]) & set(names[1]):
        names = [_prompts(store, run, own.tolist()) for run, own in zip(runs, ids)]
    first, second = ({name: at for at, name in reversed(list(enumerate(own))) if name} for own in names)
    pairs = sorted((at, second[name]) for name, at in first.items() if name in second)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _prompts(store: Store, run: Run, ids: list[str]) -> list[str | None]:
    frame = store.samples(run).select("sample_id", "prompt")
    return (
        pl.DataFrame({"sample_id": ids}, schema={"sample_id": pl.String})
        .join(frame, on="sample_id", how="left", maintain_order="left")["prompt"]
        .to_list()
    )


def _matrix(
    store: Store, run: Run, feature: StoredFeature, layer: int, condition: str
) -> tuple[npt.NDArray[np.str_], States]:
    found = store.matrix(run, layer, feature.pooling, site=feature.site, condition=condition)
    broken = int((~np.isfinite(found.values)).any(axis=1).sum())
    if broken:
        raise AnalysisError(
            f"{run.id}: {broken:,} samples have infinite or NaN states {feature.pooling} at layer {layer}; "
            "choose other layers, or extract in a wider dtype"
        )
    return found.sample_ids, found.values
