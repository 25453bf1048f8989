"""What of a store another one lacks: shards as they are, and pieces of shards where only a part is asked for.

A shard that is wanted as it is, is known by its name; a piece by what it holds: of an (output, layer, sample) that the
target holds in any shard, nothing is brought again. Shards that share samples are looked at together, so that what
counts in the source is what counts in the target.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from layercache.store import pieces, reader, results, selection, sequence
from layercache.store.compact import SHARD_BYTES
from layercache.store.files import open_parquet
from layercache.store.holdings import Holdings, Outputs
from layercache.store.layout import (
    CONDITION,
    MANIFEST,
    RECIPES,
    RESULTS,
    ROWS,
    SHARD,
    Run,
    ShardInfo,
    beside_run,
)
from layercache.store.pieces import Piece, Shards
from layercache.store.reader import Store
from layercache.store.results import ResultInfo
from layercache.store.row_groups import Bounds, bounds_of, groups_of, may_hold, stored_bytes
from layercache.store.selection import Selection
from layercache.store.sequence import SequencedFile


class Size(NamedTuple):
    """Bytes of files and rows of tables. Of pieces as row groups' statistics tell: what is read, not what is written."""

    bytes: int
    rows: int

    def __add__(self, other: object) -> "Size":
        """Add two sizes."""
        assert isinstance(other, Size)
        return Size(self.bytes + other.bytes, self.rows + other.rows)


@dataclass(frozen=True)
class Step:
    """A shard to bring over as it is, or a piece to make a new one of."""

    shards: list[ShardInfo]
    """The shard, or those that the piece is read of."""
    piece: Piece | None
    known: Shards | None
    """What the numbers of a piece's sources mean."""

    @cached_property
    def size(self) -> Size:
        """How much is read, from manifests and the metadata of files."""
        total = Size(0, 0)
        for shard, table, outputs in self.tables():
            info = shard.files[f"{table}.parquet"]
            of = Size(info.bytes, info.rows) if outputs is None else _part(shard, table, outputs)
            if self.piece is not None and self.known is not None:
                ids = self.known.ids[self.known.shards.index(shard)]
                share = len(set(ids) & set(self.piece.sample_ids)) / max(1, len(ids))
                of = Size(round(of.bytes * share), round(of.rows * share))
            total += of
        return total

    def tables(self) -> Iterator[tuple[ShardInfo, str, Outputs | None]]:
        """Yield what is read: a shard, a table of it, and the outputs of which (None: all, the file as it is)."""
        for shard in self.shards:
            outputs = None if self.piece is None else pieces.narrowed(shard, self.piece.outputs)
            for name in shard.files:
                table = Path(name).stem
                if pieces.is_read(table, outputs):
                    yield shard, table, outputs


@dataclass
class RunPlan:
    """What of a run is lacking."""

    run: Run
    steps: list[Step] = field(default_factory=list)
    there: int = 0
    """Shards that are there already, by name; where a part is asked for pieces of which nothing is lacking."""
    heads: list[Path] = field(default_factory=list)
    data: set[str] = field(default_factory=set)
    """Data sets whose rows are asked for."""
    rows: list[SequencedFile] = field(default_factory=list)
    """Their files that are not there."""


@dataclass
class Plan:
    """What a store lacks of another one."""

    source: Path
    target: Path
    runs: list[RunPlan] = field(default_factory=list)
    new_runs: int = 0
    recipes: list[SequencedFile] = field(default_factory=list)
    results: list[ResultInfo] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """The files outside shards and results."""
        of_runs = [path for one in self.runs for path in (*one.heads, *(file.path for file in one.rows))]
        return [*of_runs, *(file.path for file in self.recipes)]


def plan(source: Path, target: Path, asked: Selection = selection.EVERYTHING) -> Plan:
    """List what of a store is asked for and another one lacks.

    Args:
        source: a store.
        target: a store, or where there is none yet.
        asked: what is asked for.

    Raises:
        StoreError: a store cannot be read, or there is nothing of what is asked for.
    """
    opened = reader.open(source)
    there = reader.open(target) if target.exists() else None
    found = Plan(source, target)
    known = {} if there is None else {run.hash: run for run in there.runs()}
    runs = selection.find_runs(opened, asked)
    for run in runs:
        here = known.get(run.hash)
        found.new_runs += here is None
        one = RunPlan(run)
        samples = selection.samples_of(opened, run, asked)
        for condition in selection.chosen(asked.conditions, opened.conditions(run)) if asked.shards else []:
            _condition(opened, there, one, here, condition, asked, samples)
        if asked.beside("heads"):
            one.heads = [path for path in beside_run(run) if here is None or not (here.path / path.name).exists()]
        if asked.beside("rows"):
            files = [
                file for file in sequence.files(run.path / ROWS, "parquet") if not asked.data or file.name in asked.data
            ]
            one.data = {file.name for file in files}
            one.rows = [file for file in files if here is None or not (here.path / ROWS / file.path.name).exists()]
        found.runs.append(one)
    if asked.beside("recipes"):
        files = sequence.files(source / RECIPES, "json")
        found.recipes = [file for file in files if not (target / RECIPES / file.path.name).exists()]
    if asked.beside("results"):
        found.results = _results(source, target, {run.id for run in runs}, all_runs=not asked.runs)
    return found


