"""The model's own answers: generated once, then read as part of the sample.

    prompt ──► answer, greedy, from the last layer     stage 1, kept as a generated text of the prompt's sample
    prompt + answer ──► everything that is captured     stage 2: one teacher-forced pass, as of any other sample

The second sample's tokens are the first one's and exactly the ones that were generated, up to where the text was cut;
no text is tokenised again. Its spans are the prompt's, `answer`, and `exact_answer`. What the answer is worth belongs to
the row (`layercache.answers`), so that mended accepted answers cost a pass only where the exact answer moves.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from layercache.answers import Labelled, label
from layercache.dataset import Dataset
from layercache.errors import DataError
from layercache.extract import checkpoint, estimate, model
from layercache.extract.generation import generate
from layercache.extract.generation.sampling import Settings
from layercache.extract.loop import CHECKED, Loop
from layercache.extract.model import Model, Plan
from layercache.extract.publish import ShardLimits
from layercache.extract.tokenize import Sample, Samples, sample_id, special_ids
from layercache.progress import Progress
from layercache.recipe import ExtractSpec
from layercache.searched import find
from layercache.store import captured, reader
from layercache.store.holdings import Outputs
from layercache.store.layout import Run

ANSWER, EXACT = "answer", "exact_answer"
NO_ANSWER, NOT_THERE = "empty answer", "not found in the answer"
MAX_NEW_TOKENS = 32
"""Tokens of an answer, where the recipe does not say."""
LINE = "\n"


@dataclass(frozen=True)
class Asked:
    """How answers are made.

    Attributes:
        spec: the extraction's, with the answers' own settings.
        layer: the last one, L.
    """

    spec: ExtractSpec
    settings: Settings
    layer: int

    @property
    def outputs(self) -> Outputs:
        """The answers as an output of the prompts' samples."""
        return {str(self.settings.output): [self.layer]}


class Answer(NamedTuple):
    """What was generated: the text, cut at what stops it, and the tokens without the one that ends a text."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class Answered:
    """A data set's samples with their answers.

    Attributes:
        columns: what the rows get: answer, exact_answer, correct, dont_know, prompt_sample_id.
        balance: rows that are correct, wrong, dont_know, empty, unlabelled (no accepted answer is known).
        pending: prompts that have no answer yet; they are in no sample.
        prompts: sample id → the id of its prompt's sample.
    """

    samples: Samples
    columns: dict[str, list[Any]] = field(repr=False)
    balance: dict[str, int]
    pending: list[Sample] = field(repr=False)
    prompts: dict[str, str] = field(repr=False)


def asked(spec: ExtractSpec, data: Dataset, plan: Plan) -> Asked | None:
    """Settle how answers are made; None where none are asked for.

    Raises:
        ModelError: the model generates no text.
        DataError: a span of the prompt is called as one of the answer's.
    """
    if not spec.generate_answer:
        return None
    layer = plan.structure.n_layers
    generate.check_model(plan, [layer], "--generate-answer")
    taken = {name for prompt in data.prompts for name in (*prompt.spans, *prompt.absent, *prompt.unfound)}
    for name in (ANSWER, EXACT):
        if name in taken:
            raise DataError(f"the prompt has a span {name!r}, which is the generated answer's: rename the column")
    own: dict[str, Any] = {"generate_layers": [layer]}
    if "max_new_tokens" not in spec.model_fields_set:
        own["max_new_tokens"] = MAX_NEW_TOKENS
    if "stop" not in spec.model_fields_set:
        own["stop"] = [] if data.chat else [LINE]
    spec = spec.model_copy(update=own)
    return Asked(spec, Settings.of(spec, plan.checkpoint), layer)


class Made(NamedTuple):
    """Answers that were generated, how many, and what generated them."""

    answers: int
    loop: Loop


def estimated_bytes(how: Asked, width: int, prompts: Sequence[Sample]) -> int:
    """Estimate the bytes that the answers to prompts take in the store, at their full length."""
    groups = [(how.outputs, prompts)] if prompts else []
    tables = estimate.table_bytes(groups, width, 10, max_new_tokens=how.settings.max_new_tokens)
    return sum(tables.values())


def generate_missing(
    how: Asked,
    load: Callable[[], Model],
    tokenizer: Any,
    prompts: Samples,
    run: Run,
    name: str,
    progress: Progress,
    limits: ShardLimits,
    mine: Callable[[str], bool] = lambda _: True,
) -> Made | None:
    """Generate the answers that a run lacks, and publish them; those that are there stay.

    Args:
        load: gives the model.
        mine: tells the prompts that are looked at, by sample id.

    Returns:
        None where nothing was missing, and then no weights are read.

    Raises:
        ModelError: the model cannot be loaded, or fails its self-check.
        StoreError: the disk cannot hold the answers.
    """
    groups = reader.open(run.store).held(run).missing(filter(mine, prompts.distinct), how.outputs)
    if not groups:
        return None
    lacking = [prompts.distinct[one] for _, ids in groups for one in ids]
    estimate.check_space(estimated_bytes(how, run.width, lacking), run.store)
    loaded = load()
    loop = Loop(loaded, tokenizer, how.spec, max(map(len, prompts.distinct.values())), progress)
    with checkpoint.quiet(), model.compile_errors(loaded.plan):
        made = loop.check(lacking[:CHECKED])
        loop.run(run, {how.settings.output: [how.layer]}, [(how.outputs, lacking)], name, limits, made)
    return Made(len(lacking), loop)


def answered(how: Asked, data: Dataset, prompts: Samples, tokenizer: Any, store: reader.Store, run: Run) -> Answered:
    """Read the answers that a run holds, and make the samples of prompt and answer, and the rows' columns."""
    return _Maker(tokenizer, prompts).make(data, _stored(how, store, run))


