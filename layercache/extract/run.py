"""The stage: what is missing → batches → forward → reduce → shards.

    summary = extract(ModelSpec(model="gpt2"), dataset.load(...), ExtractSpec(), Path("store"), Progress())

The rows are stored first, so that a run that is stopped can be asked about. A second identical call finds
nothing missing, and then the model's weights are not even loaded.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercache.dataset import Dataset
from layercache.errors import ModelError
from layercache.extract import checkpoint, estimate, fingerprint, generate, model, select
from layercache.extract.checkpoint import Checkpoint, first_line
from layercache.extract.loop import Loop, split_texts
from layercache.extract.model import Plan
from layercache.extract.pooling import absent_reason
from layercache.extract.publish import SHARD_BYTES, SHARD_SECONDS, ShardLimits
from layercache.extract.rows import row_frame
from layercache.extract.select import Selection
from layercache.extract.summary import Summary
from layercache.extract.tokenize import Sample, Samples, tokenize
from layercache.outputs import Hidden
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import layout, reader, writer
from layercache.store.holdings import Holdings, Outputs
from layercache.store.schema import CAPTURE_SCHEMA

Groups = list[tuple[Outputs, list[Sample]]]


@dataclass
class _Job:
    """One model on one data set: everything known before the weights are read."""

    spec: ExtractSpec
    data: Dataset
    plan: Plan
    tokenizer: Any
    samples: Samples
    selection: Selection
    run_spec: dict[str, Any]
    summary: Summary

    @property
    def outputs(self) -> Outputs:
        return select.named(self.selection)


def extract(
    model_spec: ModelSpec,
    data: Dataset,
    spec: ExtractSpec,
    store: Path,
    progress: Progress,
    dry_run: bool = False,
    *,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
) -> Summary:
    """Store what a model says of a data set; only what the store lacks costs a forward pass.

    Args:
        dry_run: only say what would be done and what it takes; writes nothing and reads no weights but to hash them.
        shard_bytes, shard_seconds: a shard is published when either is reached.

    Raises:
        ModelError: the model cannot be loaded or read, or fails its self-check.
        DataError: a prompt is too long, or a span is asked for that no prompt has.
        StoreError: the store cannot be written, or the disk cannot hold the run.
    """
    started = time.monotonic()
    writer.check_writable(store)
    job = _prepare(model_spec, data, spec)
    for note in job.summary.notes:
        progress.note(note)
    if dry_run:
        _plan_only(job, store)
    else:
        _carry_out(job, store, progress, ShardLimits(shard_bytes, shard_seconds))
    job.summary.seconds = time.monotonic() - started
    return job.summary


def _prepare(model_spec: ModelSpec, data: Dataset, spec: ExtractSpec) -> _Job:
    """Find the model, tokenise the data and settle what is captured."""
    found = checkpoint.find(model_spec.model, model_spec.revision, trust_remote_code=spec.trust_remote_code)
    plan = model.plan(
        found, device=spec.device, dtype=model_spec.dtype or spec.dtype, attn=model_spec.attn or spec.attn
    )
    selection, notes = select.select(spec, plan)
    tokenizer = model.load_tokenizer(found)
    context = model.context_length(plan, tokenizer)
    samples = tokenize(data.prompts, tokenizer, chat=data.chat, context=context, truncate=spec.truncate)
    select.check_spans(selection, samples)
    if spec.generate_layers:
        generate.check_room(samples, spec.max_new_tokens, context)
    no_tokens = sum(one is None for one in samples.of_row)
    if no_tokens:
        notes.append(f"{no_tokens:,} of {len(samples.of_row):,} rows have an empty prompt and are left out")
    cut = sum(sample.n_truncated > 0 for sample in samples.distinct.values())
    if cut:
        notes.append(f"{cut:,} of {len(samples.distinct):,} prompts are cut to {context:,} tokens")
    summary = Summary("", found.name, data.name, rows=len(samples.of_row), samples=len(samples.distinct), notes=notes)
    summary.absent = _absent(selection, samples)
    run_spec = _run_spec(found, plan, tokenizer, data, context if spec.truncate else None)
    return _Job(spec, data, plan, tokenizer, samples, selection, run_spec, summary)


def _run_spec(found: Checkpoint, plan: Plan, tokenizer: Any, data: Dataset, max_length: int | None) -> dict[str, Any]:
    """Everything that changes a number, and nothing else."""
    try:
        weights = fingerprint.weights_sha256(found.weights)
    except OSError as error:
        raise ModelError(f"model {found.name}: its weights cannot be read: {first_line(error)}") from error
    template = tokenizer.chat_template if data.chat else None
    return {
        "capture_schema": CAPTURE_SCHEMA,
        "weights": weights,
        "config": fingerprint.config_sha256(found.raw_config),
        "adapter": None,
        "tokenizer": fingerprint.tokenizer_sha256(tokenizer),
        "chat_template": None if template is None else fingerprint.text_sha256(str(template)),
        "dtype": plan.dtype_name,
        "quantization": None,
        "attention": plan.attention,
        "template": data.template,
        "chat": data.chat,
        "truncate": False if max_length is None else max_length,
    }


def _plan_only(job: _Job, store: Path) -> None:
    """Fill the summary with what a run would do."""
    opened = reader.open(store) if store.is_dir() else None
    wanted = layout.digest(job.run_spec)
    run = next((one for one in opened.runs() if one.hash == wanted), None) if opened is not None else None
    if opened is not None and run is not None:
        job.summary.run = run.id
        groups, new = _missing(job, opened.held(run))
    else:
        groups, new = [(job.outputs, list(job.samples.distinct.values()))], len(job.samples.distinct)
    _count(job, groups, new)
    job.summary.dry_run = True
    job.summary.estimate = _estimate(job, groups)
    if job.summary.estimate["generations"]:
        job.summary.notes.append("generated texts are counted at their full length: they may take less")
    job.summary.free_bytes = estimate.free_bytes(store)


def _carry_out(job: _Job, store: Path, progress: Progress, limits: ShardLimits) -> None:
    """Store the rows, then everything that is missing."""
    structure = job.plan.structure
    run = writer.open_run(
        store,
        job.run_spec,
        model=job.plan.checkpoint.name,
        layers=structure.layers,
        width=structure.width,
        final_layer=structure.n_layers,
    )
    job.summary.run = run.id
    frame, columns = row_frame(job.data, job.samples.of_row)
    writer.put_rows(run, frame, data=job.data.name, source=job.data.source, **columns)
    groups, new = _missing(job, reader.open(store).held(run))
    _count(job, groups, new)
    if not groups:
        return
    estimate.check_space(sum(_estimate(job, groups).values()), store)
    before = {shard.name for shard in reader.open(store).shards(run)}
    loaded = model.load(job.plan)
    lengths = [len(sample) for sample in job.samples.distinct.values()]
    loop = Loop(loaded, job.tokenizer, job.spec, max(lengths), progress)
    with checkpoint.quiet():
        loop.run(run, job.selection, groups, job.data.name, limits)
    job.summary.batches, job.summary.padded_tokens = loop.batches, loop.padded_tokens
    job.summary.generated_tokens = loop.generated
    job.summary.notes += loop.notes
    added = [shard for shard in reader.open(store).shards(run) if shard.name not in before]
    job.summary.bytes = sum(info.bytes for shard in added for info in shard.files.values())


def _missing(job: _Job, held: Holdings) -> tuple[Groups, int]:
    """Return the outputs that samples lack, and the number of samples of which nothing is held."""
    distinct = job.samples.distinct
    groups = [(outputs, [distinct[one] for one in ids]) for outputs, ids in held.missing(distinct, job.outputs)]
    return groups, sum(one not in held.holders for one in distinct)


def _count(job: _Job, groups: Groups, new: int) -> None:
    lacking = [sample for _, samples in groups for sample in samples]
    job.summary.new_samples = new
    job.summary.forward_passes = len(lacking)
    job.summary.cached = job.summary.samples - len(lacking)
    # States and texts read a prompt in a pass each.
    job.summary.tokens = sum(len(sample) for part in split_texts(groups) for _, samples in part for sample in samples)


def _estimate(job: _Job, groups: Groups) -> dict[str, int]:
    states, texts = split_texts(groups)
    return estimate.table_bytes(
        [*states, *texts], job.plan.structure.width, job.spec.precision, job.spec.max_new_tokens
    )


def _absent(selection: Selection, samples: Samples) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for output in selection:
        feature = output.pooling if isinstance(output, Hidden) else output.position
        reasons = Counter(
            reason for sample in samples.distinct.values() if (reason := absent_reason(sample, feature)) is not None
        )
        if reasons:
            counts[str(output)] = dict(sorted(reasons.items()))
    return counts
