"""Trains a grid of LoRA adapters, each on its own, so that a stopped run goes on with the cell it was at.

    tuned = finetune(ModelSpec(model="gpt2"), dataset.load(...), FinetuneSpec(...), ExtractSpec(), Path("adapters"), Progress())

TRL's supervised trainer trains and PEFT holds the weights; what is here plans the grid and keeps its records. An adapter is a
folder that `--adapter` takes.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from layercache import splits
from layercache.chosen import by_validation
from layercache.dataset import Dataset
from layercache.errors import RecipeError
from layercache.extract import checkpoint, fingerprint, model, quantize
from layercache.extract.finetune import examples, results, train
from layercache.extract.finetune.examples import Examples
from layercache.extract.finetune.grid import BASE, Cell, Grid, cells, open_grid
from layercache.extract.job import planned
from layercache.extract.model import Plan
from layercache.groups import TEST, TRAIN, VALIDATION
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, FinetuneSpec, ModelSpec

_LIBRARIES = ("trl", "peft", "transformers", "torch")


@dataclass
class Tuned:
    """What fine-tuning one model gave.

    Attributes:
        folder: of the grid.
        model: the base, as the store calls it.
        table: a line a cell, the base's first.
        adapters: the specification of the base with every adapter, in the grid's order.
        trained: cells trained now; the others were there, or are the base.
        pending: cells that are not trained yet, where nothing was to be trained.
    """

    folder: Path
    model: str
    data: str
    table: pl.DataFrame
    adapters: list[ModelSpec]
    trained: int = 0
    pending: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The line of the table of the adapter that the rows to validate on choose; None without such rows."""
        return by_validation(self.table.filter("trained"))

    def arrow(self) -> pa.Table:
        """Return the table for printing and writing."""
        return self.table.to_arrow()


@dataclass(frozen=True)
class _Job:
    """A model, its data as examples, and where its grid is."""

    plan: Plan
    tokenizer: Any
    given: Examples
    grid: Grid


