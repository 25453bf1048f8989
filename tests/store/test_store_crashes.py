"""Whatever call to the file system is the last one: the store opens, is whole, and the same command ends the work."""

import itertools
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from crash_points import KilledError, failing_at
from store_builder import LAST, LAYERS, MEAN, make_run, put_shard
from test_store_merge import put_films, put_result

from layercache.errors import StoreError
from layercache.store import cleanup, compact, reader, recipes, removal, repair, results
from layercache.store.layout import Run
from layercache.store.merge import merge
from layercache.store.verify import verify


def seen(store: Path) -> dict[str, object]:
    """What readers see of a store, in whatever shards it lies."""
    opened = reader.open(store)
    found: dict[str, object] = {f"result {info.path.name}": True for info in results.listing(store)}
    found |= {f"recipe {index}": recipe for index, recipe in enumerate(recipes.load_all(store))}
    for run in opened.runs():
        found[run.id] = [info.path.name for info in opened.data(run)]
        for condition in opened.conditions(run):
            for site, pooling, layers in opened.features(run, condition):
                for layer in layers:
                    matrix = opened.matrix(run, layer, pooling, site=site, condition=condition)
                    for name, values in zip(matrix.sample_ids, matrix.values, strict=True):
                        found[f"{run.id} {condition} {pooling} {layer} {name}"] = values.tobytes()
    return found


def overlapping(store: Path) -> Run:
    run = make_run(store)
    put_shard(run, range(3), {MEAN: [0, 1]}, salt=1)
    put_shard(run, range(2, 3), {MEAN: [1, 2], LAST: [0]}, salt=2)
    put_films(run, [1.0, 2.0])
    recipes.save(store, {"name": "movies"})
    put_result(store, run, 0.5)
    return run


def compacted(store: Path) -> None:
    overlapping(store)
    compact_all(store)


def compact_all(store: Path) -> None:
    opened = reader.open(store)
    for run in opened.runs():
        compact.compact(opened, run, "clean")


def damaged(store: Path) -> None:
    run = overlapping(store)
    put_shard(run, range(7, 9), {MEAN: [0]})
    whole = next(
        path for path in run.path.glob("*/shard=*/hidden.parquet") if not (path.parent / "tokens.parquet").exists()
    )
    whole.write_bytes(whole.read_bytes()[:-1])


def merge_other(store: Path) -> None:
    merge(store.parent / "other", store)


def remove_run(store: Path) -> None:
    opened = reader.open(store)
    for run in opened.runs():
        removal.carry_out(store, removal.plan(opened, run))


class Case(NamedTuple):
    """A piece of work: what the store is before, what is done, and what a reader may see on the way."""

    before: Callable[[Path], object]
    act: Callable[[Path], object]
    allowed: Callable[[dict[str, object], dict[str, object], dict[str, object]], bool]


def growing(now: dict[str, object], old: dict[str, object], new: dict[str, object]) -> bool:
    return set(now) - set(old) <= set(new) and all(now[key] in (old.get(key), new.get(key)) for key in now)


def shrinking(now: dict[str, object], old: dict[str, object], new: dict[str, object]) -> bool:
    return new.items() <= now.items() <= old.items()


def same(now: dict[str, object], old: dict[str, object], new: dict[str, object]) -> bool:
    return now == old == new


CASES = {
    "compact": Case(overlapping, compact_all, same),
    "gc": Case(compacted, lambda store: cleanup.collect(store, older_than=0), same),
    "merge": Case(lambda store: put_shard(make_run(store), range(3), {MEAN: LAYERS}), merge_other, growing),
    "rm": Case(overlapping, remove_run, shrinking),
}


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        *((name, True) for name in CASES),
        *(
            pytest.param(name, False, marks=pytest.mark.torture if name in {"compact", "merge"} else ())
            for name in CASES
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "killed" if value else "error",
)
def test_a_stop_at_any_call_leaves_a_whole_store(tmp_path: Path, name: str, dead: bool) -> None:
    case = CASES[name]
    overlapping(tmp_path / "other")
    base = tmp_path / "base"
    case.before(base)
    done = shutil.copytree(base, tmp_path / "done")
    case.act(done)
    old, new = seen(base), seen(done)
    for call in itertools.count():
        store = shutil.copytree(base, tmp_path / "try")
        with failing_at(call, dead=dead) as counter, suppress(StoreError, KilledError):
            case.act(store)
        if next(counter) <= call:
            break
        now = seen(store)
        assert case.allowed(now, old, new), f"neither old nor new after call {call}"
        assert verify(store) == []
        case.act(store)
        assert seen(store) == new
        if dead:
            cleanup.collect(store, older_than=0)
            assert list((store / ".tmp").iterdir()) == [], "gc removes what a killed writer left"
            assert verify(store, deep=True) == []
        shutil.rmtree(store)
    assert call > 8


@pytest.mark.parametrize("dead", [False, True], ids=["error", "killed"])
def test_a_stop_at_any_call_of_repair_loses_nothing(tmp_path: Path, dead: bool) -> None:
    base = tmp_path / "base"
    damaged(base)
    (problem,) = verify(base)
    content = {path.read_bytes() for path in problem.path.parent.iterdir()}
    for call in itertools.count():
        store = shutil.copytree(base, tmp_path / "try")
        with failing_at(call, dead=dead) as counter, suppress(StoreError, KilledError):
            repair.repair(store, verify(store))
        if next(counter) <= call:
            break
        repair.repair(store, verify(store))
        assert verify(store, deep=True) == []
        assert len(seen(store)) > 2
        assert {path.read_bytes() for path in (store / ".quarantine").rglob("*") if path.is_file()} == content
        shutil.rmtree(store)
    assert call > 4
