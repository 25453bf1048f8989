"""What a run does under each condition: which samples lack something there, and what they are changed to.

asked = stage.asked(spec, samples, blocks)           every condition of the settings
planned = stage.plan(condition, outputs, held, given)
planned.keep_left_out(run)                           those that it cannot be made of, in the store
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import layercache
from layercache import conditions
from layercache.conditions import ANSWER, ANSWER_ONLY, CONTROL, CONTROL_PATCH, CUTS, PATCH, Condition
from layercache.errors import DataError, RecipeError
from layercache.extract import select
from layercache.extract.conditions.change import change
from layercache.extract.conditions.given import Given, LeftOut
from layercache.extract.forward import Absent
from layercache.extract.sample_tables import not_run_columns
from layercache.extract.summary import ConditionSummary
from layercache.extract.tokenize import Sample, Samples
from layercache.recipe import ExtractSpec
from layercache.store.holdings import Holdings, Outputs
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.writer import Shard

_NOTHING = Holdings({}, [])


def asked(spec: ExtractSpec, samples: Samples, blocks: int, more: Iterable[str] = ()) -> list[Condition]:
    """Read the conditions that are asked for, each once and with the name its settings give it.

    Args:
        blocks: how many the model has.
        more: spans that the samples are going to have.

    Raises:
        RecipeError: a name that is not known, a span that is none, or a block that the model does not have.
        DataError: no prompt has a token of a condition's span.
    """
    more = set(more)
    known = {name for sample in samples.distinct.values() for name in (*sample.spans, *sample.absent)} | more
    settings = spec.condition_settings()
    found = [conditions.parse(name, known) for name in spec.condition_names()]
    for one in found:
        if one.layers is not None and one.layers[1] > blocks:
            raise RecipeError(f"condition {one.name}: the model's blocks are 1 to {blocks}")
        span = ANSWER if one.kind == ANSWER_ONLY else one.span
        drawn = settings.control_from if one.kind in (CONTROL, CONTROL_PATCH) else None
        for name in {span, drawn} - more:
            if name is not None:
                _check_span(name, one, known, samples)
    return list(dict.fromkeys(conditions.with_settings(one, settings) for one in found))


def _check_span(span: str, condition: Condition, known: set[str], samples: Samples) -> None:
    if span not in known:
        raise RecipeError(
            f"condition {condition.name} needs a span {span!r}; the spans are {', '.join(sorted(known)) or 'none'}"
            f" ({conditions.remedy(span)})"
        )
    if not any(span in sample.spans for sample in samples.distinct.values()):
        raise DataError(f"condition {condition.name}: the span {span!r} is empty in every prompt")


@dataclass(frozen=True)
class Stage:
    """What a run is to do under one condition.

    Attributes:
        made: what its shards' provenance says of it.
        groups: outputs, and the changed samples that lack them.
        left_out: outputs, and the clean samples that the condition cannot be made of and that are not yet said to be.
        summary: the counts.
    """

    condition: Condition
    made: dict[str, Any]
    groups: list[tuple[Outputs, list[Sample]]]
    left_out: list[tuple[Outputs, list[LeftOut]]]
    summary: ConditionSummary

    @property
    def cut(self) -> list[Sample]:
        """The samples whose attention is cut."""
        return [sample for _, samples in self.groups for sample in samples if self.condition.kind in CUTS]


def plan(
    condition: Condition,
    outputs: Outputs,
    store: Store | None,
    run: Run | None,
    given: Given,
    spec: ExtractSpec,
    mine: Callable[[str], bool] = lambda _: True,
) -> Stage:
    """Find the samples that lack outputs under a condition, and change those.

    Args:
        outputs: those asked for, by name.
        store, run: what holds them; None where there is none yet.
        given: what changed samples are made of; its donors are read from the store.
        spec: which samples are asked for which outputs.
        mine: tells the samples that are run; what the condition draws for them is drawn from all.
    """
    held = _NOTHING
    if store is not None and run is not None and condition.name in store.conditions(run):
        held = store.held(run, condition.name)
        given = _with_donors(given, condition, store, run)
    clean = given.samples.distinct
    summary = ConditionSummary(condition.name, cached=sum(map(mine, clean)))
    groups: list[tuple[Outputs, list[Sample]]] = []
    left_out: list[tuple[Outputs, list[LeftOut]]] = []
    known = _left_out_before(condition, store, run, {one for one in clean if mine(one)})
    reasons: Counter[str] = Counter()
    for lacked, ids in select.missing(held, outputs, list(clean), spec, mine):
        for one in ids:
            known.pop(one, None)
        changed = change(condition, [clean[one] for one in ids], given)
        final = [one for one in changed.left_out if one.final]
        groups += [(lacked, changed.samples)] if changed.samples else []
        left_out += [(lacked, final)] if final else []
        reasons.update(one.reason for one in changed.left_out)
        summary.cached -= len(ids)
        summary.unchanged += changed.unchanged
    reasons.update(known.values())
    summary.cached -= len(known)
    lacking = [sample for _, samples in groups for sample in samples]
    summary.forward_passes, summary.tokens = len(lacking), sum(map(len, lacking))
    summary.left_out = dict(sorted(reasons.items()))
    made = {"condition": conditions.parameters(condition, given.settings)}
    return Stage(condition, made, groups, left_out, summary)


def _left_out_before(condition: Condition, store: Store | None, run: Run | None, asked: Set[str]) -> dict[str, str]:
    """Return the samples, of those asked about, that the store says the condition cannot be made of, and why."""
    if store is None or run is None or condition.name not in store.conditions(run):
        return {}
    rows = store.samples(run, condition.name).filter(n_tokens=0).select("sample_id", "absent")
    return {one: absent[0]["reason"] for one, absent in rows.iter_rows() if one in asked and absent}


def _with_donors(given: Given, condition: Condition, store: Store, run: Run) -> Given:
    if condition.kind not in (PATCH, CONTROL_PATCH):
        return given
    rows = store.samples(run, condition.name).select("sample_id", "donor_id").drop_nulls()
    donors: Mapping[str, str] = dict(rows.iter_rows())
    return given.with_donors(donors)


def groups(stages: Sequence[Stage]) -> list[tuple[Outputs, list[Sample]]]:
    """Return what is to be run under all conditions."""
    return [group for one in stages for group in one.groups]


def lacking(stages: Sequence[Stage]) -> set[str]:
    """Return the ids of the samples that lack something under a condition."""
    left_out = {one.sample.id for stage in stages for _, samples in stage.left_out for one in samples}
    return left_out | {sample.id for _, samples in groups(stages) for sample in samples}


def keep_left_out(stages: Sequence[Stage], run: Run) -> set[tuple[str, str | None]]:
    """Publish, of every sample that is left out for good, that and why: rows of `samples` and no other.

    Returns:
        The conditions and names of the shards.

    Raises:
        StoreError: a shard cannot be published.
    """
    published: set[tuple[str, str | None]] = set()
    for stage in stages:
        for outputs, left_out in stage.left_out:
            made = {"layercache": layercache.__version__, **stage.made}
            shard = Shard(run, outputs, condition=stage.condition.name, provenance=made)
            absent = [Absent(one.sample.id, name, one.reason) for one in left_out for name in outputs]
            shard.add("samples", not_run_columns([one.sample for one in left_out], absent))
            published.add((stage.condition.name, shard.publish()))
    return published
