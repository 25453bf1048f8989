"""Joins stores that were written on several machines.

A run is the same wherever its hash is the same, whatever it is called. Everything is copied whole or not at
all, byte for byte, and what is there already stays, so a merge can be stopped and run again, and running it
twice changes nothing. A sample that two shards hold counts once, by the format's own rule.
"""

from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from layercache.errors import StoreError
from layercache.progress import Patient, Progress, in_bytes
from layercache.store import manifest, mirror, outstanding, pieces, reader, rows, sequence
from layercache.store.files import sha256 as file_sha256
from layercache.store.layout import (
    BESIDE_RUN,
    CONDITION,
    MANIFEST,
    RECIPES,
    RESULTS,
    ROWS,
    RUN,
    RUN_FILE,
    SHARD,
    Run,
    ShardInfo,
    run_id,
)
from layercache.store.outstanding import Plan, RunPlan, Step
from layercache.store.publish import (
    copy_file,
    make_folder,
    one_line_errors,
    place_file,
    publish_folder,
    staging,
    write_file,
)
from layercache.store.results import ResultInfo
from layercache.store.selection import EVERYTHING, Selection
from layercache.store.sequence import SequencedFile
from layercache.store.shard_checks import shard_problems
from layercache.store.writer import check_writable

_ADVICE = {"parquet": "; to have the rows of both, extract the whole data once more, which needs no forward pass"}


@dataclass
class Merged:
    """What a merge copied from one store."""

    source: Path
    runs: int = 0
    """Runs that were not there before."""
    shards: int = 0
    there: int = 0
    """Shards that were there already, by name."""
    files: int = 0
    """Rows files, recipes and files beside a `run.json`."""
    results: int = 0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


def check(sources: Iterable[Path], target: Path) -> None:
    """Refuse to begin where a store cannot be read or the target cannot be written.

    Raises:
        StoreError: as `merge`.
    """
    check_writable(target)
    for source in sources:
        reader.open(source)
        if target.exists() and target.resolve() == source.resolve():
            raise StoreError(f"{source} and {target} are the same store: give another --store")


def merge(
    source: Path,
    target: Path,
    progress: Progress | None = None,
    *,
    asked: Selection = EVERYTHING,
) -> Merged:
    """Copy into `target` what `source` holds and it lacks.

    Args:
        source: a store; only read.
        target: a store, or where to make one.
        progress: where to report; every run that is done is a note.
        asked: what to copy; of shards that are wanted in part new ones are made.

    Raises:
        StoreError: a store cannot be read or written, a shard of the source is damaged, a run of both has
            other layers in each, or there is nothing of what is asked for.
    """
    check([source], target)
    progress = progress or Progress()
    plan = outstanding.plan(source, target, asked)
    with in_bytes(Patient(progress), f"merge {mirror.name(source)}", outstanding.size(plan).bytes) as moved:
        return carry_out(plan, progress.note, moved=moved)


def carry_out(
    plan: Plan,
    note: Callable[[str], None] = lambda text: None,
    *,
    moved: Callable[[int], None] = lambda nbytes: None,
    ready: Callable[[Step], AbstractContextManager[None]] = lambda step: nullcontext(),
) -> Merged:
    """Copy what a plan lists.

    Args:
        plan: what the target lacks.
        note: is told of every run as it is done.
        moved: is told of bytes as they have been copied; they add up to about `outstanding.size`.
        ready: is entered around every step, and makes the files there that it reads.

    Raises:
        StoreError: as `merge`.
    """
    source, target, merged = plan.source, plan.target, Merged(plan.source)
    with one_line_errors(target):
        make_folder(target)
        renamed = set()
        for one in plan.runs:
            found = _run(one.run, target, merged)
            if found.id != one.run.id:
                renamed.add(one.run.id)
            merged.there += one.there
            run_sha256 = file_sha256(found.path / RUN_FILE)
            for step in one.steps:
                with ready(step):
                    if step.piece is None:
                        _shard(step.shards[0], one.run, found, run_sha256, merged, moved)
                    else:
                        _piece(step, found, merged)
                        moved(step.size.bytes)
            for path in one.heads:
                _named_file(path, found.path / path.name, target, merged)
                moved(path.stat().st_size)
            _rows(one, found, merged)
            moved(sum(file.path.stat().st_size for file in one.rows))
            note(f"{one.run.id}: done")
        _sequenced(plan.recipes, source / RECIPES, target / RECIPES, "json", target, merged)
        moved(sum(file.path.stat().st_size for file in plan.recipes))
        _results(plan.results, target, renamed, merged)
        moved(sum(path.stat().st_size for info in plan.results for path in info.path.iterdir()))
    return merged


