"""The stage: what is missing → batches → forward → reduce → shards.

    summary = extract(ModelSpec(model="gpt2"), dataset.load(...), ExtractSpec(), Path("store"), Progress())

The rows are stored first, so that a run that is stopped can be asked about. A second identical call finds
nothing missing, and then the model's weights are not even loaded.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from layercache.dataset import Dataset
from layercache.extract import (
    answers,
    checkpoint,
    estimate,
    head,
    knockout,
    lacking,
    model,
    reference,
)
from layercache.extract.conditions import stage
from layercache.extract.dry_run import by_part, measure, plan_only
from layercache.extract.job import Job, open_run, prepare
from layercache.extract.kept import Kept
from layercache.extract.loop import CHECKED, Loop
from layercache.extract.publish import SHARD_BYTES, SHARD_SECONDS, ShardLimits
from layercache.extract.summary import Summary
from layercache.parts import Part, Work
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.rows import row_frame
from layercache.store import captured, layout, reader, writer
from layercache.store import head as heads
from layercache.store.holdings import Holdings

Published = set[tuple[str, str | None]]
"""Conditions and names of shards."""


def extract(
    model_spec: ModelSpec,
    data: Dataset,
    spec: ExtractSpec,
    store: Path,
    progress: Progress,
    dry_run: bool | Literal["measure"] = False,
    *,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    part: Part | None = None,
    kept: Kept | None = None,
) -> Summary:
    """Store what a model says of a data set; only what the store lacks costs a forward pass.

    Args:
        dry_run: only say what would be done and what it takes; writes nothing and reads no weights but to hash
            them. With `measure` the model is loaded and a few batches are run, to say how long it takes.
        shard_bytes, shard_seconds: a shard is published when either is reached.
        part: run only the samples of this part; rows are stored whole, and what a condition draws is drawn from all.
            What cannot be known before every prompt has its answer is left, and named in `Summary.waiting`.
        kept: holds the model and the samples from one call to the next, for calls that share them.

    Raises:
        ModelError: the model cannot be loaded or read, or fails its self-check.
        DataError: a prompt is too long, or a span is asked for that no prompt has.
        StoreError: the store cannot be written, or the disk cannot hold the run.
    """
    started = time.monotonic()
    writer.check_writable(store)
    job = prepare(model_spec, data, spec, part, Kept() if kept is None else kept)
    for note in job.summary.notes:
        progress.note(note)
    if dry_run:
        groups = plan_only(job, store).groups
        if dry_run == "measure":
            measure(job, groups, progress)
    else:
        _carry_out(job, store, progress, ShardLimits(shard_bytes, shard_seconds))
    job.summary.seconds = time.monotonic() - started
    return job.summary


def plan(
    model_spec: ModelSpec,
    data: Dataset,
    spec: ExtractSpec,
    store: Path,
    count: int,
    *,
    part: Part | None = None,
    kept: Kept | None = None,
) -> list[Work]:
    """Say what each of `count` parts of a run (or of a part of it) lacks. Reads no weights but to hash them.

    Raises:
        LayercacheError: as `extract`.
    """
    writer.check_writable(store)
    return by_part(prepare(model_spec, data, spec, part, Kept() if kept is None else kept), store, count)


def _answer(job: Job, asked: answers.Asked, run: layout.Run, progress: Progress, limits: ShardLimits) -> Published:
    """Generate the answers that are missing and take them; return what was published."""
    made = answers.generate_missing(
        asked, job.load, job.tokenizer, job.tokenized, run, job.data.name, progress, limits, job.mine
    )
    lacking.take_answers(job, asked, reader.open(run.store), run)
    if made is None:
        return set()
    job.summary.new_answers, job.summary.generated_tokens = made.answers, made.loop.generated
    job.summary.notes += made.loop.notes
    return made.loop.shards


def _carry_out(job: Job, store: Path, progress: Progress, limits: ShardLimits) -> None:
    """Store the rows, then everything that is missing."""
    if writer.find_run(store, layout.digest(job.run_spec)) is None:
        _check_first(job, store)
    run = open_run(job, store)
    job.summary.run = run.id
    before = {shard.path for shard in _shards(store, run)}
    published: Published = set()
    if job.asked is not None:
        published |= _answer(job, job.asked, run, progress, limits)
    _put_rows(job, run, progress)
    opened = reader.open(store)
    groups, new = lacking.missing(job, opened.held(run))
    stages = lacking.stages(job, opened, run)
    lacking.count(job, groups, new, stages)
    with_head = lacking.head_of(job, run)
    everything = [*groups, *stage.groups(stages)]
    if not everything and not with_head:
        stage.keep_left_out(stages, run)
        return
    estimate.check_space(sum(lacking.estimated(job, everything, with_head=with_head).values()), store)
    scored = lacking.choices_of(job, everything)
    chosen = reference.choose([one for _, samples in groups for one in samples], job.spec.reference, job.spec.seed)
    if chosen:
        # The two models are never in memory together.
        job.kept.drop()
    truth = reference.states(job.plan, chosen) if chosen else {}
    loaded = job.load()
    # Before the samples are run: a head that cannot be saved is no news for the end of a long run.
    built = head.build(loaded, job.tokenizer) if with_head else None
    loop = Loop(loaded, job.tokenizer, job.spec, lacking.longest(job, everything), progress, scored)
    with checkpoint.quiet(), model.compile_errors(job.plan):
        some = list(job.samples.distinct.values())[:CHECKED]
        made = loop.check([one for _, samples in groups for one in samples[:CHECKED]] or some)
        if chosen:
            made["reference"] = loop.compare(chosen, truth)
        if cut := [sample for one in stages for sample in one.cut]:
            knockout.check(loop.model, cut)
        loop.run(run, job.selection, groups, job.data.name, limits, made)
        _add_absent(job.summary.absent, loop)
        for one in stages:
            loop.run(run, job.selection, one.groups, job.data.name, limits, made | one.made, one.condition.name)
            _add_absent(one.summary.absent, loop)
        published |= loop.shards | stage.keep_left_out(stages, run)
    job.summary.batches, job.summary.padded_tokens = loop.batches, loop.padded_tokens
    job.summary.generated_tokens += loop.generated
    job.summary.notes += loop.notes
    # Others may be adding to the same run.
    there = [shard for shard in _shards(store, run) if (shard.condition, shard.name) in published]
    added = [shard for shard in there if shard.path not in before]
    job.summary.bytes = sum(info.bytes for shard in added for info in shard.files.values())
    if built is not None:
        for states in _stored_states(store, run):
            head.check(built, loaded, states)
        job.summary.head_bytes = heads.write(run, built).stat().st_size


def _check_first(job: Job, store: Path) -> None:
    """Check disk and model before a run is begun: of one that is refused nothing stays in the store."""
    samples = job.own()[:CHECKED]
    if not samples:
        return
    if job.asked is None:
        groups, _ = lacking.missing(job, Holdings({}, []))
        estimate.check_space(sum(lacking.estimated(job, groups, with_head=job.spec.save_head).values()), store)
    loop = Loop(job.load(), job.tokenizer, job.spec, lacking.longest(job, []), Progress())
    with checkpoint.quiet(), model.compile_errors(job.plan):
        loop.check(samples)


def _put_rows(job: Job, run: layout.Run, progress: Progress) -> None:
    """Store the rows, with the answers that the run holds."""
    told_before = False
    while True:
        answered = job.answered.columns if job.answered else None
        frame, columns = row_frame(job.data, job.samples.of_row, answered)
        note = _replaced(
            reader.open(run.store), run, job.data.name, len(frame), {one.name for one in columns["labels"]}
        )
        if note is not None and not told_before:
            progress.note(note)
            job.summary.notes.append(note)
            told_before = True
        writer.put_rows(run, frame, data=job.data.name, source=job.data.source, **columns)
        if job.asked is None or job.part is None:
            return
        # Another part may have published answers, and its rows, since these were read: whichever rows come last,
        # whoever wrote them looks again.
        lacking.take_answers(job, job.asked, reader.open(run.store), run)
        if job.answered is not None and job.answered.columns == answered:
            return


def _replaced(store: reader.Store, run: layout.Run, name: str, n_rows: int, labels: set[str]) -> str | None:
    """Say what the rows stored before have and the new ones, which count from now on, do not; None when nothing."""
    info = next((one for one in store.data(run) if one.name == name), None)
    if info is None:
        return None
    gone = [label.name for label in info.labels if label.name not in labels]
    before = len(store.rows(run, name))
    lost = [f"they are {n_rows:,}, not {before:,}"] if n_rows < before else []
    lost += [f"they declare no label {', '.join(gone)}"] if gone else []
    return (
        f"the rows of {name} are replaced by this extraction's: {' and '.join(lost)}; captured data stay, and the"
        " same command with those rows and labels brings them back without a forward pass"
        if lost
        else None
    )


def _shards(store: Path, run: layout.Run) -> list[layout.ShardInfo]:
    opened = reader.open(store)
    return [shard for condition in opened.conditions(run) for shard in opened.shards(run, condition)]


def _add_absent(absent: dict[str, dict[str, int]], loop: Loop) -> None:
    """Add to the counts what states turned out to have no row of, and start the loop's own from nothing."""
    for (output, reason), count in sorted(loop.lacking.items()):
        absent.setdefault(output, {})[reason] = count
    loop.lacking.clear()


def _stored_states(store: Path, run: layout.Run) -> Iterator[np.ndarray]:
    """Yield a few of the states that the head will be applied to: float32 [n, d] of a low, a middle and a high layer."""
    for layer in sorted({0, run.final_layer // 2, run.final_layer}):
        states = captured.some_states(reader.open(store), run, layer, most=16)
        finite = np.isfinite(states).all(axis=1)
        if finite.any():
            yield states[finite]
