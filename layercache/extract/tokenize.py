"""From prompts to samples: token ids, where every span lies among them, and which are special.

A token belongs to a span when it overlaps it by at least one character. Positions count real tokens from
0, whatever padding a batch adds later.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercache.errors import DataError, ModelError
from layercache.extract.chat import Rendered, render
from layercache.outputs import WHOLE_PROMPT
from layercache.sources import row_place
from layercache.store.layout import canonical_json
from layercache.template import Prompt

_CHUNK = 1000
EMPTY, TRUNCATED, UNFOUND = "empty span", "truncated", "not found in its field"
NOT_RUN = "not part of the condition"


@dataclass(frozen=True)
class Sample:
    """One distinct prompt as the model sees it.

    Attributes:
        text: the text that was tokenised, chat template included.
        tokens: int32 [n].
        special: bool [n], tokens that the tokenizer added or marks as special.
        spans: name → token positions [start, end).
        absent: span without tokens → why.
        target: token id that the lens follows at the last position.
        n_truncated: tokens cut off to fit the context.
        answer_start: position at which a generated answer begins, or would; None in a plain sample.
        cut: bool [n], tokens that no later token outside of them may attend to (see `masks.py`); None where
            attention is left alone.
        cut_layers: the first and the last block, from 1, in which they are cut; None for every block.
        donor_id: the sample that the tokens of a patch come from.
    """

    id: str
    text: str
    tokens: np.ndarray = field(repr=False)
    special: np.ndarray = field(repr=False)
    spans: dict[str, tuple[int, int]]
    absent: dict[str, str]
    target: int | None
    n_truncated: int
    answer_start: int | None = None
    cut: np.ndarray | None = field(default=None, repr=False)
    cut_layers: tuple[int, int] | None = None
    donor_id: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def prompt_length(self) -> int:
        """The tokens before a generated answer; all of a plain sample's."""
        return len(self) if self.answer_start is None else self.answer_start


@dataclass(frozen=True)
class Samples:
    """A data set's samples.

    Attributes:
        distinct: sample id → sample, in the order of the first row that has it.
        of_row: every row's sample id; None for a row whose prompt has no token at all.
    """

    distinct: dict[str, Sample]
    of_row: list[str | None]


def tokenize(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    chat: bool,
    context: int | None,
    truncate: bool,
    place: Callable[[int], str] = row_place,
) -> Samples:
    """Turn prompts into samples; equal ones become one.

    Args:
        context: tokens the model can see; None for no limit.
        truncate: cut longer prompts, on the tokenizer's own truncation side, instead of refusing them.
        place: names a row (`Dataset.place`), for messages.

    Raises:
        DataError: a prompt is longer than the context; names the row and its tokens.
        ModelError: the tokenizer has no chat template, or one that does not carry the text through.
    """
    if chat and not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template: leave out --chat, or use the instruction-tuned model")
    distinct: dict[str, Sample] = {}
    of_row: list[str | None] = []
    marked = special_ids(tokenizer)
    for start in range(0, len(prompts), _CHUNK):
        chunk = prompts[start : start + _CHUNK]
        rendered = render(chunk, tokenizer, start, place) if chat else [Rendered.plain(prompt) for prompt in chunk]
        encoded = encode(tokenizer, [one.text for one in rendered], chat=chat)
        targets = _targets(tokenizer, rendered, chunk, encoded, chat=chat)
        for offset, (prompt, one, tokens, target) in enumerate(zip(chunk, rendered, encoded, targets, strict=True)):
            if context is not None and len(tokens.ids) > context:
                if not truncate:
                    raise DataError(
                        f"{place(start + offset)} has {len(tokens.ids):,} tokens and the model sees {context:,}:"
                        " use --truncate to cut such prompts, or shorten them"
                    )
                tokens = _truncate(tokenizer, one.text, tokens, context, chat=chat)
            sample = _sample(prompt, one, tokens, target, marked)
            if sample is not None:
                distinct.setdefault(sample.id, sample)
            of_row.append(None if sample is None else sample.id)
    return Samples(distinct, of_row)


