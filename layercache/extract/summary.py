"""What an extraction did, or would do."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from layercache.extract.estimate import time_text
from layercache.quantities import in_words

_ADDED = (
    *("new_samples", "forward_passes", "batches", "tokens", "padded_tokens", "choice_passes", "choice_tokens"),
    *("generated_tokens", "new_answers", "bytes"),
)
"""Counts of a summary that those of parts add up to."""


@dataclass
class ConditionSummary:
    """What one extraction did, or would do, under one condition.

    Attributes:
        cached: samples for which nothing was missing.
        forward_passes, tokens: samples put through the model, and their tokens.
        unchanged: of those, samples that the condition leaves as they are.
        left_out: reason → samples that it cannot be made of, now or when they were asked for before.
        absent: output → of the samples run, those that have no row of it, by reason.
    """

    condition: str
    cached: int = 0
    forward_passes: int = 0
    tokens: int = 0
    unchanged: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    absent: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.forward_passes:,} passes"]
        parts += [f"{self.cached:,} complete already"] if self.cached else []
        parts += [f"{self.unchanged:,} come out as they were"] if self.unchanged else []
        parts += [f"{count:,} left out ({reason})" for reason, count in self.left_out.items()]
        nothing = "" if self.forward_passes or self.cached or not self.left_out else "WARNING: no sample can be run: "
        return f"  {self.condition}: {nothing}{', '.join(parts)}"


@dataclass
class Summary:
    """What one extraction did; with `dry_run`, what it would do.

    Attributes:
        run: the run's id in the store; empty in a dry run of a run that is not there yet.
        rows: rows of the data set.
        part: which part of the samples this was, `2/4`; None for all. Counts of samples are the part's, those of rows
            and of answers are not.
        samples: distinct prompts.
        waiting: what is left until every prompt has its answer, since it depends on all: conditions, outputs.
        cached: samples for which nothing was missing.
        new_samples: samples of which the run held nothing before.
        forward_passes: samples put through the model, under every condition; `listing.forward_passes` counts those
            that a store holds in the same way.
        batches, tokens, padded_tokens: of those passes; in a dry run of those to come.
        choice_passes, choice_tokens: further passes over a prompt and an answer of several tokens, and their tokens.
        generated_tokens: of the texts generated, of all layers together.
        new_answers: prompts that the model answered now, or would.
        answers: rows by what their answers are: correct, wrong, dont_know, empty, unlabelled; empty where none is asked for.
        bytes: what was added to the store, rows files left out.
        seconds: that this run took; where several processes share it, those in which any was at it.
        head_bytes: of the head, where this extraction saved it.
        absent: output → samples that have no row of it, by reason.
        conditions: the counts of every condition beside the clean one.
        estimate: table → bytes it would take; only what is missing counts.
        free_bytes: space left where the store is.
        memory_bytes, free_memory_bytes: in a dry run, of the device: what the run takes at its peak, an
            estimate unless it was measured, and what is free now.
        tokens_per_second: padded tokens, in a dry run that measured them; else 0.
    """

    run: str
    model: str
    data: str
    rows: int = 0
    samples: int = 0
    cached: int = 0
    new_samples: int = 0
    forward_passes: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    choice_passes: int = 0
    choice_tokens: int = 0
    generated_tokens: int = 0
    new_answers: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    head_bytes: int = 0
    seconds: float = 0.0
    absent: dict[str, dict[str, int]] = field(default_factory=dict)
    conditions: list[ConditionSummary] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dry_run: bool = False
    estimate: dict[str, int] = field(default_factory=dict)
    free_bytes: int = 0
    memory_bytes: int = 0
    free_memory_bytes: int = 0
    tokens_per_second: float = 0.0
    part: str | None = None
    waiting: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Summary":
        """Read what another process said."""
        return cls(**{**value, "conditions": [ConditionSummary(**one) for one in value["conditions"]]})

    def __str__(self) -> str:
        part = f" in part {self.part}" if self.part else ""
        opening = f"{self.model} on {self.data}: {self.rows:,} rows, {self.samples:,} samples{part}"
        under = ["", " under every condition"][bool(self.conditions)]
        lines = [f"{opening}, {self.cached:,} of them complete in the store already{under}"]
        if self.conditions:
            clean = self.forward_passes - sum(one.forward_passes for one in self.conditions)
            lines += [f"  clean: {clean:,} passes, {self.samples - clean:,} complete already"]
        lines += self._planned() if self.dry_run else self._done()
        lines += [f"  {told(self.answers)}"] if any(self.answers.values()) else []
        lines += [str(one) for one in self.conditions]
        lines += [
            f"  {where}{output}: {count:,} samples have none ({reason})"
            for where, absent in [("", self.absent), *((f"{one.condition}: ", one.absent) for one in self.conditions)]
            for output, reasons in absent.items()
            for reason, count in reasons.items()
        ]
        lines += [self._left()] if self.waiting else []
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def _left(self) -> str:
        return f"  left until every prompt has its answer: {', '.join(self.waiting)}; then run the same command again"

    def _done(self) -> list[str]:
        head = [f"  head of {in_words(self.head_bytes)} saved beside run {self.run}"] if self.head_bytes else []
        if not self.forward_passes:
            return head or [f"  nothing to do: 0 forward passes, run {self.run}"]
        padding = self.padded_tokens / max(self.tokens, 1) - 1
        answers = f" in {self.new_answers:,} answers" if self.new_answers else ""
        text = [f"  {self.generated_tokens:,} tokens of text generated{answers}"] if self.generated_tokens else []
        return [
            f"  {self.forward_passes:,} forward passes ({self.new_samples:,} new samples), {self.tokens:,} tokens"
            f" in {self.batches:,} batches ({padding:.0%} padding), {self.seconds:,.1f} s",
            *self._choices(),
            *text,
            f"  {in_words(self.bytes)} added to run {self.run}",
            *head,
        ]

    def _choices(self) -> list[str]:
        if not self.choice_passes:
            return []
        return [f"  and {self.choice_passes:,} passes over prompt and choice, {self.choice_tokens:,} tokens"]

    def _planned(self) -> list[str]:
        sizes = ", ".join(f"{table} {in_words(size)}" for table, size in self.estimate.items() if size)
        total = sum(self.estimate.values())
        texts = [f"  would generate {self.new_answers:,} answers"] if self.new_answers else []
        what = "passes" if self.conditions else "samples"
        return [
            *texts,
            f"  would run {self.forward_passes:,} {what}, {self.tokens:,} tokens ({self.padded_tokens:,} with padding,"
            f" in {self.batches:,} batches)",
            *self._choices(),
            f"  would add about {in_words(total)} ({sizes or 'nothing'}); {in_words(self.free_bytes)} are free",
            *self._needs(),
        ]

    def _needs(self) -> list[str]:
        if not self.forward_passes:
            return []
        free = f"{in_words(self.free_memory_bytes)} are free"
        if not self.tokens_per_second:
            return [f"  would take about {in_words(self.memory_bytes)} of memory; {free}"]
        seconds = self.padded_tokens / self.tokens_per_second
        return [
            f"  took {in_words(self.memory_bytes)} of memory in a few batches; {free}",
            f"  would take about {time_text(seconds)} at {self.tokens_per_second:,.0f} padded tokens a second, generated"
            " texts not counted",
        ]


class Done(NamedTuple):
    """What a process did of a part, and when that was heard of, in seconds of the monotonic clock."""

    summary: Summary
    at: float


def united(whole: Summary, parts: Sequence[Done], lacking: int) -> Summary:
    """Return one summary of what was done in parts; its seconds are those in which any process was at one of them.

    Args:
        whole: of the last look at everything, when next to nothing was missing any more.
        parts: what was done of each.
        lacking: samples that lacked something before.
    """
    several = [one.summary for one in parts]
    every = [*several, whole]
    added: dict[str, Any] = {name: sum(getattr(one, name) for one in every) for name in _ADDED}
    return replace(
        whole,
        **added,
        # Who finds no head makes it; the files are one.
        head_bytes=max(one.head_bytes for one in every),
        cached=max(0, whole.samples - lacking),
        notes=list(dict.fromkeys(note for one in every for note in one.notes)),
        absent=_united_absent([one.absent for one in several], whole.absent),
        conditions=[
            _united_condition(one, [own for part in several for own in part.conditions], whole.samples)
            for one in whole.conditions
        ],
        seconds=_covered((one.at - one.summary.seconds, one.at) for one in parts) + whole.seconds,
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what spans (from, to) cover together."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _united_condition(whole: ConditionSummary, several: Sequence[ConditionSummary], samples: int) -> ConditionSummary:
    same = [one for one in several if one.condition == whole.condition]
    # What is left out for good is no longer looked at, what may come to be possible is counted in every look.
    left_out = dict(sum((Counter(one.left_out) for one in same), Counter())) | whole.left_out
    passes = sum(one.forward_passes for one in (*same, whole))
    return replace(
        whole,
        cached=max(0, samples - passes - sum(left_out.values())),
        forward_passes=passes,
        tokens=sum(one.tokens for one in (*same, whole)),
        unchanged=sum(one.unchanged for one in (*same, whole)),
        left_out=dict(sorted(left_out.items())),
        absent=_united_absent([one.absent for one in (*same, whole)], {}),
    )


def _united_absent(
    several: Iterable[dict[str, dict[str, int]]], whole: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """Add up counts; those that `whole` has are of everything already."""
    found: dict[str, Counter[str]] = {}
    for one in several:
        for output, reasons in one.items():
            found.setdefault(output, Counter()).update(reasons)
    return {output: {**found.get(output, {}), **whole.get(output, {})} for output in [*whole, *found]}


def told(balance: Mapping[str, int]) -> str:
    """Say how the answers came out."""
    total = max(sum(balance.values()), 1)
    words = {"dont_know": "do not know", "unlabelled": "with no accepted answer to go by"}
    parts = [
        f"{count:,} {words.get(kind, kind)} ({count / total:.1%})"
        for kind, count in balance.items()
        if count or kind in ("correct", "wrong")
    ]
    return f"answers of {sum(balance.values()):,} rows: {', '.join(parts)}"
