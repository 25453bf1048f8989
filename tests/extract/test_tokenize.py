"""Tokens, spans, special tokens, chat templates, truncation and sample ids."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from layercache.errors import DataError, ModelError
from layercache.extract.pooling import absent_reason, token_mask, token_range
from layercache.extract.sample_tables import sample_columns, token_columns
from layercache.extract.tokenize import Sample, sample_id, tokenize
from layercache.extract.words import Words
from layercache.outputs import parse_pooling
from layercache.template import Prompt

from .conftest import TEXTS, make_data, make_tokenizer

ROWS = [{"a": "red fox", "b": text} for text in TEXTS]
TEMPLATE = "Say {a}: {b}!"


def go(
    data: Any, tokenizer: Any, *, chat: bool = False, context: int | None = None, truncate: bool = False
) -> list[Sample | None]:
    samples = tokenize(data.prompts, tokenizer, chat=chat, context=context, truncate=truncate)
    return [None if one is None else samples.distinct[one] for one in samples.of_row]


def by_hand(offsets: list[tuple[int, int]], start: int, end: int) -> list[int]:
    return [i for i, (a, b) in enumerate(offsets) if any(start <= c < end for c in range(a, b))]


def test_tokens_are_the_tokenizers_and_spans_overlap_by_a_character() -> None:
    tokenizer = make_tokenizer()
    data = make_data(ROWS, TEMPLATE)
    for sample, prompt in zip(go(data, tokenizer), data.prompts, strict=True):
        out = tokenizer(prompt.text, return_offsets_mapping=True)
        assert sample.tokens.tolist() == out["input_ids"]
        assert sample.tokens[0] == tokenizer.bos_token_id
        assert set(sample.spans) == {"a", "b", "prompt"}
        for name, (start, end) in prompt.spans.items():
            inside = by_hand(out["offset_mapping"], start, end)
            assert sample.spans[name] == (inside[0], inside[-1] + 1)
            assert prompt.text[start:end] in tokenizer.decode(sample.tokens[inside[0] : inside[-1] + 1])
        assert sample.spans["prompt"] == (1, len(sample))
        assert sample.special.tolist() == [True] + [False] * (len(sample) - 1)


def test_an_encoders_closing_token_is_special() -> None:
    tokenizer = make_tokenizer(encoder=True)
    sample = go(make_data([{"text": "It rains."}]), tokenizer)[0]
    assert sample.special.tolist() == [True] + [False] * (len(sample) - 2) + [True]
    assert sample.spans["prompt"] == (1, len(sample) - 1)
    assert token_range(sample, parse_pooling("last")) == (len(sample) - 1, len(sample))
    assert token_range(sample, parse_pooling("last@text")) == (len(sample) - 2, len(sample) - 1)
    assert token_mask(sample, "prompt").tolist() == (~sample.special).tolist()


def test_no_double_bos() -> None:
    tokenizer = make_tokenizer()
    once, twice = go(make_data([{"text": "It rains."}, {"text": "<s>It rains."}]), tokenizer)
    assert once.tokens.tolist() == twice.tokens.tolist()
    # The BOS that the user wrote is in the field, and special all the same.
    assert twice.special.tolist() == once.special.tolist()


def test_specials_inside_the_text_are_left_out_of_a_mean() -> None:
    tokenizer = make_tokenizer()
    sample = go(make_data([{"text": "one</s>two"}]), tokenizer)[0]
    where = sample.tokens.tolist().index(tokenizer.eos_token_id)
    assert sample.special[where]
    start, end = sample.spans["text"]
    assert start < where < end
    assert token_mask(sample, "text").sum() == end - start - 1


def test_sample_id_is_the_documented_hash() -> None:
    tokenizer = make_tokenizer()
    rows = [{"text": "It rains.", "answer": "yes"}]
    sample = go(make_data(rows, "{text}", target="answer"), tokenizer)[0]
    canonical = json.dumps(
        {
            "tokens": sample.tokens.tolist(),
            "spans": sorted([name, *ends] for name, ends in sample.spans.items()),
            "target": sample.target,
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    assert sample.id == hashlib.sha256(canonical.encode()).hexdigest()[:24]
    assert sample_id(sample.tokens, sample.spans, None) != sample.id


def test_equal_prompts_share_a_sample_and_other_spans_do_not() -> None:
    tokenizer = make_tokenizer()
    rows = [{"a": "x", "b": "yz"}, {"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}]
    samples = tokenize(make_data(rows, "{a}{b}").prompts, tokenizer, chat=False, context=None, truncate=False)
    assert samples.of_row[0] == samples.of_row[1] != samples.of_row[2]
    assert len(samples.distinct) == 2


def test_empty_fields_and_empty_prompts() -> None:
    tokenizer = make_tokenizer()
    sample = go(make_data([{"a": "", "b": "It rains."}], "{a} {b}"), tokenizer)[0]
    assert "a" not in sample.spans
    assert absent_reason(sample, parse_pooling("mean@a")) == "empty span"
    assert absent_reason(sample, parse_pooling("last@a")) == "empty span"
    assert absent_reason(sample, parse_pooling("mean@b")) is None
    nothing = go(make_data([{"text": ""}]), tokenizer)[0]
    assert nothing.tokens.tolist() == [tokenizer.bos_token_id]
    assert absent_reason(nothing, parse_pooling("mean")) == "empty span"
    assert absent_reason(nothing, parse_pooling("last")) is None


def test_a_prompt_without_any_token_is_no_sample() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert go(make_data([{"text": ""}, {"text": "It rains."}]), tokenizer)[0] is None


def test_too_long_names_the_row_and_its_tokens() -> None:
    tokenizer = make_tokenizer()
    n = len(tokenizer(TEXTS[1])["input_ids"])
    data = make_data([{"text": "Why?"}, {"text": TEXTS[1]}])
    with pytest.raises(DataError, match=rf"^row 1 has {n} tokens and the model sees {n - 1}: use --truncate"):
        go(data, tokenizer, context=n - 1)
    assert len(go(data, tokenizer, context=n)[1]) == n


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_specials_and_moves_spans(side: str) -> None:
    tokenizer = make_tokenizer(encoder=True)
    tokenizer.truncation_side = side
    full = go(make_data([{"a": "Why", "b": TEXTS[3]}], "{a} {b}"), tokenizer)[0]
    cut = go(make_data([{"a": "Why", "b": TEXTS[3]}], "{a} {b}"), tokenizer, context=12, truncate=True)[0]
    assert len(cut) == 12
    assert cut.n_truncated == len(full) - 12
    assert cut.special.tolist() == [True] + [False] * 10 + [True]
    if side == "right":
        assert cut.tokens[:11].tolist() == full.tokens[:11].tolist()
        assert cut.spans["a"] == full.spans["a"]
        assert cut.spans["b"] == (full.spans["b"][0], 11)
    else:
        assert cut.tokens[1:].tolist() == full.tokens[-11:].tolist()
        assert absent_reason(cut, parse_pooling("mean@a")) == "truncated"
        assert cut.spans["b"] == (1, 11)


def test_chat_puts_the_text_where_the_template_has_it() -> None:
    tokenizer = make_tokenizer(chat=True)
    data = make_data(ROWS, TEMPLATE, chat=True)
    for sample, prompt in zip(go(data, tokenizer, chat=True), data.prompts, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}], tokenize=False, add_generation_prompt=True
        )
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert sample.tokens.tolist() == out["input_ids"]
        assert sample.tokens.tolist().count(tokenizer.bos_token_id) == 1
        at = text.index(prompt.text)
        for name, (start, end) in {**prompt.spans, "prompt": (0, len(prompt.text))}.items():
            inside = by_hand(out["offset_mapping"], at + start, at + end)
            assert sample.spans[name] == (inside[0], inside[-1] + 1)
        assert token_range(sample, parse_pooling("last")) == (len(sample) - 1, len(sample))
        assert tokenizer.decode(sample.tokens).endswith("[assistant]")
        assert not token_mask(sample, "prompt")[: sample.spans["prompt"][0]].any()


def test_chat_follows_a_template_that_trims() -> None:
    tokenizer = make_tokenizer(chat=True)
    data = make_data([{"text": "rains"}], "  It {text}  ", chat=True)
    sample = go(data, tokenizer, chat=True)[0]
    start, end = sample.spans["text"]
    assert tokenizer.decode(sample.tokens[start:end]).strip() == "rains"
    assert "  It" not in tokenizer.decode(sample.tokens)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'] | upper }}", "does not carry"),
        ("{{ messages[0]['content'] | replace('rains', 'snows') }}", "row 0: .* changes"),
        ("{{ raise_exception('only system turns') }}", "fails: only system turns"),
    ],
)
def test_chat_templates_that_cannot_be_used(template: str | None, message: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=message):
        go(make_data([{"text": "It rains."}], chat=True), tokenizer, chat=True)


def test_a_text_that_looks_like_a_template_is_only_text() -> None:
    tokenizer = make_tokenizer(chat=True)
    text = "{{ bos_token }} {% if x %} layercache"
    sample = go(make_data([{"text": text}], chat=True), tokenizer, chat=True)[0]
    assert text in tokenizer.decode(sample.tokens)


def test_word_pieces_and_normalisers_keep_their_spans() -> None:
    """Lower-casing and accent stripping change the text; offsets still point into the original."""
    words = ["[UNK]", "[CLS]", "[SEP]", "cafe", "##s", "the", "noir", "a"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    sample = go(make_data([{"x": "CAFÉS", "y": "zzz"}], "The {x} noir {y}"), tokenizer)[0]
    assert sample.tokens.tolist() == [1, 5, 3, 4, 6, 0, 2]
    assert sample.spans == {"x": (2, 4), "y": (5, 6), "prompt": (1, 6)}


def test_rows_of_samples_and_tokens() -> None:
    tokenizer = make_tokenizer()
    data = make_data([{"a": "", "b": "It rains."}, {"a": "x", "b": "Why?"}], "{a}{b}")
    samples = [one for one in go(data, tokenizer) if one is not None]
    outputs = ["tokens", "hidden:resid:mean@a", "lens:last@b:top3"]
    columns = sample_columns(samples, outputs)
    assert columns["absent"] == [[{"output": "hidden:resid:mean@a", "reason": "empty span"}], []]
    assert columns["n_tokens"] == [len(one) for one in samples]
    assert columns["n_special"] == [1, 1]
    assert columns["prompt"] == ["It rains.", "xWhy?"]
    tokens = token_columns(samples, Words(tokenizer))
    assert tokens["token_id"].tolist() == [*samples[0].tokens, *samples[1].tokens]
    assert tokens["position"].tolist() == [*range(len(samples[0])), *range(len(samples[1]))]
    assert "".join(tokens["text"].to_pylist()) == "<s>It rains.<s>xWhy?"
    spans = tokens["spans"].to_pylist()
    assert spans[0] == []
    for offset, sample in ((0, samples[0]), (len(samples[0]), samples[1])):
        for i in range(len(sample)):
            assert spans[offset + i] == sorted(name for name, (a, b) in sample.spans.items() if a <= i < b)


def test_offsets_beyond_the_basic_plane() -> None:
    tokenizer = make_tokenizer()
    prompt = Prompt("🙂🙂 moon 日本", {"x": (3, 7), "y": (8, 10)})
    samples = tokenize([prompt], tokenizer, chat=False, context=None, truncate=False)
    sample = next(iter(samples.distinct.values()))
    start, end = sample.spans["x"]
    assert tokenizer.decode(sample.tokens[start:end]).strip() == "moon"
    start, end = sample.spans["y"]
    assert tokenizer.decode(sample.tokens[start:end]).strip() == "日本"
    assert np.all(sample.tokens < 320)
