"""What every condition does to a sample's tokens, text and spans, without a model."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from layercache import conditions
from layercache.conditions import Settings
from layercache.extract.conditions import draws, typos
from layercache.extract.conditions.change import CHANGES, Changed, change
from layercache.extract.conditions.given import Given
from layercache.extract.pooling import absent_reason, token_range
from layercache.extract.tokenize import NOT_RUN, TRUNCATED, Sample, tokenize
from layercache.outputs import Feature
from layercache.template import Prompt, parse_template, render

from .conftest import TEXTS, make_tokenizer

TEMPLATE = "Note: {header} Q: {question} A: {answer}"
ROWS = [
    {"header": header, "question": question, "answer": answer}
    for n, (header, question) in enumerate(zip(TEXTS * 2, TEXTS[3:] + TEXTS + TEXTS[:3], strict=True))
    for answer in (f"number {n}",)
]
ALL = ["knockout-question", "control-answer", "patch-answer", "control-patch-answer", "answer-only"]
ALL += ["augment-1", "repeat-0.4", "random-0.4", "truncate-9"]


def given(
    rows: list[dict[str, str]] = ROWS,
    template: str = TEMPLATE,
    *,
    settings: Settings | None = None,
    tokenizer: Any = None,
    chat: bool = False,
    context: int | None = None,
    **more: Any,
) -> Given:
    tokenizer = tokenizer or make_tokenizer(chat=chat)
    columns: dict[str, list[Any]] = {key: [row[key] for row in rows] for key in rows[0]}
    prompts = render(parse_template(template), columns, len(rows), None)
    samples = tokenize(prompts, tokenizer, chat=chat, context=context, truncate=False)
    return Given(samples, prompts, tokenizer, chat, context, False, None, settings or Settings(), **more)


def make(name: str, of: Given, wanted: list[Sample] | None = None) -> Changed:
    spans = {span for sample in of.samples.distinct.values() for span in (*sample.spans, *sample.absent)}
    wanted = list(of.samples.distinct.values()) if wanted is None else wanted
    return change(conditions.parse(name, spans), wanted, of)


def pairs(name: str, of: Given) -> list[tuple[Sample, Sample]]:
    """Clean and changed samples."""
    return [(of.samples.distinct[one.id], one) for one in make(name, of).samples]


def tokens_of(sample: Sample, span: str) -> list[int]:
    return sample.tokens[slice(*sample.spans[span])].tolist()


def same(left: Sample, right: Sample) -> bool:
    arrays = all(
        (a is None and b is None) or np.array_equal(a, b)
        for a, b in ((left.tokens, right.tokens), (left.special, right.special), (left.cut, right.cut))
    )
    rest = ("id", "text", "spans", "absent", "target", "n_truncated", "cut_layers", "donor_id")
    return arrays and all(getattr(left, name) == getattr(right, name) for name in rest)


def test_every_kind_has_a_change() -> None:
    kinds = {*conditions.OF_SPANS, *conditions.OF_NUMBERS, conditions.ANSWER_ONLY}
    assert set(CHANGES) == kinds == {conditions.parse(name, ["question", "answer"]).kind for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_a_change_depends_on_the_sample_alone(name: str) -> None:
    """The order of the rows, and who else is asked for, change nothing."""
    whole, back = given(), given(ROWS[::-1])
    expected = {one.id: one for one in make(name, whole).samples}
    assert expected
    reversed_ones = make(name, back).samples
    assert len(reversed_ones) == len(expected)
    assert all(same(one, expected[one.id]) for one in reversed_ones)
    some = make(name, whole, list(whole.samples.distinct.values())[5:1:-2]).samples
    assert some
    assert all(same(one, expected[one.id]) for one in some)
    if "patch" not in name:
        fewer = make(name, given(ROWS[3:7])).samples
        assert fewer
        assert all(same(one, expected[one.id]) for one in fewer)


@pytest.mark.parametrize("name", ALL)
def test_the_id_and_the_target_stay(name: str) -> None:
    of = given()
    for n, sample in enumerate(of.samples.distinct.values()):
        of.samples.distinct[sample.id] = replace(sample, target=n)
    for clean, changed in pairs(name, of):
        assert (changed.id, changed.target) == (clean.id, clean.target)


@pytest.mark.parametrize("name", [one for one in ALL if one not in ("knockout-question", "answer-only", "truncate-9")])
def test_another_seed_gives_others(name: str) -> None:
    first, second = make(name, given()).samples, make(name, given(settings=Settings(seed=1))).samples
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))


def test_uniform_draws() -> None:
    assert np.array_equal(draws.uniforms(5, "a", 1)[:3], draws.uniforms(3, "a", 1))
    assert not np.array_equal(draws.uniforms(3, "a", 1), draws.uniforms(3, "a", 2))
    counts = Counter(int(one) for n in range(2000) for one in draws.choose(np.arange(5, 11), 2, draws.stream("key", n)))
    assert set(counts) == set(range(5, 11))
    # 4,000 draws over 6 items: 667 each, a standard deviation of about 21.
    assert max(abs(count - 2000 * 2 / 6) for count in counts.values()) < 100


# --- knockouts and controls


def test_a_knockout_cuts_the_spans_tokens() -> None:
    for clean, changed in pairs("knockout-question-layers-2-3", given()):
        assert changed.cut is not None
        assert changed.cut_layers == (2, 3)
        assert np.flatnonzero(changed.cut).tolist() == list(range(*clean.spans["question"]))
        assert np.array_equal(changed.tokens, clean.tokens)
        assert changed.text == clean.text
    assert all(one.cut_layers is None for _, one in pairs("knockout-question", given()))


@pytest.mark.parametrize("source", ["prompt", "header", "question"])
def test_control_tokens_are_as_many_and_from_elsewhere(source: str) -> None:
    of = given(settings=Settings(control_from=source))
    drawn = pairs("control-answer", of)
    assert drawn
    for clean, changed in drawn:
        cut = np.flatnonzero(changed.cut)
        start, end = clean.spans["answer"]
        assert len(cut) == end - start
        assert not set(cut) & set(range(start, end))
        assert 0 not in cut
        assert not clean.special[cut].any()
        assert set(cut) <= set(range(*clean.spans[source]))


def test_the_last_token_and_an_answer_are_never_drawn() -> None:
    rows = [{"a": "xxx", "answer": f"yy {n}", "exact_answer": "zz", "b": "long " * 3} for n in range(200)]
    of = given(rows, "{a}{answer}{exact_answer}{b}")
    seen: Counter[int] = Counter()
    for clean, changed in pairs("control-a", of):
        last = clean.spans["prompt"][1] - 1
        allowed = set(range(*clean.spans["b"])) - {last, *range(*clean.spans["exact_answer"])}
        cut = set(np.flatnonzero(changed.cut).tolist())
        assert cut <= allowed
        seen.update(place - clean.spans["b"][0] for place in cut)
    assert len(seen) > 5  # and any of the others may be


def test_controls_of_a_window_and_of_a_patch_take_the_same_tokens() -> None:
    of = given()
    whole = {one.id: one for one in make("control-answer", of).samples}
    for one in make("control-answer-layers-1-2", of).samples:
        assert np.array_equal(one.cut, whole[one.id].cut)
        assert one.cut_layers == (1, 2)
    patched = pairs("control-patch-answer", of)
    assert patched
    for clean, changed in patched:
        cut = whole[clean.id].cut
        assert cut is not None
        assert not (changed.tokens != clean.tokens)[~cut].any()


def test_too_few_other_tokens_are_left_out() -> None:
    of = given([{"q": "a long question, it is all there is"}], "Q: {q}")
    found = make("control-q", of)
    assert not found.samples
    assert [(one.reason, one.final) for one in found.left_out] == [("too few other tokens", True)]


def test_an_empty_span_is_left_out() -> None:
    of = given([*ROWS, {"header": "x", "question": "", "answer": "y"}])
    for name in ("knockout-question", "control-question", "patch-question"):
        assert [one.reason for one in make(name, of).left_out if one.reason == "empty span"] == ["empty span"]


def test_a_cut_that_reaches_nothing_is_counted() -> None:
    of = given(ROWS, "{header} {question}")
    assert make("knockout-header", of).unchanged == 0
    assert make("knockout-question", of).unchanged == len(of.samples.distinct)


# --- patches


def test_a_patch_takes_the_donors_tokens() -> None:
    of = given()
    patched = pairs("patch-answer", of)
    assert len(patched) == len(of.samples.distinct)
    for clean, changed in patched:
        donor = of.samples.distinct[str(changed.donor_id)]
        start, end = clean.spans["answer"]
        assert tokens_of(changed, "answer") == tokens_of(donor, "answer") != tokens_of(clean, "answer")
        assert changed.spans == clean.spans
        assert np.array_equal(np.delete(changed.tokens, range(start, end)), np.delete(clean.tokens, range(start, end)))
        answers = [one.text[one.text.index("A: ") + 3 :] for one in (clean, changed, donor)]
        assert answers[1] == answers[2] != answers[0]
    assert len({changed.donor_id for _, changed in patched}) > 4


def test_the_control_of_a_patch_brings_in_the_same_tokens() -> None:
    of = given()
    donors = {one.id: one.donor_id for one in make("patch-answer", of).samples}
    for clean, changed in pairs("control-patch-answer", of):
        assert changed.donor_id == donors[clean.id]
        assert tokens_of(changed, "answer") == tokens_of(clean, "answer")
        places = np.flatnonzero(make("control-answer", of, [clean]).samples[0].cut)
        assert changed.tokens[places].tolist() == tokens_of(of.samples.distinct[str(changed.donor_id)], "answer")


def test_without_a_donor_of_equal_length_it_is_left_out_for_now() -> None:
    rows = [{"q": "aaaa"}, {"q": "b"}, {"q": "c"}]
    of = given(rows, "Q: {q}. And so on, and so on")
    found = make("patch-q", of)
    assert len(found.samples) == 2
    assert [(one.reason, one.final) for one in found.left_out] == [("no donor with as many tokens", False)]


def test_equal_tokens_are_no_donor() -> None:
    rows = [{"h": str(n), "q": "z" if n == 7 else "b"} for n in range(40)]
    of = given(rows, "{h} Q: {q}. So")
    odd = of.samples.of_row[7]
    assert {one.donor_id for one in make("patch-q", of).samples if one.id != odd} == {odd}


def test_a_donor_that_was_drawn_stays() -> None:
    of = given()
    first, second, third = list(of.samples.distinct)[:3]
    had = of.with_donors({first: third, second: "gone"})
    found = make("patch-answer", had)
    assert {one.id: one.donor_id for one in found.samples}[first] == third
    assert [(one.sample.id, one.final) for one in found.left_out] == [(second, False)]


# --- samples with a generated answer


def answered(of: Given) -> Given:
    """The same samples as generation leaves them: the prompt's own spans end before the answer's tokens."""
    tail = np.array(of.tokenizer("never asleep", add_special_tokens=False)["input_ids"], dtype=np.int32)
    distinct = {}
    for name, sample in of.samples.distinct.items():
        n = len(sample)
        distinct[name] = replace(
            sample,
            tokens=np.concatenate([sample.tokens, tail]),
            special=np.concatenate([sample.special, np.zeros(len(tail), dtype=bool)]),
            spans=sample.spans | {"answer": (n, n + len(tail)), "exact_answer": (n + 2, n + len(tail))},
            text=sample.text + "never asleep",
            answer_start=n,
        )
    return replace(of, samples=replace(of.samples, distinct=distinct))


ASKED = [{"header": row["header"], "question": row["question"]} for row in ROWS]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", ["augment-1", "repeat-1", "random-1", "truncate-5", "patch-question"])
def test_a_generated_answer_follows_the_changed_prompt(name: str, chat: bool) -> None:
    of = answered(given(ASKED, "Note: {header} Q: {question} A:", chat=chat))
    found = pairs(name, of)
    assert found
    assert any(not np.array_equal(clean.tokens, changed.tokens) for clean, changed in found)
    for clean, changed in found:
        assert changed.answer_start == changed.prompt_length == changed.spans["answer"][0]
        for span in ("answer", "exact_answer"):
            assert tokens_of(changed, span) == tokens_of(clean, span)
            assert changed.spans[span][1] == len(changed)
        assert changed.text.endswith("never asleep")
        assert token_range(changed, Feature("last", "prompt")) == (changed.answer_start - 1, changed.answer_start)
    answers = pairs("answer-only", of)
    for clean, changed in answers:
        assert changed.tokens.tolist() == [1, *tokens_of(clean, "answer")]
        assert (changed.answer_start, changed.absent["prompt"]) == (1, NOT_RUN)
        assert token_range(changed, Feature("last", "prompt")) is None
        assert changed.spans == {"answer": (1, len(changed)), "exact_answer": (3, len(changed))}


def test_an_answer_must_fit_after_a_view() -> None:
    free = answered(given(ASKED, "Note: {header} Q: {question} A:"))
    longest = max(map(len, free.samples.distinct.values()))
    of = replace(free, context=longest)
    lengths = {one.id: len(one) for one in make("augment-1", free).samples}
    assert {one.sample.id for one in make("augment-1", of).left_out} == {id for id, n in lengths.items() if n > longest}


def test_a_sample_that_is_only_foreseen_stays_as_it_is() -> None:
    of = given()
    foreseen = replace(next(iter(of.samples.distinct.values())), id="foreseen")
    found = make("augment-1", of, [foreseen])
    assert found.samples == [foreseen]
    assert (found.left_out, found.unchanged) == ([], 0)


# --- parts of a prompt


def test_an_answer_alone() -> None:
    for clean, changed in pairs("answer-only", given()):
        answer = tokens_of(clean, "answer")
        assert changed.tokens.tolist() == [1, *answer]
        # The template's own prompt is the whole text: what is left of it is the answer.
        assert changed.spans == {"answer": (1, 1 + len(answer)), "prompt": (1, 1 + len(answer))}
        assert changed.absent == {"header": NOT_RUN, "question": NOT_RUN}
        assert changed.special.tolist() == [True] + [False] * len(answer)
        assert absent_reason(changed, Feature("mean", "question")) == NOT_RUN


def test_an_answer_without_its_prompt_has_no_position_of_the_prompt() -> None:
    """Where the prompt ends before the answer, nothing of it is run: not even its BOS is its first token."""
    of = given()
    for sample in list(of.samples.distinct.values()):
        spans = sample.spans | {"prompt": (1, sample.spans["answer"][0])}
        of.samples.distinct[sample.id] = replace(sample, spans=spans)
    for clean, changed in pairs("answer-only", of):
        assert changed.absent["prompt"] == NOT_RUN
        for how in ("first", "last", "token", "mean", "mean+special"):
            assert absent_reason(changed, Feature(how, "prompt")) == NOT_RUN
        assert token_range(changed, Feature("last", "answer")) == (len(changed) - 1, len(changed))
        assert token_range(clean, Feature("first", "prompt")) == (0, 1)


def test_the_first_tokens() -> None:
    of = given()
    found = make("truncate-9", of)
    for clean, changed in pairs("truncate-9", of):
        answer = tokens_of(clean, "answer")
        assert changed.tokens.tolist() == [*clean.tokens[:10].tolist(), *answer]
        assert changed.spans["answer"] == (10, 10 + len(answer))
        for name in ("header", "question"):
            expected = [place for place in range(*clean.spans[name]) if place < 10]
            if expected:
                assert changed.spans[name] == (expected[0], expected[-1] + 1)
            else:
                assert changed.absent[name] == TRUNCATED
    assert len(found.samples) == len(of.samples.distinct)
    many = make("truncate-40", of)
    lengths = {id: sum(~s.special) - len(tokens_of(s, "answer")) for id, s in of.samples.distinct.items()}
    assert {one.sample.id for one in many.left_out} == {id for id, n in lengths.items() if n < 40}
    assert many.left_out
    assert many.samples
    assert {one.reason for one in many.left_out} == {"fewer than 40 tokens"}


def test_an_encoders_last_special_token_stays() -> None:
    of = given([{"text": text} for text in TEXTS], "{text}", tokenizer=make_tokenizer(encoder=True))
    for clean, changed in pairs("truncate-2", of):
        assert changed.tokens.tolist() == [*clean.tokens[:3].tolist(), 2]


def test_as_many_tokens_as_there_are_change_nothing() -> None:
    of = given([{"text": "Why?"}], "{text}")
    sample = next(iter(of.samples.distinct.values()))
    found = make(f"truncate-{len(sample) - 1}", of)
    assert found.unchanged == 1
    assert same(found.samples[0], sample)


# --- perturbations


@pytest.mark.parametrize("p", [0.3, 1])
def test_repetition(p: float) -> None:
    replaced, there = 0, 0
    for clean, changed in pairs(f"repeat-{p}", given()):
        end = clean.spans["answer"][0]
        differ = np.flatnonzero(changed.tokens != clean.tokens)
        assert len(changed) == len(clean)
        assert changed.spans == clean.spans
        assert len(set(changed.tokens[differ].tolist())) == 1
        assert changed.tokens[differ[0]] in clean.tokens[1:end]
        assert differ.min() >= 1
        assert differ.max() < end
        replaced, there = replaced + len(differ), there + end - 1
        if p == 1:
            assert len(set(changed.tokens[1:end].tolist())) == 1
    # A token that is the repeated one already does not differ.
    assert p * there * 0.75 < replaced <= p * there * 1.2


def test_random_tokens() -> None:
    of = given()
    drawn: Counter[int] = Counter()
    for clean, changed in pairs("random-1", of):
        end = clean.spans["answer"][0]
        assert np.array_equal(changed.tokens[end:], clean.tokens[end:])
        assert changed.tokens[0] == clean.tokens[0]
        drawn.update(changed.tokens[1:end].tolist())
        assert not changed.special[1:].any()
    assert not set(drawn) & set(range(4))
    assert len(drawn) > 150
    small = replace(of, vocabulary=40)
    assert all(one.tokens[1 : one.spans["answer"][0]].max() < 40 for one in make("random-1", small).samples)


@pytest.mark.parametrize("kind", ["repeat", "random"])
def test_a_larger_p_changes_more_of_the_same(kind: str) -> None:
    of = given()
    for (clean, some), (_, more) in zip(pairs(f"{kind}-0.3", of), pairs(f"{kind}-0.6", of), strict=True):
        differ = some.tokens != clean.tokens
        assert np.array_equal(some.tokens[differ], more.tokens[differ])
        assert (more.tokens != clean.tokens).sum() >= differ.sum()


def test_a_prompt_without_tokens_cannot_be_perturbed() -> None:
    of = given([{"text": ""}], "{text}")
    assert [one.reason for one in make("random-0.5", of).left_out] == ["no token to replace"]


@pytest.mark.parametrize("name", ["repeat-1", "random-1", "truncate-3"])
def test_a_chat_templates_own_words_stay(name: str) -> None:
    of = given([{"text": text} for text in TEXTS if text != "Why?"], "{text}", chat=True)
    for clean, changed in pairs(name, of):
        start, end = clean.spans["prompt"]
        kept = changed.spans["prompt"][1] - changed.spans["prompt"][0]
        assert changed.tokens[:start].tolist() == clean.tokens[:start].tolist()
        assert changed.tokens[start + kept :].tolist() == clean.tokens[end:].tolist()
        assert changed.text.startswith("<s>[user] ")
        assert changed.text.endswith("[assistant]")


def test_the_text_is_what_was_run() -> None:
    of = given()
    for name in ("random-0.5", "repeat-0.5", "truncate-9", "answer-only", "patch-answer"):
        for _, changed in pairs(name, of):
            ids = changed.tokens[~changed.special].tolist()
            assert changed.text == of.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# --- views


def test_views_change_the_fields_alone_and_spans_follow() -> None:
    rows = [
        {"h": "Some longer words stand here together", "q": f"Which lighthouse counts its ships {n}?"}
        for n in range(20)
    ]
    for row in rows:
        row["answer"] = "lighthouse keeper"
    of = given(rows, "Template Words: {h} | {q} | Remain: {answer}")
    for prompt in of.prompts:
        view = typos.view(prompt, 0.3, draws.stream(0, prompt.text))
        fields = {name: view.text[start:end] for name, (start, end) in view.spans.items()}
        assert view.text == "Template Words: {h} | {q} | Remain: {answer}".format(**fields)
        assert fields["answer"] == "lighthouse keeper"
        assert (
            fields["h"] != prompt.text[slice(*prompt.spans["h"])]
            or fields["q"] != prompt.text[slice(*prompt.spans["q"])]
        )
    for clean, changed in pairs("augment-1", of):
        assert changed.text.startswith("Template Words: ")
        assert changed.text.endswith("Remain: lighthouse keeper")
        assert tokens_of(changed, "answer") == tokens_of(clean, "answer")
        start, end = changed.spans["q"]
        text = of.tokenizer.decode(changed.tokens[start:end].tolist())
        assert "|" not in text.strip(" |")
        assert text.rstrip(" |").endswith("?")


def test_views_differ_from_one_another_and_from_the_prompt() -> None:
    of = given()
    texts = [{one.id: one.text for one in make(f"augment-{n}", of).samples} for n in range(1, 5)]
    long = [id for id, sample in of.samples.distinct.items() if len(sample) > 60]
    for one in long:
        assert len({of.samples.distinct[one].text, *(view[one] for view in texts)}) == 5


def test_the_rates_of_views() -> None:
    """Of W words of four letters or more max(1, min(10, ⌊0.3 W⌋)) are changed by each of the three."""
    for n_words, expected in ((2, 1), (7, 2), (20, 6), (100, 10)):
        text = " ".join(["abcdefgh", "of"] * n_words)
        prompt = Prompt(text, {"t": (0, len(text))})
        words = typos._words(prompt)
        assert len(words) == n_words
        assert typos._share(0.3, n_words) == expected
        view = typos.view(prompt, 0.3, draws.stream("key", n_words))
        assert view.text.count(" ") - text.count(" ") == expected
        pieces = view.text.replace("of", "").split()
        joined = "".join(pieces)
        assert len(joined) == 8 * n_words
        changed = sum(a != b for a, b in zip(joined, "abcdefgh" * n_words, strict=True))
        # Two of eight characters a word, by each of two changes; pieces of a split word have fewer.
        assert expected <= changed <= 2 * 2 * expected


def test_short_words_and_other_scripts() -> None:
    short = Prompt("it is so", {"t": (0, 8)})
    assert typos.view(short, 1.0, draws.stream("k")) == short
    odd = Prompt("日本語日本語 naïveté", {"t": (0, 14)})
    view = typos.view(odd, 1.0, draws.stream("k"))
    assert view.text != odd.text
    assert view.spans["t"] == (0, len(view.text))


def test_keyboard_neighbours() -> None:
    for key, near in {"g": "tyfhvb", "q": "12wa", "p": "0ol", "m": "njk", "1": "2q", "a": "qwsz"}.items():
        assert set(typos.NEIGHBOURS[key]) == set(near)
    assert typos.NEIGHBOURS["G"] == typos.NEIGHBOURS["g"].upper()
    assert all(
        key in typos.NEIGHBOURS[near]
        for key, keys in typos.NEIGHBOURS.items()
        for near in keys
        if near.islower() and key.islower()
    )


def test_a_view_that_outgrows_the_context_is_left_out() -> None:
    free = given()
    longest = max(map(len, free.samples.distinct.values()))
    of = given(context=longest)
    found = make("augment-1", of)
    assert {one.reason for one in found.left_out} == {"longer than the context"}
    lengths = {one.id: len(one) for one in make("augment-1", free).samples}
    assert {one.sample.id for one in found.left_out} == {id for id, n in lengths.items() if n > longest}
    cut = change(conditions.parse("augment-1", []), list(of.samples.distinct.values()), replace(of, truncate=True))
    assert not cut.left_out
    assert max(map(len, cut.samples)) == longest


def test_of_two_texts_with_the_same_tokens_the_view_is_of_one() -> None:
    of = given([{"text": "Seven sailors"}, {"text": "seven sailors"}], "{text}")
    first = next(iter(of.samples.distinct))
    for prompts in (of.prompts, of.prompts[::-1]):
        twice = replace(of, prompts=prompts, samples=replace(of.samples, of_row=[first, first]))
        assert twice.prompt_of[first].text == "Seven sailors"