def foreseen(how: Asked, prompts: Sequence[Sample]) -> list[Sample]:
    """Return samples as they are where every answer has its full length."""
    full = np.zeros(how.settings.max_new_tokens, dtype=np.int32)
    return [_joined(one, full, np.zeros(len(full), dtype=bool), "", (0, len(full))) for one in prompts]


def _stored(how: Asked, store: reader.Store, run: Run) -> dict[str, Answer]:
    return {
        row["sample_id"]: Answer(row["text"], row["token_ids"][: -1 if row["finish_reason"] == "eos" else None])
        for row in captured.texts(store, run, str(how.settings.output)).iter_rows(named=True)
    }


class _Maker:
    """Makes samples of prompts and answers."""

    def __init__(self, tokenizer: Any, prompts: Samples) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts
        self.marked = sorted(special_ids(tokenizer))
        self.made: dict[tuple[str, tuple[int, int] | None], Sample] = {}

    def make(self, data: Dataset, answers: Mapping[str, Answer]) -> Answered:
        n = len(self.prompts.of_row)
        gold, exact = data.answers or [None] * n, data.exact_answers or [None] * n
        rows = [self._row(*row, answers) for row in zip(self.prompts.of_row, gold, exact, strict=True)]
        samples = [row.sample for row in rows]
        distinct = {sample.id: sample for sample in samples if sample is not None}
        columns: dict[str, list[Any]] = {
            "prompt_sample_id": list(self.prompts.of_row),
            ANSWER: [row.answer for row in rows],
            EXACT: [row.exact for row in rows],
            "correct": [row.correct for row in rows],
            "dont_know": [row.dont_know for row in rows],
        }
        balance = dict.fromkeys(("correct", "wrong", "dont_know", "empty", "unlabelled"), 0)
        balance |= Counter(row.kind for row in rows if row.kind)
        return Answered(
            Samples(distinct, [None if sample is None else sample.id for sample in samples]),
            columns,
            balance,
            [sample for sample in self.prompts.distinct.values() if sample.id not in answers],
            {sample.id: prompt for (prompt, _), sample in self.made.items()},
        )

    def _row(
        self, prompt: str | None, gold: list[str] | None, exact: str | None, answers: Mapping[str, Answer]
    ) -> "_Row":
        if prompt is None or prompt not in answers:
            return _Row()
        answer = answers[prompt]
        found = label(answer.text, gold or [])
        place = None if found.start is None or found.end is None else (found.start, found.end)
        if exact is not None:
            place = find(answer.text, exact)
        sample = self._sample(self.prompts.distinct[prompt], answer, place)
        words = None if place is None else answer.text[slice(*place)]
        correct = None if gold is None else found.correct
        return _Row(sample, answer.text, words, correct, found.dont_know, _kind(found, gold))

    def _sample(self, prompt: Sample, answer: Answer, place: tuple[int, int] | None) -> Sample:
        key = prompt.id, place
        if key not in self.made:
            places = ranges(self._text, answer.token_ids) if answer.text.strip() else []
            if self._text(answer.token_ids) != answer.text:
                # Cut by a string that stops it, whose own tokens are left out.
                reach = [n for n, (start, end) in enumerate(places, start=1) if end > start < len(answer.text)]
                places = places[: max(reach, default=0)]
            tokens = np.array(answer.token_ids[: len(places)], dtype=np.int32)
            inside = [n for n, (start, end) in enumerate(places) if place and start < place[1] and end > place[0]]
            where = (inside[0], inside[-1] + 1) if inside else None
            self.made[key] = _joined(prompt, tokens, np.isin(tokens, self.marked), answer.text, where)
        return self.made[key]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Row(NamedTuple):
    """What a row gets; all NULL where its prompt has no answer."""

    sample: Sample | None = None
    answer: str | None = None
    exact: str | None = None
    correct: bool | None = None
    dont_know: bool | None = None
    kind: str = ""


def _kind(found: Labelled, gold: list[str] | None) -> str:
    if found.start is None:
        return "empty"
    if found.dont_know:
        return "dont_know"
    return "unlabelled" if gold is None else "correct" if found.correct else "wrong"


def ranges(text_of: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Return the characters [start, end) of the tokens' text that every token stands for; special ones for none.

    A character of several tokens belongs to each of them.
    """
    whole = text_of(tokens)
    found, before = [], 0
    for n in range(1, len(tokens) + 1):
        here = text_of(tokens[:n])
        # A character that is not finished yet shows as another one.
        after = next(
            (i for i, (a, b) in enumerate(zip(here, whole, strict=False)) if a != b), min(len(here), len(whole))
        )
        found.append((before, after + (len(here) > after)))
        before = max(before, after)
    return found


def _joined(
    prompt: Sample, tokens: np.ndarray, special: np.ndarray, text: str, exact: tuple[int, int] | None
) -> Sample:
    """Put an answer's tokens after a prompt's; `exact` are the exact answer's, counted from the answer's first."""
    n, spans, absent = len(prompt), dict(prompt.spans), dict(prompt.absent)
    if len(tokens):
        spans[ANSWER] = (n, n + len(tokens))
    else:
        absent[ANSWER] = NO_ANSWER
    if exact is not None:
        spans[EXACT] = (n + exact[0], n + exact[1])
    else:
        absent[EXACT] = NOT_THERE if len(tokens) else NO_ANSWER
    joined = np.concatenate([prompt.tokens, tokens])
    return replace(
        prompt,
        id=sample_id(joined.tolist(), spans, prompt.target),
        text=prompt.text + text if len(tokens) else prompt.text,
        tokens=joined,
        special=np.concatenate([prompt.special, special]),
        spans=spans,
        absent=absent,
        answer_start=n,
    )
