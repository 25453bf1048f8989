"""Runs a loaded model over the samples that lack something, and publishes what comes of it."""

import platform
import socket
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import tokenizers
import torch
import transformers

import layercache
from layercache.errors import ModelError
from layercache.extract import batching, generate, selfcheck
from layercache.extract.batching import Budget
from layercache.extract.forward import Forward, Reducer
from layercache.extract.generate import Generate
from layercache.extract.lens import LensReducer
from layercache.extract.model import Model
from layercache.extract.pooling import HiddenReducer
from layercache.extract.publish import Publisher, ShardLimits, ShardWriter
from layercache.extract.sampling import Settings
from layercache.extract.select import Selection
from layercache.extract.tokenize import Sample
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.outputs import Hidden, Lens
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec
from layercache.store.holdings import Outputs
from layercache.store.layout import Run

Group = tuple[Outputs, list[Sample]]
Runs = Forward | Generate
"""What turns a batch into rows of tables."""

_CHECKED = 8
"""Samples of every group that the self-check takes its two pieces from."""


class Loop:
    """Batches → forward → reduce → shards, for one loaded model.

    Args:
        longest: tokens of the longest sample, for the automatic budget.

    Attributes:
        batches, padded_tokens, generated: run so far; the last counts the tokens of generated texts.
        notes: what the user should know (memory that ran out).
    """

    def __init__(self, model: Model, tokenizer: Any, spec: ExtractSpec, longest: int, progress: Progress) -> None:
        self.model, self.spec, self.progress = model, spec, progress
        self.words, self.tokenizer = Words(tokenizer), tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.left = tokenizer.padding_side == "left"
        self.longest = longest
        self.unembedding = Unembedding(model) if spec.lens or spec.generate_layers else None
        tokens = spec.batch_tokens
        self.budget = Budget(tokens) if tokens else batching.automatic(model.plan, longest)
        self.batches = self.padded_tokens = self.generated = 0
        self.notes: list[str] = []

    def run(
        self,
        run: Run,
        selection: Selection,
        groups: Sequence[Group],
        name: str,
        limits: ShardLimits,
    ) -> None:
        """Check the model, then run every group and publish its shards.

        Args:
            selection: every output asked for.
            groups: some of those outputs by name, and the samples that lack them.
            name: the data set's, for the progress bar.

        Raises:
            ModelError: the model fails its self-check, or memory runs out on a single prompt.
            StoreError: a shard cannot be published.
        """
        checked = self._check([sample for _, samples in groups for sample in samples[:_CHECKED]])
        provenance = self._provenance(checked)
        states, texts = split_texts(groups)
        generators = self._generators(texts)
        if states:
            passes = [(self._forward(selection, outputs), outputs, samples) for outputs, samples in states]
            self._publish(run, f"extract {name}", passes, provenance, limits)
        for generator, outputs, samples in generators:
            most = self.spec.batch_tokens
            self.budget = generate.budget(
                self.model.plan, self.longest, generator.layers, self.spec.max_new_tokens, most
            )
            settings = {"generation": {str(generator.settings.output): generator.settings.as_json()}}
            self._publish(run, f"generate {name}", [(generator, outputs, samples)], provenance | settings, limits)

    def _publish(
        self,
        run: Run,
        title: str,
        work: Sequence[tuple[Runs, Outputs, list[Sample]]],
        provenance: dict[str, Any],
        limits: ShardLimits,
    ) -> None:
        """Run groups of samples, each by its own means, and publish their shards."""
        total = sum(len(samples) for _, _, samples in work)
        with self.progress.task(title, total) as task, Publisher() as publisher:
            for means, outputs, samples in work:
                shards = ShardWriter(
                    run,
                    outputs,
                    publisher,
                    self.words,
                    provenance=provenance,
                    allow_nonfinite=self.spec.allow_nonfinite,
                    limits=limits,
                )
                if isinstance(means, Generate):
                    means.on_step = lambda tokens: self._generated(tokens, task)
                self._run_group(means, samples, shards, task)
                shards.close()
                if isinstance(means, Generate):
                    self._tell(means.note)

    def _tell(self, note: str | None) -> None:
        if note is not None and note not in self.notes:
            self.progress.note(note)
            self.notes.append(note)

    def _generated(self, tokens: int, task: Task) -> None:
        self.generated += tokens
        task.advance(0, generated=tokens)

    def _generators(self, groups: Sequence[Group]) -> list[tuple[Generate, Outputs, list[Sample]]]:
        """Set up generation for every group that lacks texts, and see whether the model takes the fast way."""
        settings = Settings.of(self.spec, self.model.plan.checkpoint) if groups else None
        found = []
        for outputs, samples in groups:
            assert settings is not None
            layers = outputs[str(settings.output)] or []
            generator = Generate(
                self.model,
                self.tokenizer,
                settings,
                layers,
                samples[:_CHECKED],
                pad_id=self.pad_id,
                allow_nonfinite=self.spec.allow_nonfinite,
            )
            self._tell(generator.note)
            found.append((generator, outputs, samples))
        return found

    def _check(self, samples: list[Sample]) -> dict[str, float | None] | None:
        if not self.spec.self_check:
            return None
        return selfcheck.check(self.model, samples, self.pad_id, self.unembedding).as_json()

    def _forward(self, selection: Selection, outputs: Outputs) -> Forward:
        """Set up the reducers of the outputs that a group lacks."""
        asked = {output: list(outputs[str(output)] or []) for output in selection if str(output) in outputs}
        hidden = {output: layers for output, layers in asked.items() if isinstance(output, Hidden)}
        lenses = {output: layers for output, layers in asked.items() if isinstance(output, Lens)}
        reducers: list[Reducer] = []
        if hidden:
            reducers.append(HiddenReducer(hidden, self.spec.precision))
        if lenses and self.unembedding is not None:
            reducers.append(LensReducer(lenses, self.model.structure.n_layers, self.unembedding, self.words))
        return Forward(self.model, reducers)

    def _run_group(self, forward: Runs, samples: list[Sample], shards: ShardWriter, task: Task) -> None:
        for window in batching.windows(samples, self.budget, self.spec.seed):
            waiting = deque(window)
            while waiting:
                members = waiting.popleft()
                if len(members) > 1 and _padded(members) > self.budget.tokens:
                    # Planned before memory ran out on another batch.
                    waiting.extendleft(reversed(batching.split(members, self.budget)))
                    continue
                tables = self._attempt(forward, members)
                if tables is None:
                    waiting.extendleft(reversed(self._smaller(members)))
                    continue
                shards.add(members, tables)
                self.batches += 1
                self.padded_tokens += _padded(members)
                task.advance(len(members), tokens=sum(len(sample) for sample in members))

    def _attempt(self, forward: Runs, members: list[Sample]) -> list[tuple[str, dict[str, Any]]] | None:
        """Run one batch; None when memory ran out, with everything that the batch held let go."""
        plan = self.model.plan
        try:
            batch = batching.collate(
                members, plan.device, pad_id=self.pad_id, position_offset=plan.position_offset, left=self.left
            )
            return forward.run(batch)
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error):
                raise
            return None

    def _smaller(self, members: list[Sample]) -> list[list[Sample]]:
        """Halve the budget after memory ran out, and cut the batch to it."""
        if len(members) == 1:
            raise ModelError(
                f"memory runs out on a single prompt of {len(members[0]):,} tokens: use a smaller dtype or model, or"
                " leave the prompt out"
            )
        self.budget.halve(_padded(members))
        if self.model.plan.device.type == "cuda":
            torch.cuda.empty_cache()
        note = f"memory ran out: batches are now {self.budget.tokens:,} tokens"
        self.progress.note(note)
        self.notes.append(note)
        return batching.split(members, self.budget)

    def _provenance(self, checked: dict[str, float | None] | None) -> dict[str, Any]:
        """Say what a shard is made with; none of it is part of the run's identity."""
        plan = self.model.plan
        gpu = plan.device.type == "cuda"
        return {
            "layercache": layercache.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name(plan.device) if gpu else f"{plan.device.type} {platform.machine()}",
            "dtype": plan.dtype_name,
            "attention": plan.attention,
            "precision": self.spec.precision,
            "model": plan.checkpoint.name,
            "self_check": checked,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def split_texts(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Part what samples lack into states and lenses, and generated texts: those run in batches of their own."""
    states, texts = [], []
    for outputs, samples in groups:
        generated = {name: layers for name, layers in outputs.items() if name.startswith("generation:")}
        others = {name: layers for name, layers in outputs.items() if name not in generated}
        if others:
            states.append((others, samples))
        texts += [({name: layers}, samples) for name, layers in generated.items()]
    return states, texts


def _padded(members: list[Sample]) -> int:
    """Count the tokens of a batch, padding included."""
    return max(len(sample) for sample in members) * len(members)
