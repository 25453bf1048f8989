"""The stage: what is missing → batches → forward → reduce → shards.

    summary = extract(ModelSpec(model="gpt2"), dataset.load(...), ExtractSpec(), Path("store"), Progress())

The rows are stored first, so that a run that is stopped can be asked about. A second identical call finds
nothing missing, and then the model's weights are not even loaded.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from layercache import parts
from layercache.conditions import CONTROL_PATCH, PATCH, Condition
from layercache.dataset import Dataset
from layercache.errors import ModelError
from layercache.extract import (
    answers,
    batching,
    checkpoint,
    choices,
    estimate,
    fingerprint,
    head,
    knockout,
    lens,
    model,
    quantize,
    reference,
    select,
)
from layercache.extract.checkpoint import Checkpoint, first_line
from layercache.extract.choices import Choices
from layercache.extract.conditions import stage
from layercache.extract.conditions.given import Given
from layercache.extract.conditions.stage import Stage
from layercache.extract.generation import generate
from layercache.extract.kept import Kept
from layercache.extract.loop import CHECKED, Loop, split_texts
from layercache.extract.loop import budget as loop_budget
from layercache.extract.model import Model, Plan
from layercache.extract.pooling import absent_reason
from layercache.extract.publish import SHARD_BYTES, SHARD_SECONDS, ShardLimits
from layercache.extract.select import Selection
from layercache.extract.summary import Summary, told
from layercache.extract.tokenize import Sample, Samples, tokenize
from layercache.outputs import Lens
from layercache.parts import Part
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.rows import row_frame
from layercache.store import head as heads
from layercache.store import layout, reader, writer
from layercache.store.holdings import Holdings, Outputs
from layercache.store.schema import CAPTURE_SCHEMA

_MEASURED_BATCHES = 12
"""Batches that a measuring dry run takes, two to warm up among them."""

_OF_WEIGHTS = ("weights", "config", "adapter", "dtype", "quantization", "attention", "compile")
"""What of a run's settings makes the model in memory another one."""

Groups = list[tuple[Outputs, list[Sample]]]


@dataclass
class _Job:
    """One model on one data set: everything known before the weights are read.

    Attributes:
        tokenized: the prompts' samples.
        samples: the same, or those of prompt and answer.
        part: the samples that are run; those of `samples` are all of them, which others are drawn from.
        prompts: sample id → its prompt's sample id, for samples of prompt and answer.
    """

    spec: ExtractSpec
    data: Dataset
    plan: Plan
    tokenizer: Any
    tokenized: Samples
    samples: Samples
    selection: Selection
    context: int | None
    run_spec: dict[str, Any]
    summary: Summary
    conditions: list[Condition]
    kept: Kept
    asked: answers.Asked | None = None
    answered: answers.Answered | None = None
    part: Part | None = None
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> Outputs:
        return self.now(self.selection)

    def now(self, selection: Selection) -> Outputs:
        """Name the outputs of a selection that need not wait."""
        return {name: layers for name, layers in select.named(selection).items() if name not in self.summary.waiting}

    @property
    def drawn_from_all(self) -> list[str]:
        """What depends on all samples: conditions whose donors are drawn from them, outputs that some of them have."""
        chosen = select.spectral(map(str, self.selection)) if self.spec.spectrum_sample is not None else set()
        return [one.name for one in self.conditions if one.kind in (PATCH, CONTROL_PATCH)] + sorted(chosen)

    def mine(self, sample_id: str) -> bool:
        """Tell whether a sample is in the part that is run; one with an answer is where its prompt is."""
        return self.part is None or parts.holds(self.part, self.prompts.get(sample_id, sample_id))

    def own(self) -> list[Sample]:
        """Return the samples of the part."""
        return [sample for one, sample in self.samples.distinct.items() if self.mine(one)]

    def load(self) -> Model:
        """Return the model, read once."""
        identity = {one: self.run_spec.get(one) for one in _OF_WEIGHTS}
        return self.kept.load(self.plan, layout.canonical_json(identity))


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
    job = _prepare(model_spec, data, spec, part, Kept() if kept is None else kept)
    for note in job.summary.notes:
        progress.note(note)
    if dry_run:
        groups = _plan_only(job, store)
        if dry_run == "measure":
            _measure(job, groups, progress)
    else:
        _carry_out(job, store, progress, ShardLimits(shard_bytes, shard_seconds))
    job.summary.seconds = time.monotonic() - started
    return job.summary


