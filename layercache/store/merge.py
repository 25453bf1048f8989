"""Joins stores that were written on several machines.

A run is the same wherever its hash is the same, whatever it is called. Everything is copied whole or not at
all, byte for byte, and what is there already stays, so a merge can be stopped and run again, and running it
twice changes nothing. A sample that two shards hold counts once, by the format's own rule.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from layercache.errors import StoreError
from layercache.store import manifest, reader, results, rows, sequence
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
    beside_run,
    read_json,
    run_id,
)
from layercache.store.publish import (
    copy_file,
    make_folder,
    one_line_errors,
    place_file,
    publish_folder,
    staging,
    write_file,
)
from layercache.store.reader import Store
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


def merge(source: Path, target: Path, note: Callable[[str], None] = lambda text: None) -> Merged:
    """Copy into `target` what `source` holds and it lacks.

    Args:
        source: a store; only read.
        target: a store, or where to make one.
        note: is told of every run as it is done.

    Raises:
        StoreError: a store cannot be read or written, a shard of the source is damaged, or a run of both has
            other layers in each.
    """
    check([source], target)
    opened, merged = reader.open(source), Merged(source)
    with one_line_errors(target):
        make_folder(target)
        renamed = set()
        for run in opened.runs():
            found = _run(run, target, merged)
            if found.id != run.id:
                renamed.add(run.id)
            _shards(opened, run, found, merged)
            for path in beside_run(run):
                _named_file(path, found.path / path.name, target, merged)
            _rows(run, found, merged)
            note(f"{run.id}: done")
        _sequenced(source / RECIPES, target / RECIPES, "json", target, merged)
        _results(source, target, renamed, merged)
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


def _shards(opened: Store, run: Run, found: Run, merged: Merged) -> None:
    run_sha256 = file_sha256(found.path / RUN_FILE)
    for condition in opened.conditions(run):
        folder = found.path / f"{CONDITION}{condition}"
        counting = reader.open(found.store).shards(found, condition)
        gone = {name for shard in counting for name in shard.replaces}
        for shard in opened.shards(run, condition):
            if shard.name in gone or (folder / f"{SHARD}{shard.name}" / MANIFEST).exists():
                merged.there += 1
            else:
                _shard(shard, run, found, run_sha256, merged)


def _shard(shard: ShardInfo, run: Run, found: Run, run_sha256: str, merged: Merged) -> None:
    """Copy a shard, after a look at its names and sizes; its bytes are checked as they are copied."""
    problems = shard_problems(shard.path, run, deep=False)
    if problems:
        raise StoreError(_damaged(f"{problems[0]}", run))
    final = found.path / f"{CONDITION}{shard.condition}" / f"{SHARD}{shard.name}"
    with staging(found.store) as folder:
        for name, info in shard.files.items():
            if copy_file(shard.path / name, folder / name) != info.sha256:
                raise StoreError(_damaged(f"{shard.path / name}: its sha256 is not the manifest's", run))
        if shard.run_sha256 == run_sha256:
            copy_file(shard.path / MANIFEST, folder / MANIFEST)
        else:
            # The model goes by another name here, and so its `run.json` has other bytes.
            value = {**read_json(shard.path / MANIFEST), "run_sha256": run_sha256}
            value.pop("sha256")
            write_file(folder / MANIFEST, manifest.seal({**value, "sha256": ""}))
        published = publish_folder(folder, final)
    merged.shards += published
    merged.there += not published
    merged.bytes += sum(info.bytes for info in shard.files.values()) if published else 0


def _damaged(what: str, run: Run) -> str:
    return f"{what}: run `layercache verify --deep --repair` on {run.store}, then this command again"


def _rows(run: Run, found: Run, merged: Merged) -> None:
    """Copy rows files; where both stores have rows of a data set whose answers came in parts, write the rows of both."""
    before = sequence.newest(sequence.files(found.path / ROWS, "parquet"))
    together: dict[str, rows.Joined] = {}
    for name, file in sequence.newest(sequence.files(run.path / ROWS, "parquet")).items():
        if name in before and (joined := rows.joined(before[name].path, file.path)) is not None:
            together[name] = joined
    _sequenced(run.path / ROWS, found.path / ROWS, "parquet", found.store, merged, set(together))
    for joined in together.values():
        merged.files += rows.put_joined(found, joined)


def _sequenced(
    source: Path, target: Path, suffix: str, store: Path, merged: Merged, expected: Container[str] = ()
) -> None:
    """Copy files of which the newest counts; of equally new ones the larger name, here as anywhere.

    Args:
        expected: names of which it is known that both stores have another newest file.
    """
    known = sequence.newest(sequence.files(target, suffix))
    for file in sequence.files(source, suffix):
        _named_file(file.path, target / file.path.name, store, merged)
    now = sequence.newest(sequence.files(target, suffix))
    for name, given in sequence.newest(sequence.files(source, suffix)).items():
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


def _results(source: Path, target: Path, renamed: set[str], merged: Merged) -> None:
    """Copy results; not those of runs that are called otherwise here, since their tables name the run."""
    for info in results.listing(source):
        if renamed & {name.partition("/")[0] for name in info.inputs}:
            merged.notes.append(f"{info.path.name} left out: its run is called otherwise here; analyze makes it again")
            continue
        final = target / RESULTS / info.path.name
        if final.exists():
            continue
        with staging(target) as folder:
            for path in sorted(info.path.iterdir()):
                copy_file(path, folder / path.name)
            merged.results += publish_folder(folder, final)
