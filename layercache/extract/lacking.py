"""What a store lacks of what a job asks for, and what that takes."""

from layercache.extract import (
    answers,
    choices,
    estimate,
    head,
    model,
    select,
)
from layercache.extract.choices import Choices
from layercache.extract.conditions import stage
from layercache.extract.conditions.given import Given
from layercache.extract.conditions.stage import Stage
from layercache.extract.job import Groups, Job, absent
from layercache.extract.loop import split_texts
from layercache.extract.tokenize import Sample
from layercache.outputs import Lens
from layercache.store import head as heads
from layercache.store import layout, reader
from layercache.store.holdings import Holdings


def take_answers(job: Job, asked: answers.Asked, store: reader.Store, run: layout.Run) -> list[Sample]:
    """Let the job's samples be prompt and answer, where there is one; return the prompts' that have none."""
    job.answered = answers.answered(asked, job.data, job.tokenized, job.tokenizer, store, run)
    job.samples, job.prompts = job.answered.samples, job.answered.prompts
    wait(job, job.answered.pending)
    job.summary.answers = job.answered.balance
    job.summary.samples = len(job.own())
    job.summary.absent = absent(job.selection, job.own())
    return job.answered.pending


def wait(job: Job, pending: list[Sample]) -> None:
    """Leave what depends on all samples while prompts of other parts have no answer."""
    job.summary.waiting = job.drawn_from_all if any(not job.mine(one.id) for one in pending) else []


def missing(job: Job, held: Holdings) -> tuple[Groups, int]:
    """Return the outputs that samples lack, and the number of samples of which nothing is held."""
    distinct = job.samples.distinct
    lacking = select.missing(held, job.outputs, list(distinct), job.spec, job.mine)
    return [(outputs, [distinct[one] for one in ids]) for outputs, ids in lacking], sum(
        one.id not in held.holders for one in job.own()
    )


def stages(job: Job, store: reader.Store | None, run: layout.Run | None) -> list[Stage]:
    """Plan every condition; generated texts belong to the clean prompts alone."""
    if not job.conditions:
        return []
    given = Given(
        job.samples,
        job.data.prompts,
        job.tokenizer,
        job.data.chat,
        job.context,
        job.spec.truncate,
        model.vocabulary(job.plan),
        job.spec.condition_settings(),
    )
    selection, _ = select.select(job.spec.model_copy(update={"generate_layers": []}), job.plan)
    stages = [
        stage.plan(one, job.now(selection), store, run, given, job.spec, job.mine)
        for one in job.conditions
        if one.name not in job.summary.waiting
    ]
    for one in stages:
        one.summary.absent = absent(selection, (sample for _, samples in one.groups for sample in samples))
    return stages


def longest(job: Job, groups: Groups) -> int:
    """Return the tokens of the longest sample, changed ones included."""
    everything = [list(job.samples.distinct.values()), *(samples for _, samples in groups)]
    return max((len(sample) for samples in everything for sample in samples), default=1)


def count(job: Job, groups: Groups, new: int, stages: list[Stage]) -> None:
    """Say in the summary what is going to be run.

    Args:
        groups: what is missing of the samples as they are.
        new: samples of which nothing is held.
    """
    lacking = [sample for _, samples in groups for sample in samples]
    job.summary.new_samples = new
    job.summary.conditions = [one.summary for one in stages]
    job.summary.forward_passes = len(lacking) + sum(one.summary.forward_passes for one in stages)
    job.summary.cached = job.summary.samples - len({sample.id for sample in lacking} | stage.lacking(stages))
    # States and texts read a prompt in a pass each.
    job.summary.tokens = sum(len(sample) for part in split_texts(groups) for _, samples in part for sample in samples)
    job.summary.tokens += sum(one.summary.tokens for one in stages)


def choices_of(job: Job, groups: Groups) -> Choices | None:
    """Tokenise the answers for the samples that lack their scores, and count the passes they take."""
    scored = {str(output) for output in job.selection if isinstance(output, Lens) and output.choices}
    lacking = [sample for outputs, samples in groups if scored & outputs.keys() for sample in samples]
    if not lacking:
        return None
    texts = job.spec.choices
    # A condition changes the prompt, not how an answer is written.
    clean = [job.samples.distinct[one] for one in dict.fromkeys(sample.id for sample in lacking)]
    found = Choices(texts, choices.tokenize(texts, clean, job.tokenizer, chat=job.data.chat), job.context)
    passes = found.passes(lacking)
    job.summary.choice_passes = len(passes)
    job.summary.choice_tokens = sum(len(sample) + len(answer) - 1 for sample, answer in passes)
    full = sum(any(not found.fits(sample, answer) for answer in found.answers[sample.id]) for sample in lacking)
    if full:
        job.summary.notes.append(f"{full:,} prompts leave no room for a whole choice, whose logprob is NULL there")
    return found


def head_of(job: Job, run: layout.Run | None) -> bool:
    """Tell whether a head is asked for that is not there."""
    return job.spec.save_head and (run is None or heads.find(run) is None)


def estimated(job: Job, groups: Groups, *, with_head: bool) -> dict[str, int]:
    """Estimate the bytes of every table that groups take, and of the head."""
    states, texts = split_texts(groups)
    tables = estimate.table_bytes(
        [*states, *texts],
        job.plan.structure.width,
        job.spec.precision,
        len(job.spec.choices),
        job.spec.max_new_tokens,
    )
    return tables | ({"head": head.estimated_bytes(job.plan, job.tokenizer)} if with_head else {})