def _prepare(model_spec: ModelSpec, data: Dataset, spec: ExtractSpec, part: Part | None, kept: Kept) -> _Job:
    """Find the model, tokenise the data and settle what is captured."""
    found = checkpoint.find(
        model_spec.model,
        model_spec.revision,
        adapter=model_spec.adapter,
        trust_remote_code=spec.trust_remote_code,
    )
    quantized = model_spec.quantize or spec.quantize
    plan = model.plan(
        found,
        device=spec.device,
        dtype=model_spec.dtype or spec.dtype,
        attn=model_spec.attn or spec.attn,
        quantized=quantized,
        compiled=spec.compile,
        device_map=spec.device_map,
    )
    selection, notes = select.select(spec, plan)
    if found.encoder_only:
        notes.append(f"{found.name} is an encoder-decoder: its encoder is read")
    if spec.save_head:
        head.check_plan(plan)
    if spec.reference:
        reference.check(plan)
    tokenizer = model.load_tokenizer(found)
    context = model.context_length(plan, tokenizer)
    run_spec = _run_spec(found, plan, tokenizer, data, context if spec.truncate else None)
    samples = kept.samples(
        data,
        (run_spec["tokenizer"], run_spec["chat_template"], context, spec.truncate),
        lambda: tokenize(data.prompts, tokenizer, chat=data.chat, context=context, truncate=spec.truncate),
    )
    asked = answers.asked(spec, data, plan)
    select.check_spans(selection, samples, () if asked is None else (answers.ANSWER, answers.EXACT))
    select.check_vocabulary(plan, samples, tokenizer)
    if spec.generate_layers or asked:
        generate.check_room(samples, (asked.spec if asked else spec).max_new_tokens, context)
    no_tokens = sum(one is None for one in samples.of_row)
    if no_tokens:
        notes.append(f"{no_tokens:,} of {len(samples.of_row):,} rows have an empty prompt and are left out")
    cut = sum(sample.n_truncated > 0 for sample in samples.distinct.values())
    if cut:
        notes.append(f"{cut:,} of {len(samples.distinct):,} prompts are cut to {context:,} tokens")
    sampled = spec.spectrum_sample or len(samples.distinct)
    if sampled < len(samples.distinct) and select.spectral(map(str, selection)):
        notes.append(f"statistics that take a spectrum are taken of {sampled:,} of {len(samples.distinct):,} samples")
    name = found.name if quantized is None else f"{found.name}-{quantized}"
    summary = Summary("", name, data.name, rows=len(samples.of_row), notes=notes, part=part and str(part))
    run_spec["quantization"] = quantize.identity(quantized)
    if asked:
        run_spec["answer"] = asked.settings.as_json()
    later = (answers.ANSWER, answers.EXACT) if asked else ()
    conditions = stage.asked(spec, samples, plan.structure.n_layers, later)
    job = _Job(
        spec=spec,
        data=data,
        plan=plan,
        tokenizer=tokenizer,
        tokenized=samples,
        samples=samples,
        selection=selection,
        context=context,
        run_spec=run_spec,
        summary=summary,
        conditions=conditions,
        kept=kept,
        asked=asked,
        part=part,
    )
    summary.samples = len(job.own())
    summary.absent = {} if asked else _absent(selection, job.own())
    return job