def size(plan: Plan) -> Size:
    """Say how much there is to bring over; opens the files of which only a part is wanted."""
    total = Size(0, 0)
    for one in plan.runs:
        for step in one.steps:
            total += step.size
    nbytes = sum(path.stat().st_size for path in plan.files)
    nbytes += sum(path.stat().st_size for info in plan.results for path in info.path.iterdir())
    return total + Size(nbytes, 0)


def _part(shard: ShardInfo, table: str, outputs: Outputs) -> Size:
    """Measure the row groups of a file that hold rows of the outputs; of shared ones a share."""
    total = Size(0, 0)
    with open_parquet(shard.path / f"{table}.parquet") as file:
        for number in groups_of(file.metadata, table, outputs):
            group = bounds_of(file.metadata.row_group(number))
            share = 1.0 if table == "samples" else _pairs(outputs, table, group) / _pairs(shard.outputs, table, group)
            rows = round(file.metadata.row_group(number).num_rows * share)
            total += Size(round(stored_bytes(file.metadata, [number]) * share), rows)
    return total


def _pairs(outputs: Outputs, table: str, bounds: Bounds) -> int:
    """Count the outputs and layers that a row group may hold."""
    pairs = [(output, layer) for output, layers in outputs.items() for layer in ([None] if layers is None else layers)]
    return sum(may_hold(bounds, table, {output: None if layer is None else [layer]}) for output, layer in pairs)


def _condition(
    opened: Store,
    there: Store | None,
    one: RunPlan,
    here: Run | None,
    condition: str,
    asked: Selection,
    samples: frozenset[str] | None,
) -> None:
    """Add the steps of a condition. A shard that replaces others comes last: they go when it appears."""
    shards = opened.shards(one.run, condition)
    counting = [] if there is None or here is None else there.shards(here, condition)
    gone = {name for shard in counting for name in shard.replaces}

    def is_there(shard: ShardInfo) -> bool:
        folder = None if here is None else here.path / f"{CONDITION}{condition}" / f"{SHARD}{shard.name}"
        return shard.name in gone or (folder is not None and (folder / MANIFEST).exists())

    if asked.whole_shards:
        steps = [Step([shard], None, None) for shard in shards if not is_there(shard)]
        one.there += len(shards) - len(steps)
        one.steps += sorted(steps, key=lambda step: bool(step.shards[0].replaces))
        return
    known = pieces.look_at(one.run, condition, shards)
    held = Holdings({}, []) if there is None or here is None else there.held(here, condition, counting)
    for group in pieces.hanging_together(known):
        if all(_as_it_is(known, index, asked, samples) for index in group):
            # All of them or none: with one left out, another one's rows could count than do in the source.
            lacking = any(held.missing(known.ids[index], shards[index].outputs) for index in group)
            steps = [Step([shards[index]], None, None) for index in group if lacking and not is_there(shards[index])]
            one.there += len(group) - len(steps)
            one.steps += steps
        else:
            _pieces(one, known, group, held, asked, samples)


def _as_it_is(known: Shards, index: int, asked: Selection, samples: frozenset[str] | None) -> bool:
    """Tell whether a shard is wanted whole; one that replaces others would do so in the target, with less in it."""
    shard = known.shards[index]
    every = samples is None or samples.issuperset(known.ids[index])
    return every and bool(shard.outputs) and asked.of(shard.outputs) == shard.outputs and not shard.replaces


def _pieces(
    one: RunPlan, known: Shards, group: list[int], held: Holdings, asked: Selection, samples: frozenset[str] | None
) -> None:
    """Add the steps of shards of which only a part is asked for."""
    for piece in pieces.pieces(known, group, SHARD_BYTES, wanted=asked.wants, samples=samples):
        if piece.outputs:
            lacking = held.missing(piece.sample_ids, piece.outputs)
        elif "samples" in asked.tables:
            lacking = [({}, [name for name in piece.sample_ids if name not in held.holders])]
        else:
            continue
        lacking = [(outputs, ids) for outputs, ids in lacking if ids]
        one.there += not lacking
        for outputs, ids in lacking:
            sources = sorted({index for name in ids for index in known.held.holders[name]})
            one.steps.append(
                Step([known.shards[index] for index in sources], Piece(outputs, sorted(ids), sources), known)
            )


def _results(source: Path, target: Path, runs: set[str], *, all_runs: bool) -> list[ResultInfo]:
    """List the results that the target lacks, of the runs asked for alone."""
    found = [info for info in results.listing(source) if not (target / RESULTS / info.path.name).exists()]
    return [info for info in found if all_runs or {name.partition("/")[0] for name in info.inputs} <= runs]
