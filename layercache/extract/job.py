"""One model on one data set: everything that is known before the weights are read, and which samples are run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layercache import parts, spans
from layercache.conditions import CONTROL_PATCH, PATCH, Condition
from layercache.dataset import Dataset
from layercache.errors import ModelError
from layercache.extract import (
    answers,
    checkpoint,
    fingerprint,
    head,
    model,
    placement,
    quantize,
    reference,
    select,
)
from layercache.extract.checkpoint import Checkpoint, first_line
from layercache.extract.conditions import stage
from layercache.extract.generation import generate
from layercache.extract.kept import Kept
from layercache.extract.model import Model, Plan
from layercache.extract.pooling import absent_reason
from layercache.extract.select import Selection
from layercache.extract.summary import Summary
from layercache.extract.tokenize import Sample, Samples, tokenize
from layercache.parts import Part
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import layout, writer
from layercache.store.holdings import Outputs
from layercache.store.schema import CAPTURE_SCHEMA

_OF_WEIGHTS = ("weights", "config", "adapter", "dtype", "quantization", "attention", "compile")
"""What of a run's settings makes the model in memory another one."""

Groups = list[tuple[Outputs, list[Sample]]]


@dataclass
class Job:
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
        """What is captured of every sample, by name."""
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


def find(model_spec: ModelSpec, spec: ExtractSpec) -> Checkpoint:
    """Find the files of the model that a recipe names.

    Raises:
        ModelError: they are not there, or cannot be used.
    """
    return checkpoint.find(
        model_spec.model,
        model_spec.revision,
        adapter=model_spec.adapter,
        trust_remote_code=spec.trust_remote_code,
    )


def planned(model_spec: ModelSpec, spec: ExtractSpec) -> Plan:
    """Decide how the model that a recipe names is run; what it says of one model counts before what it says of all.

    Raises:
        ModelError: as `model.plan`, or the model is not there.
    """
    return model.plan(
        find(model_spec, spec),
        device=spec.device,
        dtype=model_spec.dtype or spec.dtype,
        attn=model_spec.attn or spec.attn,
        quantized=model_spec.quantize or spec.quantize,
        compiled=spec.compile,
        device_map=spec.device_map,
        max_memory=placement.limits(spec.max_memory),
    )


def prepare(model_spec: ModelSpec, data: Dataset, spec: ExtractSpec, part: Part | None, kept: Kept) -> Job:
    """Find the model, tokenise the data and settle what is captured."""
    spans.check(data, spec)
    plan = planned(model_spec, spec)
    found = plan.checkpoint
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
        lambda: tokenize(
            data.prompts, tokenizer, chat=data.chat, context=context, truncate=spec.truncate, place=data.place
        ),
    )
    asked = answers.asked(spec, data, plan)
    select.check_vocabulary(plan, samples, tokenizer)
    if spec.generate_layers or asked:
        generate.check_room(samples, (asked.spec if asked else spec).max_new_tokens, context, data.place)
    no_tokens = sum(one is None for one in samples.of_row)
    if no_tokens:
        notes.append(f"{no_tokens:,} of {len(samples.of_row):,} rows have an empty prompt and are left out")
    cut = sum(sample.n_truncated > 0 for sample in samples.distinct.values())
    if cut:
        notes.append(f"{cut:,} of {len(samples.distinct):,} prompts are cut to {context:,} tokens")
    sampled = spec.spectrum_sample or len(samples.distinct)
    if sampled < len(samples.distinct) and select.spectral(map(str, selection)):
        notes.append(f"statistics that take a spectrum are taken of {sampled:,} of {len(samples.distinct):,} samples")
    summary = Summary(
        "", plan.name, data.name, rows=len(samples.of_row), notes=notes, part=None if part is None else str(part)
    )
    run_spec["quantization"] = quantize.identity(plan.quantized)
    if asked:
        run_spec["answer"] = asked.settings.as_json()
    later = (answers.ANSWER, answers.EXACT) if asked else ()
    conditions = stage.asked(spec, samples, plan.structure.n_layers, later)
    job = Job(
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
    summary.absent = {} if asked else absent(selection, job.own())
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


def open_run(job: Job, store: Path) -> layout.Run:
    """Find a job's run in a store, or create it.

    Raises:
        StoreError: as `writer.open_run`.
    """
    structure = job.plan.structure
    return writer.open_run(
        store,
        job.run_spec,
        model=job.summary.model,
        layers=structure.layers,
        width=structure.width,
        final_layer=structure.n_layers,
    )


def absent(selection: Selection, samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    """Count the samples whose tokens give no row of an output: output → reason → samples."""
    counts: dict[str, dict[str, int]] = {}
    samples = list(samples)
    for output in selection:
        found = (absent_reason(sample, output.feature) for sample in samples)
        reasons = Counter(reason for reason in found if reason is not None)
        if reasons:
            counts[str(output)] = dict(sorted(reasons.items()))
    return counts