def finetune(
    model_spec: ModelSpec,
    data: Dataset,
    spec: FinetuneSpec,
    extraction: ExtractSpec,
    out: Path,
    progress: Progress,
    *,
    only_find: bool = False,
) -> Tuned:
    """Train what a grid lacks, and return all of it.

    Args:
        data: with splits, as `splits.with_split` gives.
        extraction: how the model is run (dtype, device, quantisation), and the choices where `spec` has none.
        out: the folder of all grids.
        only_find: train nothing, and count what is lacking.

    Raises:
        ModelError: the model cannot be loaded or trained, or has no layer to be adapted.
        DataError: the rows have no such label, leave nothing to learn, or have answers that cannot be told apart.
        StoreError: the folder cannot be written.
    """
    started = time.monotonic()
    job, notes = _prepare(model_spec, data, spec, extraction, out)
    every = cells(spec)
    notes += train.check(job.plan, every)
    skipped = [cell for cell in every if cell.is_base]
    if skipped:
        notes.append(f"alpha = 0 is the base model, which is not trained: {len(skipped):,} of {len(every):,} cells")
    for note in notes:
        progress.note(f"finetune: {note}")
    names = {cell.name: cell for cell in every if not cell.is_base}
    lacking = [cell for name, cell in names.items() if job.grid.record(name) is None]
    done = len(names) - len(lacking)
    if done:
        progress.note(f"finetune: {done:,} of {len(names):,} adapters are there already, in {job.grid.folder}")
    if not only_find:
        _carry_out(job, lacking, spec, progress)
    records = {name: record for name in (BASE, *names) if (record := job.grid.record(name)) is not None}
    table = results.table(job.plan.checkpoint.name, every, records)
    if not only_find:
        results.write(job.grid, table)
    adapters = [
        model_spec.model_copy(update={"adapter": str(job.grid.path(name))}) for name in names if name in records
    ]
    return Tuned(
        folder=job.grid.folder,
        model=job.plan.checkpoint.name,
        data=data.name,
        table=table,
        adapters=adapters,
        trained=0 if only_find else len(lacking),
        pending=len(lacking) if only_find else 0,
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _prepare(
    model_spec: ModelSpec, data: Dataset, spec: FinetuneSpec, extraction: ExtractSpec, out: Path
) -> tuple[_Job, list[str]]:
    """Find the model, tokenise the rows and settle where the grid is; no weight is loaded."""
    texts = extraction.choices if spec.choices is None else spec.choices
    if not texts:
        raise RecipeError('finetune needs answers to choose from: set extract.choices, as [" true", " false"]')
    # A base, whatever adapter is named; and neither compiled nor held to what extraction may take of a device.
    plan = planned(
        model_spec.model_copy(update={"adapter": None}),
        extraction.model_copy(update={"compile": False, "max_memory": []}),
    )
    tokenizer = model.load_tokenizer(plan.checkpoint)
    groups = splits.groups_of(data, splits.kept_together(data, spec.group_by))
    parts = splits.parts(data, groups)
    given = examples.make(
        data,
        spec.label,
        texts,
        parts,
        tokenizer,
        context=model.context_length(plan, tokenizer),
        truncate=extraction.truncate,
    )
    counts = ", ".join(f"{len(given.of(part)):,} to {verb}" for part, verb in _verbs(given))
    notes = [*given.notes, f"{data.name}: {counts}"]
    apart = sum(part is None for part in parts)
    if apart:
        notes.append(f"{apart:,} rows are of no split, or share what must not straddle with rows tested on: not used")
    grid = open_grid(out, plan.name, data.name, _shared(plan, given, spec))
    return _Job(plan, tokenizer, given, grid), notes


def _verbs(given: Examples) -> list[tuple[str, str]]:
    every = ((TRAIN, "train on"), (VALIDATION, "validate on"), (TEST, "test on"))
    return [(part, verb) for part, verb in every if given.of(part)]


def _shared(plan: Plan, given: Examples, spec: FinetuneSpec) -> dict[str, Any]:
    """Everything besides a cell's own settings that changes an adapter."""
    found = plan.checkpoint
    return {
        "weights": fingerprint.weights_sha256(found.weights),
        "config": fingerprint.config_sha256(found.raw_config),
        "dtype": plan.dtype_name,
        "quantization": quantize.identity(plan.quantized),
        "attention": plan.attention,
        "rows": given.digest(),
        "choices": given.texts,
        "label": spec.label,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "accumulate": spec.accumulate,
        "weight_decay": spec.weight_decay,
        "dropout": spec.dropout,
        "schedule": "cosine",
        "optimizer": "adamw_torch",
    }


def _carry_out(job: _Job, lacking: Sequence[Cell], spec: FinetuneSpec, progress: Progress) -> None:
    """Train what is lacking, and measure the base where that has not been done."""
    job.grid.sweep()
    if job.grid.record(BASE) is None:
        with job.grid.writing() as folder, checkpoint.quiet():
            started = time.monotonic()
            measured = train.measure(model.load(job.plan).module, job.given, job.plan.device)
            seconds = round(time.monotonic() - started, 3)
            job.grid.publish(folder, BASE, {"measured": measured, "seconds": seconds, **_made()})
    for number, cell in enumerate(lacking, start=1):
        with job.grid.writing() as folder:
            found = train.train(job.plan, job.tokenizer, job.given, cell, spec, folder, progress)
            job.grid.publish(folder, cell.name, {"cell": asdict(cell), **found, **_made()})
        shown = found["measured"].get(TEST) or found["measured"].get(VALIDATION) or found["measured"][TRAIN]
        progress.note(
            f"finetune: {cell.name} ({number:,} of {len(lacking):,}): accuracy {shown['accuracy']:.3f},"
            f" {found['seconds']:.0f} s"
        )


def _made() -> dict[str, Any]:
    return {
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
