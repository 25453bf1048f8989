"""Runs a loaded model over the samples that lack something, and publishes what comes of it."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from layercache.errors import ModelError
from layercache.extract import batching, budgets, placement, quantize, reference, selfcheck
from layercache.extract.batching import Batch, Budget
from layercache.extract.choices import Choices, Scorer
from layercache.extract.forward import Collect, Forward, Reducer
from layercache.extract.generation import generate
from layercache.extract.generation.generate import Generate
from layercache.extract.generation.sampling import Settings
from layercache.extract.lens import LensReducer
from layercache.extract.model import Feed, Model, vocabulary
from layercache.extract.pooling import HiddenReducer
from layercache.extract.provenance import provenance
from layercache.extract.publish import Publisher, ShardLimits, ShardWriter
from layercache.extract.select import Selection
from layercache.extract.token_stats import TokenStatsReducer
from layercache.extract.tokenize import Sample
from layercache.extract.unembed import Unembedding
from layercache.extract.words import Words
from layercache.outputs import Hidden, Lens, Stats
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec
from layercache.store.holdings import Outputs
from layercache.store.layout import CLEAN, Run

CHECKED = 8
"""Samples of every group that the self-check takes its pieces from."""

_PROBES = (1024, 4096)
"""Tokens of the batches that memory is measured with."""

Group = tuple[Outputs, list[Sample]]
"""Outputs by name, and the samples that lack them."""
Started = tuple[list[Sample], list[tuple[str, Collect]]]
"""A batch that has been started, and what collects the rows of every table."""


class _Work(NamedTuple):
    """A group and what turns its batches into rows; `scorer` runs before each batch."""

    means: Forward | Generate
    scorer: Scorer | None
    outputs: Outputs
    samples: list[Sample]


class Loop:
    """Batches → forward → reduce → shards, for one loaded model.

    Args:
        longest: tokens of the longest sample, for the automatic budget.
        choices: the answers that the lens scores.

    Attributes:
        batches, padded_tokens, generated: run so far; the last counts the tokens of generated texts.
        shards: the conditions and names of what was published.
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
        self.spec, self.progress, self.choices, self.longest = spec, progress, choices, longest
        self.words, self.tokenizer = Words(tokenizer), tokenizer
        # Any id will do where the mask says padding, as long as the model has an embedding for it.
        pad, size = tokenizer.pad_token_id, vocabulary(model.plan)
        self.pad_id = pad if pad is not None and (size is None or pad < size) else 0
        self.model = replace(model, feed=Feed(left=tokenizer.padding_side == "left"))
        headed = spec.lens or spec.save_head or spec.generate_layers
        self.unembedding = Unembedding(model) if headed else None
        self.budget = budgets.choose(model.plan, spec, longest, model.devices)
        self.batches = self.padded_tokens = self.generated = 0
        self.shards: set[tuple[str, str | None]] = set()
        self.notes: list[str] = []
        self.lacking: Counter[tuple[str, str]] = Counter()
        if model.quantized is not None:
            self._note(quantize.note(model.quantized))
        if (slow := placement.note(model.module)) is not None:
            self._note(slow)

    def check(self, samples: list[Sample]) -> dict[str, Any]:
        """Check the model, unless that is not wanted; feed it and read its lens from then on as was found right.

        Returns:
            What shards are to say of how they were made.

        Raises:
            ModelError: the model fails its self-check.
        """
        if not self.spec.self_check:
            return provenance(self.model, self.spec, None)
        found = selfcheck.check(self.model, samples, self.pad_id, self.unembedding, left=self.model.feed.left)
        self.model = replace(self.model, feed=found.feed)
        self._keep_to(found.feed)
        if found.why is not None:
            self._note(f"prompts are run {found.feed}, since {found.why}")
        if found.own_code:
            self.unembedding = Unembedding(self.model, own_code=True)
        return provenance(self.model, self.spec, found.as_json())

    def compare(self, samples: list[Sample], expected: dict[int, torch.Tensor]) -> dict[str, Any]:
        """Measure how far this run's states are from others of the same samples.

        Args:
            expected: layer → float32 [samples, d] at every sample's last token, as `reference.states` gives them.

        Returns:
            The differences, for the provenance; a note tells the user.

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
        found = reference.differences(keep.stacked(samples), expected)
        self._note(reference.note(found))
        return found

    def run(
        self,
        run: Run,
        selection: Selection,
        groups: Sequence[Group],
        name: str,
        limits: ShardLimits,
        made: dict[str, Any],
        condition: str = CLEAN,
    ) -> None:
        """Run every group and publish its shards.

        Args:
            selection: every output asked for.
            groups: some of those outputs by name, and the samples that lack them.
            name: the data set's, for the progress bar.
            made: the shards' provenance, as `check` returns it.
            condition: how the samples are run; only the clean ones can lack texts.

        Raises:
            ModelError: memory runs out on a single prompt.
            StoreError: a shard cannot be published.
        """
        states, texts = split_texts(groups)
        generators = [self._generator(outputs, samples) for outputs, samples in texts]
        if states:
            work = [self._states(selection, outputs, samples) for outputs, samples in states]
            self._fit_budget(work[0])
            title = f"extract {name}" if condition == CLEAN else f"{condition} {name}"
            self._publish(run, f"{title}, {run.model}", work, limits, made, condition)
        before = self.budget
        for generator, one in generators:
            self.budget = generate.budget(
                self.model.plan, self.longest, generator.layers, self.spec.max_new_tokens, self.spec.batch_tokens
            )
            self._keep_to(self.model.feed)
            settings = {"generation": {str(generator.settings.output): generator.settings.as_json()}}
            self._publish(run, f"generate {name}, {run.model}", [one], limits, made | settings)
            self._note_once(generator.note)
        self.budget = before

    def _fit_budget(self, work: _Work) -> None:
        """Measure on a GPU what a token takes, with a small batch and a larger one of the longest samples."""
        device = self.model.plan.device
        if self.spec.batch_tokens or device.type != "cuda":
            return
        longest = sorted(work.samples, key=len, reverse=True)
        found = []
        for tokens in _PROBES:
            members = batching.split(longest[:tokens], Budget(min(tokens, self.budget.tokens)))[0]
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            if self._attempt(work.means, work.scorer, members) is None:
                return
            found.append((batching.padded(members), torch.cuda.max_memory_allocated(device) - before))
        self.budget.tokens = min(
            batching.fitted(self.model.plan, *found), budgets.shard_tokens(self.model.plan, self.spec)
        )

    def _states(self, selection: Selection, outputs: Outputs, samples: list[Sample]) -> _Work:
        return _Work(self._forward(selection, outputs), self._scorer(selection, outputs), outputs, samples)

    def _publish(
        self,
        run: Run,
        title: str,
        work: Sequence[_Work],
        limits: ShardLimits,
        made: dict[str, Any],
        condition: str = CLEAN,
    ) -> None:
        total = sum(len(one.samples) for one in work)
        with self.progress.task(title, total) as task, Publisher() as publisher:
            for one in work:
                shards = ShardWriter(
                    run,
                    one.outputs,
                    publisher,
                    self.words,
                    provenance=made,
                    allow_nonfinite=self.spec.allow_nonfinite,
                    limits=limits,
                    condition=condition,
                )
                if isinstance(one.means, Generate):
                    one.means.on_step = lambda tokens: self._generated(tokens, task)
                self._run_group(one, shards, task)
        self.shards |= publisher.published

    def _run_group(self, work: _Work, shards: ShardWriter, task: Task) -> None:
        """Run batches, each one's rows collected after the next has been started, and publish the last shard.

        What has been run is kept however the run ends: by an error, or by Ctrl-C.
        """
        last: Started | None = None
        try:
            for started in self._passes(work):
                before, last = last, started
                if before is not None:
                    self._collect(before, shards, task)
        finally:
            if last is not None:
                self._collect(last, shards, task)
            shards.close()

    def _collect(self, started: Started, shards: ShardWriter, task: Task) -> None:
        members, tables = started
        rows = [(table, collect()) for table, collect in tables]
        lacking = [one for _, found in rows for one in found.absent]
        self.lacking.update((one.output, one.reason) for one in lacking)
        shards.add(members, [(table, found.columns) for table, found in rows], lacking)
        self.batches += 1
        self.padded_tokens += batching.padded(members)
        task.advance(len(members), tokens=sum(len(sample) for sample in members))

    def _passes(self, work: _Work) -> Iterator[Started]:
        """Yield batches that have been started, cut smaller where memory runs out."""
        for window in batching.windows(work.samples, self.budget, self.spec.seed):
            waiting = deque(window)
            while waiting:
                members = waiting.popleft()
                if len(members) > 1 and batching.padded(members) > self.budget.tokens:
                    # Planned before memory ran out on another batch.
                    waiting.extendleft(reversed(batching.split(members, self.budget)))
                    continue
                tables = self._attempt(work.means, work.scorer, members)
                if tables is None:
                    waiting.extendleft(reversed(self._smaller(members)))
                    continue
                yield members, tables

    def _attempt(
        self, means: Forward | Generate, scorer: Scorer | None, members: list[Sample]
    ) -> list[tuple[str, Collect]] | None:
        """Run one batch; None when memory ran out, with everything that the batch held let go."""
        try:
            if scorer is not None:
                scorer.score(members, self.budget)
            return means.run(self._collate(members))
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

    def _collate(self, members: list[Sample]) -> Batch:
        plan = self.model.plan
        return batching.collate(
            members, plan.device, pad_id=self.pad_id, position_offset=plan.position_offset, left=self.model.feed.left
        )

    def _keep_to(self, feed: Feed) -> None:
        """Make batches only of prompts that may share one."""
        self.budget.equal = feed.together == "equal"
        if feed.together == "alone":
            self.budget.rows = 1

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

    def _generator(self, outputs: Outputs, samples: list[Sample]) -> tuple[Generate, _Work]:
        """Set up generation for a group that lacks texts, and see whether the model takes the fast way."""
        settings = Settings.of(self.spec, self.model.plan.checkpoint)
        generator = Generate(
            self.model,
            self.tokenizer,
            settings,
            outputs[str(settings.output)] or [],
            samples[:CHECKED],
            pad_id=self.pad_id,
            allow_nonfinite=self.spec.allow_nonfinite,
        )
        self._note_once(generator.note)
        return generator, _Work(generator, None, outputs, samples)

    def _generated(self, tokens: int, task: Task) -> None:
        self.generated += tokens
        task.advance(0, generated=tokens)

    def _note_once(self, text: str | None) -> None:
        if text is not None and text not in self.notes:
            self._note(text)

    def _note(self, text: str) -> None:
        self.progress.note(text)
        self.notes.append(text)


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