def _run_spec(found: Checkpoint, plan: Plan, tokenizer: Any, data: Dataset, max_length: int | None) -> dict[str, Any]:
    """Everything that changes a number, and nothing else."""
    try:
        weights = fingerprint.weights_sha256(found.weights)
        adapter = found.adapter and fingerprint.adapter_sha256(found.adapter.raw_config, found.adapter.weights)
    except OSError as error:
        raise ModelError(f"model {found.name}: its weights cannot be read: {first_line(error)}") from error
    template = tokenizer.chat_template if data.chat else None
    return {
        "capture_schema": CAPTURE_SCHEMA,
        "weights": weights,
        "config": fingerprint.config_sha256(found.raw_config),
        "adapter": adapter,
        "tokenizer": fingerprint.tokenizer_sha256(tokenizer),
        "chat_template": None if template is None else fingerprint.text_sha256(str(template)),
        "dtype": plan.dtype_name,
        "quantization": None,
        "attention": plan.attention,
        "template": data.template,
        "chat": data.chat,
        "truncate": False if max_length is None else max_length,
        **({"compile": True} if plan.compiled else {}),
    }


def _plan_only(job: _Job, store: Path) -> Groups:
    """Fill the summary with what a run would do; return what is missing."""
    opened = reader.open(store) if store.is_dir() else None
    wanted = layout.digest(job.run_spec)
    run = next((one for one in opened.runs() if one.hash == wanted), None) if opened is not None else None
    unheard = list(job.samples.distinct.values())
    held = Holdings({}, [])
    groups: Groups = []
    new = 0
    if opened is not None and run is not None:
        job.summary.run, held = run.id, opened.held(run)
        unheard = [] if job.asked is None else _take_answers(job, job.asked, opened, run)
    if job.asked is None:
        groups, new = _missing(job, held)
    else:
        known = run is not None
        groups, new = _missing(job, held) if known else ([], 0)
        prompts, unheard = unheard, _foresee_answers(job, job.asked, unheard, known=known)
        prompts = [one for one in prompts if job.mine(one.id)]
        foreseen = {one.id: one for one in unheard}
        for outputs, ids in select.missing(Holdings({}, []), job.outputs, list(foreseen), job.spec, job.mine):
            groups.append((outputs, [foreseen[one] for one in ids]))
        new += sum(map(job.mine, foreseen))
    stages = _stages(job, opened, run)
    _count(job, groups, new, stages)
    groups = [*groups, *stage.groups(stages)]
    _choices(job, groups)
    job.summary.dry_run = True
    job.summary.estimate = _estimate(job, groups, with_head=_lacks_head(job, run))
    if job.asked is not None:
        job.summary.estimate["generations"] = answers.estimated_bytes(job.asked, job.plan.structure.width, prompts)
    if job.spec.generate_layers and job.summary.estimate["generations"]:
        job.summary.notes.append("generated texts are counted at their full length: they may take less")
    job.summary.free_bytes = estimate.free_bytes(store)
    _foresee(job, groups)
    return groups


def _foresee_answers(job: _Job, asked: answers.Asked, prompts: list[Sample], *, known: bool) -> list[Sample]:
    """Return what the samples of prompts without an answer may become, and count the bytes of their answers."""
    found = answers.foreseen(asked, prompts)
    before = job.samples.distinct if known else {}
    job.samples = Samples({**before, **{one.id: one for one in found}}, job.samples.of_row)
    job.prompts |= {one.id: prompt.id for one, prompt in zip(found, prompts, strict=True)}
    _wait(job, prompts)
    own = sum(job.mine(one.id) for one in prompts)
    job.summary.samples, job.summary.new_answers = len(job.own()), own
    if own:
        most = asked.settings.max_new_tokens
        job.summary.notes.append(
            f"answers that are not generated yet are counted at their full length of {most:,} tokens"
        )
    return found


def _take_answers(job: _Job, asked: answers.Asked, store: reader.Store, run: layout.Run) -> list[Sample]:
    """Let the job's samples be prompt and answer, where there is one; return the prompts' that have none."""
    job.answered = answers.answered(asked, job.data, job.tokenized, job.tokenizer, store, run)
    job.samples, job.prompts = job.answered.samples, job.answered.prompts
    _wait(job, job.answered.pending)
    job.summary.answers = job.answered.balance
    job.summary.samples = len(job.own())
    job.summary.absent = _absent(job.selection, job.own())
    return job.answered.pending


