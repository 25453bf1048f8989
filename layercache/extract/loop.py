"""Runs a loaded model over the samples that lack something, and publishes what comes of it."""

import platform
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers

import layercache
from layercache.errors import ModelError
from layercache.extract import batching, quantize, reference, selfcheck
from layercache.extract.batching import Batch, Budget
from layercache.extract.choices import Choices, Scorer
from layercache.extract.forward import Collect, Forward, Reducer
from layercache.extract.lens import LensReducer
from layercache.extract.model import Feed, Model, vocabulary
from layercache.extract.pooling import HiddenReducer
from layercache.extract.publish import SHARD_BYTES, Publisher, ShardLimits, ShardWriter
from layercache.extract.select import Selection
from layercache.extract.token_stats import TokenStatsReducer
from layercache.extract.tokenize import Sample
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.outputs import Hidden, Lens, Stats
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec
from layercache.store.holdings import Outputs
from layercache.store.layout import Run

CHECKED = 8
"""Samples of every group that the self-check takes its two pieces from."""


class _Started(NamedTuple):
    """A batch that has been started, and what collects the rows of every table."""

    members: list[Sample]
    tables: list[tuple[str, Collect]]


class Loop:
    """Batches → forward → reduce → shards, for one loaded model.

    Args:
        longest: tokens of the longest sample, for the automatic budget.
        choices: the answers that the lens scores.

    Attributes:
        batches, padded_tokens: run so far.
        notes: what the user should know (memory that ran out, what is quantised, the noise measured).
        lacking: (output, reason) → samples whose states gave no row.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        spec: ExtractSpec,
        longest: int,
        progress: Progress,
        choices: Choices | None = None,
    ) -> None:
        self.spec, self.progress, self.choices = spec, progress, choices
        self.words = Words(tokenizer)
        # Any id will do where the mask says padding, as long as the model has an embedding for it.
        pad, size = tokenizer.pad_token_id, vocabulary(model.plan)
        self.pad_id = pad if pad is not None and (size is None or pad < size) else 0
        self.model = replace(model, feed=Feed(left=tokenizer.padding_side == "left"))
        self.unembedding = Unembedding(model) if spec.lens or spec.save_head else None
        tokens = spec.batch_tokens
        self.budget = Budget(tokens) if tokens else batching.automatic(model.plan, longest, model.devices)
        if not tokens:
            # One row a token: a batch must not hold more than a shard does.
            self.budget.tokens = max(1, min(self.budget.tokens, SHARD_BYTES // max(1, _bytes_a_token(model, spec))))
        self.batches = self.padded_tokens = 0
        self.notes: list[str] = []
        self.lacking: Counter[tuple[str, str]] = Counter()
        self.reference: dict[str, Any] | None = None
        if model.quantized is not None:
            self._note(quantize.note(model.quantized))

    def run(
        self,
        run: Run,
        selection: Selection,
        groups: Sequence[tuple[Outputs, list[Sample]]],
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
        checked = self.check([sample for _, samples in groups for sample in samples[:CHECKED]])
        provenance = self._provenance(checked)
        total = sum(len(samples) for _, samples in groups)
        with self.progress.task(f"extract {name}", total) as task, Publisher() as publisher:
            for outputs, samples in groups:
                shards = ShardWriter(
                    run,
                    outputs,
                    publisher,
                    self.words,
                    provenance=provenance,
                    allow_nonfinite=self.spec.allow_nonfinite,
                    limits=limits,
                )
                scorer = self._scorer(selection, outputs)
                self._run_group(self._forward(selection, outputs), scorer, samples, shards, task)
                shards.close()

    def compare(self, samples: list[Sample], expected: dict[int, torch.Tensor]) -> None:
        """Measure how far this run's states are from others of the same samples, for the provenance and a note.

        Args:
            expected: layer → float32 [samples, d] at every sample's last token, as `reference.states` gives them.

        Raises:
            ModelError: memory runs out on a single prompt.
        """
        keep = reference.LastTokens(list(expected))
        forward = Forward(self.model, [keep])
        waiting = deque(batching.split(samples, self.budget))
        while waiting:
            members = waiting.popleft()
            if self._attempt(forward, None, members) is None:
                waiting.extendleft(reversed(self._smaller(members)))
        self.reference = reference.differences(keep.stacked(samples), expected)
        self._note(reference.note(self.reference))

    def check(self, samples: list[Sample]) -> dict[str, Any] | None:
        """Check the model, unless that is not wanted; feed it and read its lens from then on as was found right.

        Returns:
            What was found, for a shard's provenance.
        """
        if not self.spec.self_check:
            return None
        found = selfcheck.check(self.model, samples, self.pad_id, self.unembedding, left=self.model.feed.left)
        self.model = replace(self.model, feed=found.feed)
        self.budget.equal = found.feed.together == "equal"
        if found.feed.together == "alone":
            self.budget.rows = 1
        if found.why is not None:
            self._note(f"prompts are run {found.feed}, since {found.why}")
        if found.own_code:
            self.unembedding = Unembedding(self.model, own_code=True)
        return found.as_json()

    def _note(self, text: str) -> None:
        self.progress.note(text)
        self.notes.append(text)

    def _forward(self, selection: Selection, outputs: Outputs) -> Forward:
        """Set up the reducers of the outputs that a group lacks."""
        asked = {output: list(outputs[str(output)] or []) for output in selection if str(output) in outputs}
        hidden = {output: layers for output, layers in asked.items() if isinstance(output, Hidden)}
        lenses = {output: layers for output, layers in asked.items() if isinstance(output, Lens)}
        stats = {output: layers for output, layers in asked.items() if isinstance(output, Stats)}
        reducers: list[Reducer] = []
        if hidden:
            reducers.append(HiddenReducer(hidden, self.spec.precision))
        if lenses and self.unembedding is not None:
            final = self.model.structure.n_layers
            reducers.append(LensReducer(lenses, final, self.unembedding, self.words, self.choices))
        if stats:
            reducers.append(TokenStatsReducer(stats))
        return Forward(self.model, reducers)

    def _scorer(self, selection: Selection, outputs: Outputs) -> Scorer | None:
        """Set up the passes that answers of several tokens take; None where a group lacks no scores."""
        scored = [
            outputs[str(one)] for one in selection if isinstance(one, Lens) and one.choices and str(one) in outputs
        ]
        if not scored or self.choices is None or self.unembedding is None:
            return None
        return Scorer(self.model, self.unembedding, self.choices, scored[0] or [], self._collate)

    def _run_group(
        self, forward: Forward, scorer: Scorer | None, samples: list[Sample], shards: ShardWriter, task: Task
    ) -> None:
        """Run batches, each one's rows collected after the next has been started."""
        started: _Started | None = None
        for one in self._passes(forward, scorer, samples):
            if started is not None:
                self._collect(started, shards, task)
            started = one
        if started is not None:
            self._collect(started, shards, task)

    def _collect(self, started: _Started, shards: ShardWriter, task: Task) -> None:
        members, tables = started
        rows = [(table, collect()) for table, collect in tables]
        lacking = [one for _, found in rows for one in found.absent]
        self.lacking.update((one.output, one.reason) for one in lacking)
        shards.add(members, [(table, found.columns) for table, found in rows], lacking)
        self.batches += 1
        self.padded_tokens += batching.padded(members)
        task.advance(len(members), tokens=sum(len(sample) for sample in members))

    def _passes(self, forward: Forward, scorer: Scorer | None, samples: list[Sample]) -> Iterator[_Started]:
        """Yield batches that have been started, cut smaller where memory runs out."""
        for window in batching.windows(samples, self.budget, self.spec.seed):
            waiting = deque(window)
            while waiting:
                members = waiting.popleft()
                if len(members) > 1 and batching.padded(members) > self.budget.tokens:
                    # Planned before memory ran out on another batch.
                    waiting.extendleft(reversed(batching.split(members, self.budget)))
                    continue
                tables = self._attempt(forward, scorer, members)
                if tables is None:
                    waiting.extendleft(reversed(self._smaller(members)))
                    continue
                yield _Started(members, tables)

    def _collate(self, members: list[Sample]) -> Batch:
        plan = self.model.plan
        return batching.collate(
            members, plan.device, pad_id=self.pad_id, position_offset=plan.position_offset, left=self.model.feed.left
        )

    def _attempt(
        self, forward: Forward, scorer: Scorer | None, members: list[Sample]
    ) -> list[tuple[str, Collect]] | None:
        """Run one batch; None when memory ran out, with everything that the batch held let go."""
        try:
            if scorer is not None:
                scorer.score(members, self.budget)
            return forward.run(self._collate(members))
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
        self.budget.halve(batching.padded(members))
        if self.model.plan.device.type == "cuda":
            torch.cuda.empty_cache()
        self._note(f"memory ran out: batches are now {self.budget.tokens:,} tokens")
        return batching.split(members, self.budget)

    def _provenance(self, checked: dict[str, Any] | None) -> dict[str, Any]:
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
            "device_map": plan.device_map,
            "dtype": plan.dtype_name,
            "attention": plan.attention,
            "precision": self.spec.precision,
            "model": plan.checkpoint.name,
            "self_check": checked,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._special(),
        }

    def _special(self) -> dict[str, Any]:
        """Say what an ordinary run has nothing to say about."""
        plan, quantized = self.model.plan, self.model.quantized
        told: dict[str, Any] = {}
        if quantized is not None:
            told["bitsandbytes"] = metadata.version("bitsandbytes")
            told["quantized"] = quantized
            told["batch_dependent"] = quantized["batch_dependent"]
        if plan.checkpoint.adapter is not None:
            told["peft"] = metadata.version("peft")
            told["adapter"] = plan.checkpoint.adapter.name
        if plan.compiled:
            told["compile"] = True
        if self.reference is not None:
            told["reference"] = self.reference
        return told


def _bytes_a_token(model: Model, spec: ExtractSpec) -> int:
    """Count the bytes of states that every token leaves behind, where states are stored one row a token."""
    layers = len(model.structure.layers) if spec.layers == "all" else len(set(spec.layers))
    rows = sum(isinstance(output, Hidden) and output.pooling.how == "token" for output in spec.outputs())
    return rows * layers * model.structure.width * 4