def _run(run: Run, target: Path, merged: Merged) -> Run:
    """Find the run in the target, or put it there."""
    there = {one.hash: one for one in reader.open(target).runs()}
    if run.hash in there:
        found = there[run.hash]
        for name in ("width", "final_layer", "layers"):
            if getattr(found, name) != getattr(run, name):
                raise StoreError(
                    f"{run.path} and {found.path} have the same settings but another {name.replace('_', ' ')}: one of"
                    " them was written by another program; merge the others without it"
                )
        return found
    ids = [run.id, *(run_id(run.model, run.hash, length) for length in (8, 16, 64))]
    path = next(path for path in (target / f"{RUN}{name}" for name in ids) if not path.exists())
    with staging(target) as folder:
        copy_file(run.path / RUN_FILE, folder / RUN_FILE)
        merged.runs += publish_folder(folder, path)
    return next(one for one in reader.open(target).runs() if one.hash == run.hash)


def _shard(
    shard: ShardInfo, run: Run, found: Run, run_sha256: str, merged: Merged, moved: Callable[[int], None]
) -> None:
    """Copy a shard, after a look at its names and sizes; its bytes are checked as they are copied."""
    problems = shard_problems(shard.path, run, deep=False)
    if problems:
        raise StoreError(_damaged(f"{problems[0]}", run))
    final = found.path / f"{CONDITION}{shard.condition}" / f"{SHARD}{shard.name}"
    with staging(found.store) as folder:
        for name, info in shard.files.items():
            if copy_file(shard.path / name, folder / name) != info.sha256:
                raise StoreError(_damaged(f"{shard.path / name}: its sha256 is not the manifest's", run))
            moved(info.bytes)
        write_file(folder / MANIFEST, manifest.of_run(shard, run_sha256))
        published = publish_folder(folder, final)
    merged.shards += published
    merged.there += not published
    merged.bytes += sum(info.bytes for info in shard.files.values()) if published else 0


def _piece(step: Step, found: Run, merged: Merged) -> None:
    """Make a shard of a piece; every row of it is checked before it appears."""
    assert step.piece is not None
    assert step.known is not None
    shard = pieces.filled(step.known, step.piece, found, pieces.taken(step.shards))
    merged.bytes += shard.nbytes
    name = shard.publish(check=True)
    merged.shards += name is not None


def _damaged(what: str, run: Run) -> str:
    return f"{what}: run `layercache verify --deep --repair` on {run.store}, then this command again"


def _rows(one: RunPlan, found: Run, merged: Merged) -> None:
    """Copy rows files; where both stores have rows of a data set whose answers came in parts, write the rows of both."""
    before = sequence.newest_rows(found.path)
    together: dict[str, rows.Joined] = {}
    for name, file in sequence.newest_rows(one.run.path).items():
        if name in one.data and name in before:
            # What is here already may not have been brought near again: of a repository elsewhere it has no bytes.
            here = found.path / ROWS / file.path.name
            joined = rows.joined(before[name].path, here if here.exists() else file.path)
            if joined is not None:
                together[name] = joined
    _sequenced(one.rows, one.run.path / ROWS, found.path / ROWS, "parquet", found.store, merged, set(together))
    for joined in together.values():
        merged.files += rows.put_joined(found, joined)


def _sequenced(
    files: Iterable[SequencedFile],
    source: Path,
    target: Path,
    suffix: str,
    store: Path,
    merged: Merged,
    expected: Container[str] = (),
) -> None:
    """Copy files of which the newest counts; of equally new ones the larger name, here as anywhere.

    Args:
        expected: names of which it is known that both stores have another newest file.
    """
    known = sequence.newest(sequence.files(target, suffix))
    names = {file.name for file in files}
    for file in files:
        _named_file(file.path, target / file.path.name, store, merged)
    now = sequence.newest(sequence.files(target, suffix))
    for name, given in sequence.newest(sequence.files(source, suffix)).items():
        if name not in names and name not in known:
            continue
        before, counts = known.get(name, given), now[name]
        if before.path.name != given.path.name and name not in expected:
            other = before if counts.path.name == given.path.name else given
            what = "rows of data set" if suffix == "parquet" else "recipe"
            merged.notes.append(
                f"both stores hold {what} {name}, and not the same: {counts.path.name} counts, not"
                f" {other.path.name}{_ADVICE.get(suffix, '')}"
            )


def _named_file(path: Path, final: Path, store: Path, merged: Merged) -> None:
    """Copy a file whose name ends in the first digits of its sha256."""
    if final.exists():
        return
    with staging(store) as folder:
        sha256 = copy_file(path, folder / path.name)
        match = BESIDE_RUN.fullmatch(path.name)
        if not sha256.startswith(match["sha"] if match else path.stem[-16:]):
            raise StoreError(f"{path}: its sha256 is not the one in its name: run `layercache verify --repair`")
        place_file(folder / path.name, final)
    merged.files += 1
    merged.bytes += final.stat().st_size


def _results(infos: Iterable[ResultInfo], target: Path, renamed: set[str], merged: Merged) -> None:
    """Copy results; not those of runs that are called otherwise here, since their tables name the run."""
    for info in infos:
        if renamed & {name.partition("/")[0] for name in info.inputs}:
            merged.notes.append(f"{info.path.name} left out: its run is called otherwise here; analyze makes it again")
            continue
        with staging(target) as folder:
            for path in sorted(info.path.iterdir()):
                copy_file(path, folder / path.name)
            merged.results += publish_folder(folder, target / RESULTS / info.path.name)