def _wait(job: _Job, pending: list[Sample]) -> None:
    """Leave what depends on all samples while prompts of other parts have no answer."""
    job.summary.waiting = job.drawn_from_all if any(not job.mine(one.id) for one in pending) else []


def _answer(job: _Job, asked: answers.Asked, run: layout.Run, progress: Progress, limits: ShardLimits) -> None:
    """Generate the answers that are missing and take them."""
    made = answers.generate_missing(
        asked, job.load, job.tokenizer, job.tokenized, run, job.data.name, progress, limits, job.mine
    )
    _take_answers(job, asked, reader.open(run.store), run)
    progress.note(told(job.summary.answers))
    if made is not None:
        job.summary.new_answers, job.summary.generated_tokens = made.answers, made.loop.generated
        job.summary.notes += made.loop.notes


def _foresee(job: _Job, groups: Groups) -> None:
    """Add the batches of a run and the memory it takes."""
    weights = estimate.weight_bytes(job.plan)
    longest = _longest(job, groups)
    budget = loop_budget(job.plan, job.spec, longest, reserved=weights)
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


def _measure(job: _Job, groups: Groups, progress: Progress) -> None:
    """Run some samples into a store that is thrown away: how fast that is, what memory and disk it takes."""
    states, _ = split_texts(groups)
    if not states:
        return
    outputs, samples = max(states, key=lambda group: len(group[1]))
    order = np.random.default_rng(job.spec.seed).permutation(len(samples))
    loop = Loop(job.load(), job.tokenizer, job.spec, _longest(job, groups), progress, _choices(job, groups))
    with checkpoint.quiet(), model.compile_errors(job.plan), tempfile.TemporaryDirectory() as folder:
        run = _open_run(job, Path(folder) / "store")
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
        foreseen = _estimate(job, [(outputs, timed[: shard.n_samples])], with_head=False)
        estimate.correct(job.summary.estimate, shard, foreseen)
    job.summary.notes += loop.notes
    job.summary.memory_bytes = estimate.peak_bytes(job.plan.device)


def _open_run(job: _Job, store: Path) -> layout.Run:
    structure = job.plan.structure
    return writer.open_run(
        store,
        job.run_spec,
        model=job.summary.model,
        layers=structure.layers,
        width=structure.width,
        final_layer=structure.n_layers,
    )


def _carry_out(job: _Job, store: Path, progress: Progress, limits: ShardLimits) -> None:
    """Store the rows, then everything that is missing."""
    run = _open_run(job, store)
    job.summary.run = run.id
    before = {shard.path for shard in _shards(store, run)}
    if job.asked is not None:
        _answer(job, job.asked, run, progress, limits)
    _put_rows(job, run, progress)
    opened = reader.open(store)
    groups, new = _missing(job, opened.held(run))
    stages = _stages(job, opened, run)
    _count(job, groups, new, stages)
    with_head = _lacks_head(job, run)
    everything = [*groups, *stage.groups(stages)]
    if not everything and not with_head:
        stage.keep_left_out(stages, run)
        return
    estimate.check_space(sum(_estimate(job, everything, with_head=with_head).values()), store)
    scored = _choices(job, everything)
    chosen = reference.choose([one for _, samples in groups for one in samples], job.spec.reference, job.spec.seed)
    if chosen:
        # The two models are never in memory together.
        job.kept.drop()
    truth = reference.states(job.plan, chosen) if chosen else {}
    loaded = job.load()
    # Before the samples are run: a head that cannot be saved is no news for the end of a long run.
    built = head.build(loaded, job.tokenizer) if with_head else None
    loop = Loop(loaded, job.tokenizer, job.spec, _longest(job, everything), progress, scored)
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
        stage.keep_left_out(stages, run)
    job.summary.batches, job.summary.padded_tokens = loop.batches, loop.padded_tokens
    job.summary.generated_tokens += loop.generated
    job.summary.notes += loop.notes
    added = [shard for shard in _shards(store, run) if shard.path not in before]
    job.summary.bytes = sum(info.bytes for shard in added for info in shard.files.values())
    if built is not None:
        for states in _stored_states(store, run):
            head.check(built, loaded, states)
        job.summary.head_bytes = heads.write(run, built).stat().st_size


