"""What a run would do: the samples, tokens, bytes and memory of what is missing, and how long that takes."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from layercache import parts
from layercache.extract import (
    answers,
    batching,
    budgets,
    checkpoint,
    estimate,
    lacking,
    lens,
    model,
    select,
)
from layercache.extract.conditions import stage
from layercache.extract.job import Groups, Job, open_run
from layercache.extract.loop import CHECKED, Loop, split_texts
from layercache.extract.publish import ShardLimits
from layercache.extract.tokenize import Sample, Samples
from layercache.parts import Part, Work
from layercache.progress import Progress
from layercache.rows import row_frame
from layercache.store import layout, reader
from layercache.store.holdings import Holdings
from layercache.store.rows import has_rows

_MEASURED_BATCHES = 12
"""Batches that a measuring dry run takes, two to warm up among them."""


class Foreseen(NamedTuple):
    """What a run would do: outputs and the samples that lack them; prompts to answer; the run, where there is one."""

    groups: Groups
    prompts: list[Sample]
    run: layout.Run | None


def by_part(job: Job, store: Path, count: int) -> list[Work]:
    """Say what each of `count` parts of what a job is to run lacks.

    What the parts share, the head and the rows, is the first one's that has anything to do.

    Raises:
        StoreError: the store cannot be read.
    """
    found = plan_only(job, store)
    whole = parts.WHOLE if job.part is None else job.part
    works = []
    for part in whole.split(count):
        prompts = [one for one in found.prompts if parts.holds(part, one.id)]
        groups = [
            (outputs, [one for one in samples if parts.holds(part, job.prompts.get(one.id, one.id))])
            for outputs, samples in found.groups
        ]
        works.append(_work(job, part, [group for group in groups if group[1]], prompts))
    files = _files(job, found)
    if files:
        first = next((n for n, work in enumerate(works) if work), 0)
        more = job.summary.estimate.get("head", 0)
        works[first] = replace(works[first], files=files, bytes=works[first].bytes + more)
    return works


def _work(job: Job, part: Part, groups: Groups, prompts: list[Sample]) -> Work:
    passes = [sample for kind in split_texts(groups) for _, samples in kind for sample in samples]
    size = sum(lacking.estimated(job, groups, with_head=False).values()) if groups else 0
    if job.asked is not None:
        size += answers.estimated_bytes(job.asked, job.plan.structure.width, prompts)
    return Work(
        part,
        samples=len({job.prompts.get(one.id, one.id) for one in passes} | {one.id for one in prompts}),
        passes=len(passes) + len(prompts),
        tokens=sum(map(len, passes)) + sum(map(len, prompts)),
        bytes=size,
    )


def _files(job: Job, found: Foreseen) -> tuple[str, ...]:
    """Name what is missing beside shards; rows only where no sample lacks anything, since they come with those."""
    head = ("head",) if lacking.head_of(job, found.run) else ()
    if found.run is None or found.groups or found.prompts:
        return head
    frame, columns = row_frame(job.data, job.samples.of_row, job.answered.columns if job.answered else None)
    there = has_rows(found.run, frame, data=job.data.name, source=job.data.source, **columns)
    return head if there else ("rows", *head)


def plan_only(job: Job, store: Path) -> Foreseen:
    """Fill the summary with what a run would do; return what is missing."""
    opened = reader.open(store) if store.is_dir() else None
    wanted = layout.digest(job.run_spec)
    run = next((one for one in opened.runs() if one.hash == wanted), None) if opened is not None else None
    unheard = list(job.samples.distinct.values())
    held = Holdings({}, [])
    groups: Groups = []
    prompts: list[Sample] = []
    new = 0
    if opened is not None and run is not None:
        job.summary.run, held = run.id, opened.held(run)
        unheard = [] if job.asked is None else lacking.take_answers(job, job.asked, opened, run)
    if job.asked is None:
        groups, new = lacking.missing(job, held)
    else:
        known = run is not None
        groups, new = lacking.missing(job, held) if known else ([], 0)
        prompts, unheard = unheard, _foresee_answers(job, job.asked, unheard, known=known)
        prompts = [one for one in prompts if job.mine(one.id)]
        foreseen = {one.id: one for one in unheard}
        for outputs, ids in select.missing(Holdings({}, []), job.outputs, list(foreseen), job.spec, job.mine):
            groups.append((outputs, [foreseen[one] for one in ids]))
        new += sum(map(job.mine, foreseen))
    stages = lacking.stages(job, opened, run)
    lacking.count(job, groups, new, stages)
    groups = [*groups, *stage.groups(stages)]
    lacking.choices_of(job, groups)
    job.summary.dry_run = True
    job.summary.estimate = lacking.estimated(job, groups, with_head=lacking.head_of(job, run))
    if job.asked is not None:
        job.summary.estimate["generations"] = answers.estimated_bytes(job.asked, job.plan.structure.width, prompts)
    if job.spec.generate_layers and job.summary.estimate["generations"]:
        job.summary.notes.append("generated texts are counted at their full length: they may take less")
    job.summary.free_bytes = estimate.free_bytes(store)
    _foresee(job, groups)
    return Foreseen(groups, prompts, run)


def _foresee_answers(job: Job, asked: answers.Asked, prompts: list[Sample], *, known: bool) -> list[Sample]:
    """Return what the samples of prompts without an answer may become, and count the bytes of their answers."""
    found = answers.foreseen(asked, prompts)
    before = job.samples.distinct if known else {}
    job.samples = Samples({**before, **{one.id: one for one in found}}, job.samples.of_row)
    job.prompts |= {one.id: prompt.id for one, prompt in zip(found, prompts, strict=True)}
    lacking.wait(job, prompts)
    own = sum(job.mine(one.id) for one in prompts)
    job.summary.samples, job.summary.new_answers = len(job.own()), own
    if own:
        most = asked.settings.max_new_tokens
        job.summary.notes.append(
            f"answers that are not generated yet are counted at their full length of {most:,} tokens"
        )
    return found


def _foresee(job: Job, groups: Groups) -> None:
    """Add the batches of a run and the memory it takes."""
    weights = estimate.weight_bytes(job.plan)
    longest = lacking.longest(job, groups)
    budget = budgets.choose(job.plan, job.spec, longest, reserved=weights)
    for _, samples in [group for part in split_texts(groups) for group in part]:
        batches = [batch for window in batching.windows(samples, budget, job.spec.seed) for batch in window]
        job.summary.batches += len(batches)
        job.summary.padded_tokens += sum(map(batching.padded, batches))
    largest = min(budget.tokens, max(job.summary.padded_tokens, longest))
    job.summary.memory_bytes = weights + largest * batching.token_bytes(job.plan, longest)
    if job.plan.device.type == "cpu":
        # Python, torch and what else this process holds already.
        job.summary.memory_bytes += psutil.Process().memory_info().rss
    if job.spec.lens:
        job.summary.memory_bytes += lens.working_bytes(job.plan.device)
    job.summary.free_memory_bytes = batching.free_bytes(job.plan.device)


def measure(job: Job, groups: Groups, progress: Progress) -> None:
    """Run some samples into a store that is thrown away: how fast that is, what memory and disk it takes."""
    states, _ = split_texts(groups)
    if not states:
        return
    outputs, samples = max(states, key=lambda group: len(group[1]))
    order = np.random.default_rng(job.spec.seed).permutation(len(samples))
    loop = Loop(
        job.load(), job.tokenizer, job.spec, lacking.longest(job, groups), progress, lacking.choices_of(job, groups)
    )
    with checkpoint.quiet(), model.compile_errors(job.plan), tempfile.TemporaryDirectory() as folder:
        run = open_run(job, Path(folder) / "store")
        made = loop.check(samples[:CHECKED])
        wanted = [samples[i] for i in order]
        # Two batches to warm up, then some more; where there are few samples, the same ones again.
        sizes = np.cumsum([len(sample) for sample in wanted])
        first, last = np.searchsorted(sizes, [2 * loop.budget.tokens, _MEASURED_BATCHES * loop.budget.tokens]) + 1
        loop.run(run, job.selection, [(outputs, wanted[:first])], job.data.name, ShardLimits(), made)
        timed = wanted[first:last] or wanted
        before, started = loop.padded_tokens, time.monotonic()
        loop.run(run, job.selection, [(outputs, timed)], job.data.name, ShardLimits(), made)
        job.summary.tokens_per_second = (loop.padded_tokens - before) / (time.monotonic() - started)
        shard = max(reader.open(run.store).shards(run), key=lambda one: one.n_samples)
        foreseen = lacking.estimated(job, [(outputs, timed[: shard.n_samples])], with_head=False)
        estimate.correct(job.summary.estimate, shard, foreseen)
    job.summary.notes += loop.notes
    job.summary.memory_bytes = estimate.peak_bytes(job.plan.device)