def sample_id(tokens: Sequence[int], spans: dict[str, tuple[int, int]], target: int | None) -> str:
    """Return the first 24 hex digits of the sha256 of a sample's tokens, spans and target."""
    value = {
        "tokens": [int(token) for token in tokens],
        "spans": sorted([name, int(start), int(end)] for name, (start, end) in spans.items()),
        "target": target,
    }
    return hashlib.sha256(canonical_json(value)).hexdigest()[:24]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that a tokenizer marks as special, added ones included.

    The token for unknown words is not among them, since it stands for the user's text, unless the
    tokenizer uses it as another special token too (GPT-2).
    """
    named = {name: tokenizer.convert_tokens_to_ids(str(token)) for name, token in tokenizer.special_tokens_map.items()}
    others = {number for name, number in named.items() if name != "unk_token"}
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((added | set(tokenizer.all_special_ids)) - ({named.get("unk_token")} - others))


@dataclass(frozen=True)
class Encoded:
    """ids int [n], character offsets int [n, 2], and which tokens the tokenizer added, bool [n]."""

    ids: np.ndarray
    offsets: np.ndarray
    added: np.ndarray
    n_truncated: int = 0


def encode(tokenizer: Any, texts: list[str], *, chat: bool, max_length: int | None = None) -> list[Encoded]:
    """Tokenise texts. A chat template brings its own special tokens, so none are added to it."""
    out = tokenizer(
        texts,
        add_special_tokens=not chat,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=max_length is not None,
        max_length=max_length,
        verbose=False,
    )
    found = []
    for ids, offsets, added in zip(out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True):
        one = Encoded(
            np.asarray(ids, dtype=np.int32),
            np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
            np.asarray(added, dtype=bool),
        )
        found.append(_without_double_bos(one, tokenizer.bos_token_id))
    return found


def _without_double_bos(one: Encoded, bos: int | None) -> Encoded:
    """Drop the BOS that the tokenizer added where the text already begins with one."""
    if bos is None or len(one.ids) < 2 or not (one.ids[0] == one.ids[1] == bos) or not one.added[0]:
        return one
    return Encoded(one.ids[1:], one.offsets[1:], one.added[1:], one.n_truncated)


def _truncate(tokenizer: Any, text: str, full: Encoded, context: int, *, chat: bool) -> Encoded:
    cut = encode(tokenizer, [text], chat=chat, max_length=context)[0]
    return Encoded(cut.ids, cut.offsets, cut.added, len(full.ids) - len(cut.ids))


def _sample(
    prompt: Prompt, one: Rendered, tokens: Encoded, target: int | None, marked: frozenset[int]
) -> Sample | None:
    """Place the spans among the tokens; None when there is no token to run."""
    n = len(tokens.ids)
    if n == 0:
        return None
    special = tokens.added | np.isin(tokens.ids, list(marked))
    spans: dict[str, tuple[int, int]] = {}
    absent = dict.fromkeys(prompt.absent, EMPTY) | dict.fromkeys(prompt.unfound, UNFOUND)
    for name, (start, end) in {**one.spans, WHOLE_PROMPT: one.whole}.items():
        inside = (tokens.offsets[:, 0] < end) & (tokens.offsets[:, 1] > start)
        if name == WHOLE_PROMPT:
            inside &= ~special
        where = np.flatnonzero(inside)
        if len(where):
            spans[name] = (int(where[0]), int(where[-1]) + 1)
        else:
            absent[name] = TRUNCATED if tokens.n_truncated and end > start else EMPTY
    return Sample(
        id=sample_id(tokens.ids.tolist(), spans, target),
        text=one.text,
        tokens=tokens.ids,
        special=special,
        spans=spans,
        absent=absent,
        target=target,
        n_truncated=tokens.n_truncated,
    )


def _targets(
    tokenizer: Any, rendered: list[Rendered], prompts: Sequence[Prompt], encoded: list[Encoded], *, chat: bool
) -> list[int | None]:
    """Find the first token of every target, as it would follow its prompt.

    The prompt and the target are tokenised together, joined by a space unless one of them brings its own
    white space or the chat template ended the prompt. Where that leaves the prompt's tokens as they were,
    the next token is taken; where the two grow together (`Answer: ` + `yes`), the first token of the
    target tokenised alone.
    """
    wanted = [i for i, prompt in enumerate(prompts) if prompt.target]
    if not wanted:
        return [None] * len(prompts)
    joined, alone = [], []
    for i in wanted:
        text, target = rendered[i].text, str(prompts[i].target)
        space = "" if chat or not text or text[-1].isspace() or target[0].isspace() else " "
        joined.append(text + space + target)
        alone.append(target.strip() or target)
    together = encode(tokenizer, joined, chat=chat)
    single = tokenizer(alone, add_special_tokens=False, verbose=False)["input_ids"]
    found: list[int | None] = [None] * len(prompts)
    for i, both, target_ids in zip(wanted, together, single, strict=True):
        n = len(encoded[i].ids)
        if len(both.ids) > n and not both.added[n] and np.array_equal(both.ids[:n], encoded[i].ids):
            found[i] = int(both.ids[n])
        else:
            found[i] = int(target_ids[0]) if target_ids else None
    return found