def _put_rows(job: _Job, run: layout.Run, progress: Progress) -> None:
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
        _take_answers(job, job.asked, reader.open(run.store), run)
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


def _stages(job: _Job, store: reader.Store | None, run: layout.Run | None) -> list[Stage]:
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
        one.summary.absent = _absent(selection, (sample for _, samples in one.groups for sample in samples))
    return stages


def _longest(job: _Job, groups: Groups) -> int:
    """Return the tokens of the longest sample, changed ones included."""
    everything = [list(job.samples.distinct.values()), *(samples for _, samples in groups)]
    return max((len(sample) for samples in everything for sample in samples), default=1)


def _add_absent(absent: dict[str, dict[str, int]], loop: Loop) -> None:
    """Add to the counts what states turned out to have no row of, and start the loop's own from nothing."""
    for (output, reason), count in sorted(loop.lacking.items()):
        absent.setdefault(output, {})[reason] = count
    loop.lacking.clear()


def _lacks_head(job: _Job, run: layout.Run | None) -> bool:
    return job.spec.save_head and (run is None or heads.find(run) is None)


def _stored_states(store: Path, run: layout.Run) -> Iterator[np.ndarray]:
    """Yield a few of the states that the head will be applied to: float32 [n, d] of a low, a middle and a high layer."""
    query = "SELECT vector FROM hidden WHERE run = $run AND site = 'resid' AND layer = $layer LIMIT 16"
    for layer in sorted({0, run.final_layer // 2, run.final_layer}):
        rows = reader.open(store).sql(query, {"run": run.id, "layer": layer})["vector"].to_pylist()
        states = np.array(rows, dtype=np.float32).reshape(-1, run.width)
        finite = np.isfinite(states).all(axis=1)
        if finite.any():
            yield states[finite]


def _missing(job: _Job, held: Holdings) -> tuple[Groups, int]:
    """Return the outputs that samples lack, and the number of samples of which nothing is held."""
    distinct = job.samples.distinct
    lacking = select.missing(held, job.outputs, list(distinct), job.spec, job.mine)
    return [(outputs, [distinct[one] for one in ids]) for outputs, ids in lacking], sum(
        one.id not in held.holders for one in job.own()
    )


def _count(job: _Job, groups: Groups, new: int, stages: list[Stage]) -> None:
    lacking = [sample for _, samples in groups for sample in samples]
    job.summary.new_samples = new
    job.summary.conditions = [one.summary for one in stages]
    job.summary.forward_passes = len(lacking) + sum(one.summary.forward_passes for one in stages)
    job.summary.cached = job.summary.samples - len({sample.id for sample in lacking} | stage.lacking(stages))
    # States and texts read a prompt in a pass each.
    job.summary.tokens = sum(len(sample) for part in split_texts(groups) for _, samples in part for sample in samples)
    job.summary.tokens += sum(one.summary.tokens for one in stages)


def _choices(job: _Job, groups: Groups) -> Choices | None:
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


def _estimate(job: _Job, groups: Groups, *, with_head: bool) -> dict[str, int]:
    states, texts = split_texts(groups)
    tables = estimate.table_bytes(
        [*states, *texts],
        job.plan.structure.width,
        job.spec.precision,
        len(job.spec.choices),
        job.spec.max_new_tokens,
    )
    return tables | ({"head": head.estimated_bytes(job.plan, job.tokenizer)} if with_head else {})


def _absent(selection: Selection, samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    samples = list(samples)
    for output in selection:
        found = (absent_reason(sample, output.feature) for sample in samples)
        reasons = Counter(reason for reason in found if reason is not None)
        if reasons:
            counts[str(output)] = dict(sorted(reasons.items()))
    return counts
