"""Trains one adapter: TRL's supervised trainer with PEFT's LoRA, on rows whose loss counts at the answer alone."""

import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from layercache.errors import LayercacheError, ModelError
from layercache.extract import model
from layercache.extract.checkpoint import first_line, quiet
from layercache.extract.finetune import evaluate, examples
from layercache.extract.finetune.examples import Example, Examples
from layercache.extract.finetune.grid import ALL_LINEAR, Cell
from layercache.extract.model import Plan
from layercache.groups import TEST, TRAIN, VALIDATION
from layercache.progress import Progress
from layercache.recipe import FinetuneSpec

try:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import peft
        import trl
        from transformers import PrinterCallback, TrainerCallback
except ImportError as error:
    raise LayercacheError(f"finetune needs {error.name}: pip install 'layercache[finetune]'") from error


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Reports every step."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._task.advance()


def check(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """Hold every cell's modules against the model, without its weights.

    Returns:
        Warnings: ranks that are larger than the smaller side of a layer they are on.

    Raises:
        ModelError: the model has no such modules, or is no causal language model.
    """
    checkpoint = plan.checkpoint
    if not plan.with_head or checkpoint.masked:
        raise ModelError(f"model {checkpoint.name} has no next-token head: finetune trains causal language models")
    notes: dict[str, None] = {}
    for targets in dict.fromkeys(cell.targets for cell in cells):
        ranks = [cell.r for cell in cells if cell.targets == targets and not cell.is_base]
        sides = _sides(plan, targets)
        narrow = min(sides, key=lambda name: sides[name])
        for rank in sorted({rank for rank in ranks if rank > sides[narrow]}):
            more = sum(side < rank for side in sides.values()) - 1
            notes[
                f"r = {rank} is larger than the smaller side ({sides[narrow]}) of {narrow}"
                + (f" and {more} more kinds of layer" if more else "")
                + ": legal, but its weights are more than a full update would have"
            ] = None
    return list(notes)


def _sides(plan: Plan, targets: str) -> dict[str, int]:
    """Return the smaller side of every kind of layer that is adapted, by its name."""
    import transformers

    checkpoint = plan.checkpoint
    with quiet(), _no_warnings():
        with torch.device("meta"):
            skeleton = getattr(transformers, checkpoint.auto_class).from_config(
                checkpoint.config, trust_remote_code=checkpoint.remote_code
            )
        linear = {
            name.rpartition(".")[2]: min(module.weight.shape)
            for name, module in skeleton.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        head = getattr(skeleton, "get_output_embeddings", lambda: None)()
        try:
            config = peft.LoraConfig(r=1, target_modules=_modules(targets), task_type="CAUSAL_LM")
            adapted = peft.get_peft_model(skeleton, config, low_cpu_mem_usage=True)
        except ValueError as error:
            raise ModelError(
                f"finetune.targets {targets!r} does not fit {checkpoint.name}: {first_line(error)}; its linear layers are"
                f" {', '.join(sorted(linear))}"
            ) from error
        named = dict(adapted.get_base_model().named_modules())
        found = {name: module for name, module in named.items() if hasattr(module, "lora_A") and len(module.lora_A) > 0}
        missed = [one for one in targets.split("+") if one != ALL_LINEAR and not any(_is(name, one) for name in found)]
    if missed:
        raise ModelError(
            f"finetune.targets: {checkpoint.name} has no layer {missed[0]!r}; its linear layers are"
            f" {', '.join(sorted(linear))}"
        )
    if any(module.base_layer is head for module in found.values()):
        raise ModelError("finetune.targets: an adapter on the head is not trained by TRL: leave it out")
    return {name.rpartition(".")[2]: min(module.in_features, module.out_features) for name, module in found.items()}


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _modules(targets: str) -> str | list[str]:
    return targets if targets == ALL_LINEAR else targets.split("+")


def trainer(
    loaded: model.Model, tokenizer: Any, rows: Sequence[Example], cell: Cell, spec: FinetuneSpec, folder: Path
) -> Any:
    """Return TRL's trainer of one adapter, ready to train; the adapter is put into the model in place.

    Args:
        folder: where the trainer may write; nothing of it is kept.

    Raises:
        ModelError: TRL or PEFT refuse the model.
    """
    plan = loaded.plan
    datasets.disable_progress_bars()
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulate,
        gradient_checkpointing=spec.gradient_checkpointing,
        learning_rate=cell.learning_rate,
        weight_decay=spec.weight_decay,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        seed=cell.seed,
        data_seed=cell.seed,
        bf16=plan.dtype == torch.bfloat16,
        fp16=plan.dtype == torch.float16,
        use_cpu=plan.device.type == "cpu",
        dataloader_pin_memory=plan.device.type == "cuda",
        max_length=None,
        packing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    adapter = peft.LoraConfig(
        r=cell.r,
        lora_alpha=cell.alpha,
        target_modules=_modules(cell.targets),
        lora_dropout=spec.dropout,
        task_type="CAUSAL_LM",
    )
    try:
        made = trl.SFTTrainer(
            model=loaded.module,
            args=arguments,
            # Ready for the trainer, which leaves tokens and labels as they are: it would add an end after the answer.
            train_dataset=datasets.Dataset.from_dict(examples.columns(rows)),
            processing_class=tokenizer,
            peft_config=adapter,
        )
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ModelError(f"model {plan.checkpoint.name} cannot be trained: {first_line(error)}") from error
    made.remove_callback(PrinterCallback)
    return made


def train(
    plan: Plan, tokenizer: Any, given: Examples, cell: Cell, spec: FinetuneSpec, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Train an adapter, save it as safetensors, and return what is known of it.

    Args:
        folder: takes `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ModelError: the model cannot be trained so, or its loss is no number any more.
    """
    started = time.monotonic()
    # Every cell begins with the weights as they are on the disk.
    loaded = model.load(plan)
    with tempfile.TemporaryDirectory() as scratch, quiet(), _no_warnings():
        made = trainer(loaded, tokenizer, given.of(TRAIN), cell, spec, Path(scratch))
        total = -(-len(given.of(TRAIN)) // (spec.batch_size * spec.accumulate)) * spec.epochs
        with progress.task(f"finetune {cell.name}", math.ceil(total), "steps") as task:
            made.add_callback(_Steps(task))
            try:
                made.train()
            except torch.OutOfMemoryError as error:
                raise ModelError(
                    f"training {cell.name} takes more memory than {plan.device} has: lower finetune.batch_size and raise"
                    " finetune.accumulate, or set finetune.gradient_checkpointing"
                ) from error
        losses = [[int(line["step"]), float(line["loss"])] for line in made.state.log_history if "loss" in line]
        adapted = made.model
        if not all(math.isfinite(loss) for _, loss in losses) or not all(
            value.isfinite().all() for value in adapted.parameters() if value.requires_grad
        ):
            raise ModelError(
                f"training {cell.name} diverged: its loss is no number; use a lower learning rate or alpha"
            )
        adapted.eval()
        config = adapted.peft_config["default"]
        config.base_model_name_or_path = plan.checkpoint.name
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        # PEFT's model card says nothing, and where the model lay.
        (folder / "README.md").unlink(missing_ok=True)
        trained = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
        measured = measure(adapted, given, plan.device)
    return {
        "trainable_parameters": trained,
        "steps": int(made.state.global_step),
        "losses": losses,
        "measured": measured,
        "seconds": round(time.monotonic() - started, 3),
    }


def measure(module: Any, given: Examples, device: torch.device) -> dict[str, dict[str, float | int]]:
    """Return the accuracy and the answers' surprisal on every part that has rows."""
    found = {}
    for part in (TRAIN, VALIDATION, TEST):
        rows = given.of(part)
        if rows:
            found[part] = evaluate.accuracy(evaluate.log_probabilities(module, rows, device), rows)
    return found


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
