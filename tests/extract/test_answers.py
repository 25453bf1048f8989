"""Answers that the model gives: generated once, then captured as part of the sample, held against plain transformers."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer

from layercache import dataset, demo
from layercache.answers import label
from layercache.dataset import Dataset
from layercache.errors import DataError, ModelError, RecipeError
from layercache.extract import answers, forward, model
from layercache.extract.generation.generate import Generate
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.outputs import parse_pooling
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec, build
from layercache.store import reader, verify

from .conftest import TEXTS, make_data
from .reference import Reference, close

NEW = 6
POOLING = [
    "last",
    "mean",
    "first",
    "mean+special",
    "token",
    "mean@answer",
    "last@answer",
    "last@exact_answer",
    "token@answer",
]
SPEC = ExtractSpec(
    generate_answer=True, max_new_tokens=NEW, stop=[], pooling=POOLING, lens=["last", "last@answer"], batch_tokens=64
)
TEMPLATE = "{text} So:"


def rows_of(n: int = len(TEXTS)) -> list[dict[str, Any]]:
    return [{"text": f"{TEXTS[i % len(TEXTS)]} {i}"} for i in range(n)]


def with_gold(data: Dataset, gold: list[list[str] | None]) -> Dataset:
    return replace(data, answers=gold, answer_columns=("text",))


def run(folder: object, store: Path, data: Dataset | None = None, spec: ExtractSpec = SPEC, **kw: Any) -> Summary:
    data = data or make_data(rows_of(), TEMPLATE)
    return extract(ModelSpec(model=str(folder)), data, spec, store, kw.pop("progress", Progress()), **kw)


def rows(store: Path, summary: Summary) -> pl.DataFrame:
    return reader.open(store).rows(summary.run, summary.data)


class Held:
    """What a run holds, read once.

    Attributes:
        vectors: (sample, pooling) → float32 [layers * rows, d], by layer and position.
        tokens, spans: sample → its token ids, its spans.
    """

    def __init__(self, store: Path, run_id: str) -> None:
        ask = reader.open(store).sql
        self.vectors: dict[tuple[str, str], np.ndarray] = {}
        hidden = ask("SELECT * FROM hidden WHERE run = ? ORDER BY sample_id, pooling, layer, position", [run_id])
        frame = pl.from_arrow(hidden)
        assert isinstance(frame, pl.DataFrame)
        for (sample, pooling), part in frame.group_by("sample_id", "pooling", maintain_order=True):
            self.vectors[str(sample), str(pooling)] = np.array(part["vector"].to_list(), dtype=np.float32)
        self.tokens: dict[str, list[int]] = {}
        found = ask("SELECT sample_id, token_id FROM tokens WHERE run = ? ORDER BY sample_id, position", [run_id])
        for row in found.to_pylist():
            self.tokens.setdefault(row["sample_id"], []).append(row["token_id"])
        samples = ask("SELECT sample_id, spans FROM samples WHERE run = ?", [run_id]).to_pylist()
        self.spans = {
            row["sample_id"]: {one["name"]: (one["start"], one["end"]) for one in row["spans"]} for row in samples
        }


@torch.no_grad()
def greedy(plain: Reference, ids: list[int], n: int, eos: int | None = 2) -> list[int]:
    """The most probable token, n times, each by a full pass of the model itself; the one that ends a text left out."""
    made: list[int] = []
    for _ in range(n):
        best = int(plain.model(input_ids=torch.tensor([[*ids, *made]])).logits[0, -1].argmax())
        if best == eos:
            break
        made.append(best)
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_states_are_those_of_plain_transformers_on_prompt_and_answer(
    kind: str, models_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = models_of(kind)
    summary = run(folder, tmp_path / "s")
    plain = Reference(folder, kind)
    held, lens = Held(tmp_path / "s", summary.run), read_at(tmp_path / "s", summary.run)
    for row, text in zip(rows(tmp_path / "s", summary).to_dicts(), rows_of(), strict=True):
        prompt = plain.tokenizer(f"{text['text']} So:")["input_ids"]
        answer = greedy(plain, prompt, NEW)
        sample, n = row["sample_id"], len(prompt)
        assert held.tokens[sample] == [*prompt, *answer]
        assert row["answer"] == plain.tokenizer.decode(answer, skip_special_tokens=True)
        where = held.spans[sample]
        assert where["answer"] == (n, n + len(answer))
        assert where["prompt"] == (1, n)
        states, logits = plain.run_ids([*prompt, *answer])
        special = np.isin([*prompt, *answer], plain.tokenizer.all_special_ids)
        expected = {
            "last@prompt": states[:, n - 1],
            "first@prompt": states[:, 0],
            "mean@prompt": states[:, 1:n].mean(axis=1),
            "mean+special@prompt": states[:, :n].mean(axis=1),
            "token@prompt": states[:, :n].reshape(-1, states.shape[2]),
            "last@answer": states[:, -1],
            "mean@answer": states[:, n:][:, ~special[n:]].mean(axis=1),
            "token@answer": states[:, n:].reshape(-1, states.shape[2]),
            "last@exact_answer": states[:, where["exact_answer"][1] - 1],
        }
        for pooling, vector in expected.items():
            close(held.vectors[sample, pooling], vector)
        assert logits is not None
        best = logits.argmax(axis=1)
        assert lens[sample] == [("last@prompt", n - 1, best[n - 1]), ("last@answer", len(best) - 1, best[-1])]
    assert not verify.verify(tmp_path / "s", deep=True)


def read_at(store: Path, run_id: str) -> dict[str, list[tuple[str, int, int]]]:
    """Where the lens was read at the last layer, and the best token there; nothing is followed."""
    found = reader.open(store).sql("SELECT * FROM lens WHERE run = ? AND layer = 3 ORDER BY position", [run_id])
    assert found["target_id"].null_count == len(found)
    read: dict[str, list[tuple[str, int, int]]] = {}
    for row in found.to_pylist():
        read.setdefault(row["sample_id"], []).append((row["position_name"], row["position"], row["top_ids"][0]))
    return read


def test_the_prompt_is_what_it_is_without_an_answer(models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data([{"text": text, "next": " yes"} for text in TEXTS], TEMPLATE, target="next")
    poolings = ["last", "mean", "first", "mean+special", "max", "last@text"]
    plain = run(models_of("llama"), tmp_path / "s", data, ExtractSpec(pooling=poolings))
    spec = SPEC.model_copy(update={"pooling": poolings, "lens": ["last"]})
    summary = run(models_of("llama"), tmp_path / "s", data, spec)
    assert summary.run != plain.run
    ids = rows(tmp_path / "s", plain)["sample_id"].to_list()
    answered = rows(tmp_path / "s", summary)
    assert answered["prompt_sample_id"].to_list() == ids
    held, before = Held(tmp_path / "s", summary.run), Held(tmp_path / "s", plain.run)
    for prompt, sample in zip(ids, answered["sample_id"].to_list(), strict=True):
        for pooling in (str(parse_pooling(text)) for text in poolings):
            close(held.vectors[sample, pooling], before.vectors[prompt, pooling], bits=9)
    targets = "SELECT target_id, round(target_logprob, 3) FROM lens WHERE run = ? AND sample_id = ? ORDER BY layer"
    store = reader.open(tmp_path / "s")
    first = store.sql(targets, [plain.run, ids[0]])
    assert first["target_id"].null_count == 0
    assert first.equals(store.sql(targets, [summary.run, answered["sample_id"][0]]))


def test_the_demo_model_answers_and_stops_at_the_line(tmp_path: Path) -> None:
    data = dataset.load(DataSpec(source="demo:qa", answers=["golden_answers"], spans=["subject@question"], limit=24))
    spec = ExtractSpec(
        generate_answer=True, pooling=["last@answer", "last@exact_answer", "mean@subject", "last"], lens=[]
    )
    summary = run("demo", tmp_path / "s", data, spec)
    plain = Reference(demo.model_path("demo"), "llama")
    frame, held = rows(tmp_path / "s", summary), Held(tmp_path / "s", summary.run)
    newline = plain.tokenizer.encode("\n", add_special_tokens=False)[-1]
    for row in frame.to_dicts()[:8]:
        ids = plain.tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
        answer = greedy(plain, ids, 32, eos=plain.tokenizer.eos_token_id)
        answer = answer[: answer.index(newline)] if newline in answer else answer
        assert held.tokens[row["sample_id"]] == [*ids, *answer]
        assert row["answer"] == plain.tokenizer.decode(answer)
        states, _ = plain.run_ids([*ids, *answer])
        close(held.vectors[row["sample_id"], "last@answer"], states[:, -1])
        close(held.vectors[row["sample_id"], "last@prompt"], states[:, len(ids) - 1])
        start, end = held.spans[row["sample_id"]]["subject"]
        assert plain.tokenizer.decode(ids[start:end]).strip() == row["subject"]
        assert row["exact_answer"].strip() == row["exact_answer"] in row["answer"]
    right = [row["answer"].strip() in row["golden_answers"] for row in frame.to_dicts()]
    assert frame["correct"].to_list() == right
    assert 0 < sum(right) < len(right)
    assert summary.answers == {
        "correct": sum(right),
        "wrong": len(right) - sum(right),
        "dont_know": 0,
        "empty": 0,
        "unlabelled": 0,
    }
    assert f"{sum(right)} correct" in str(summary)
    info = reader.open(tmp_path / "s").data(summary.run)[0]
    assert [str(one) for one in info.labels] == ["correct:boolean"]
    assert info.answers == ("golden_answers",)
    json.dumps(asdict(summary))
    # Told what the exact answer is, an answer of several words is another sample: its span moves.
    words = [text.split()[-1] for text in frame["answer"]]
    moved = sum(a != b for a, b in zip(words, frame["exact_answer"], strict=True))
    told = run("demo", tmp_path / "s", replace(data, exact_answers=[*words[:-1], "elsewhere"]), spec)
    assert rows(tmp_path / "s", told)["exact_answer"].to_list() == [*words[:-1], None]
    assert told.absent["hidden:resid:last@exact_answer"] == {"not found in the answer": 1}
    assert moved > 1
    assert (told.run, told.new_answers) == (summary.run, 0)
    assert told.forward_passes == moved + (words[-1] == frame["exact_answer"][-1])


def test_twice_is_no_pass_and_no_weights(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(models_of("llama"), tmp_path / "s")
    assert (first.forward_passes, first.new_answers) == (8, 8)
    monkeypatch.setattr(model, "load", None)
    second = run(models_of("llama"), tmp_path / "s")
    assert (second.run, second.forward_passes, second.new_answers, second.cached) == (first.run, 0, 0, 8)
    assert second.answers == first.answers


def test_rows_that_are_added_are_what_is_run(models_of: Callable[..., Path], tmp_path: Path) -> None:
    run(models_of("llama"), tmp_path / "s", make_data(rows_of(20), TEMPLATE))
    summary = run(models_of("llama"), tmp_path / "s", make_data(rows_of(30), TEMPLATE))
    assert (summary.new_answers, summary.forward_passes, summary.new_samples, summary.cached) == (10, 10, 10, 20)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("killed", [Generate, forward.Forward])
def test_a_killed_run_goes_on_where_it_stopped(
    killed: type, models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch = killed.run  # type: ignore[attr-defined]
    done = []

    def stopping(self: Any, batch: Any) -> Any:
        if len(done) == 2 and len(getattr(self, "reducers", ["", ""])) > 1:
            raise _Killed
        if len(getattr(self, "reducers", ["", ""])) > 1:
            done.append(len(batch.samples))
        return run_batch(self, batch)

    spec = SPEC.model_copy(update={"self_check": False})
    data = make_data(rows_of(16), TEMPLATE)
    with monkeypatch.context() as patch:
        patch.setattr(killed, "run", stopping)
        with pytest.raises(_Killed):
            run(models_of("llama"), tmp_path / "s", data, spec, shard_bytes=1)
    summary = run(models_of("llama"), tmp_path / "s", data, spec)
    answered = killed is Generate
    assert summary.new_answers == (16 - sum(done) if answered else 0)
    assert summary.forward_passes == (16 if answered else 16 - sum(done))
    whole = run(models_of("llama"), tmp_path / "whole", data, spec)
    assert rows(tmp_path / "s", summary).equals(rows(tmp_path / "whole", whole))
    one, other = (Held(tmp_path / name, summary.run).vectors for name in ("s", "whole"))
    assert one.keys() == other.keys()
    for key, states in one.items():
        close(states, other[key], bits=9)
    assert not verify.verify(tmp_path / "s", deep=True)


def test_mended_answers_cost_a_pass_only_where_the_exact_answer_moves(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data(rows_of(), TEMPLATE)
    first = run(models_of("llama"), tmp_path / "s", with_gold(data, [["never said"]] * 8))
    assert first.answers["wrong"] + first.answers["empty"] == 8
    told = rows(tmp_path / "s", first)
    exact = told["exact_answer"].to_list()
    # What was taken for the exact answer of the first five turns out to be right: nothing moves.
    gold: list[list[str] | None] = [[text] if n < 5 and text else ["never said"] for n, text in enumerate(exact)]
    right = [bool(label(row["answer"], one or []).correct) for row, one in zip(told.to_dicts(), gold, strict=True)]
    second = run(models_of("llama"), tmp_path / "s", with_gold(data, gold))
    moved = [a for a, b in zip(exact, rows(tmp_path / "s", second)["exact_answer"], strict=True) if a != b]
    assert rows(tmp_path / "s", second)["correct"].to_list() == right
    assert any(right)
    assert (second.forward_passes, second.new_answers) == (len(moved), 0)


def test_settings_that_change_answers_are_other_runs(models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(rows_of(2), TEMPLATE)
    changes: list[dict[str, Any]] = [
        {},
        {"max_new_tokens": 4},
        {"stop": ["e"]},
        {"temperature": 1.0},
        {"temperature": 1.0, "generate_seed": 1},
        {"generate_answer": False, "pooling": ["last"], "lens": []},
    ]
    found = {run(models_of("llama"), tmp_path / "s", data, SPEC.model_copy(update=one)).run for one in changes}
    assert len(found) == len(changes)


def test_an_empty_answer_has_no_span_and_is_counted(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    plain = Reference(folder, "llama")
    prompts = [plain.tokenizer(f"{row['text']} So:")["input_ids"] for row in rows_of()]
    first = plain.tokenizer.decode(greedy(plain, prompts[0], 1))
    spec = SPEC.model_copy(update={"stop": [first]})
    summary = run(folder, tmp_path / "s", with_gold(make_data(rows_of(), TEMPLATE), [["x"]] * 8), spec)
    frame = rows(tmp_path / "s", summary)
    empty = frame.filter(pl.col("answer") == "")
    assert 0 < len(empty) == summary.answers["empty"]
    assert summary.absent["hidden:resid:last@answer"]["empty answer"] == len(empty)
    assert empty["exact_answer"].null_count() == len(empty)
    assert empty["correct"].to_list() == [False] * len(empty)
    # The same tokens and spans: it is the prompt's own sample.
    assert empty["sample_id"].to_list() == empty["prompt_sample_id"].to_list()
    held, sample = Held(tmp_path / "s", summary.run), empty["sample_id"][0]
    assert held.tokens[sample] == prompts[empty["row"][0]]
    assert len(held.vectors[sample, "last@prompt"]) == 5
    assert (sample, "last@answer") not in held.vectors
    assert not verify.verify(tmp_path / "s", deep=True)


def test_a_chat_answers_after_its_template(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    spec = ExtractSpec(generate_answer=True, max_new_tokens=NEW, pooling=["last", "first@answer"], lens=[])
    summary = run(folder, tmp_path / "s", make_data(rows_of(4), TEMPLATE, chat=True), spec)
    plain, held = Reference(folder, "llama"), Held(tmp_path / "s", summary.run)
    for row in rows(tmp_path / "s", summary).to_dicts():
        turn = [{"role": "user", "content": f"{row['text']} So:"}]
        text = plain.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = plain.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = greedy(plain, ids, NEW)
        assert held.tokens[row["sample_id"]] == [*ids, *answer]
        where = held.spans[row["sample_id"]]
        assert where["prompt"][1] < where["answer"][0] == len(ids)
        states, _ = plain.run_ids([*ids, *answer])
        close(held.vectors[row["sample_id"], "last@prompt"], states[:, len(ids) - 1])
        close(held.vectors[row["sample_id"], "first@answer"], states[:, len(ids)])


def test_a_dry_run_foresees_full_answers_and_then_knows(models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(rows_of(), TEMPLATE)
    dry = run(models_of("llama"), tmp_path / "s", data, dry_run=True)
    assert not (tmp_path / "s").exists()
    assert (dry.new_answers, dry.forward_passes) == (8, 8)
    assert any("full length of 6 tokens" in note for note in dry.notes)
    wet = run(models_of("llama"), tmp_path / "s", data)
    assert wet.tokens <= dry.tokens
    more = run(models_of("llama"), tmp_path / "s", make_data(rows_of(10), TEMPLATE), dry_run=True)
    assert (more.new_answers, more.forward_passes, more.cached, more.samples) == (2, 2, 8, 10)
    again = run(models_of("llama"), tmp_path / "s", data, dry_run=True)
    assert (again.new_answers, again.forward_passes, again.tokens) == (0, 0, 0)
    assert again.answers == wet.answers
    assert not any(again.estimate.values())


def test_rows_of_one_prompt_share_a_pass_and_own_their_labels(models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data([{"text": TEXTS[0]}] * 3, TEMPLATE)
    first = run(models_of("llama"), tmp_path / "s", with_gold(data, [["never"], ["never", "ever"], None]))
    assert (first.samples, first.forward_passes) == (1, 1)
    assert rows(tmp_path / "s", first)["correct"].to_list() == [False, False, None]
    assert first.answers["unlabelled"] == 1


def test_characters_of_several_tokens(models_of: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models_of("llama"))

    def text_of(ids: Any) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    for text in ("日本語 and 🙂", "é", "plain words", ""):
        ids = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        assert answers.ranges(text_of, ids["input_ids"]) == [tuple(pair) for pair in ids["offset_mapping"]]
    # One that ends a text within it stands for no character.
    a, b = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert answers.ranges(text_of, [a, 2, b]) == [(0, 1), (1, 1), (1, 2)]


def test_what_cannot_be_answered_is_refused(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave out --generate-answer"):
        run(models_of("bert"), tmp_path / "s")
    with pytest.raises(DataError, match="the prompt has a span 'answer'"):
        run(models_of("llama"), tmp_path / "s", make_data([{"answer": "a"}], "{answer}"))
    with pytest.raises(DataError, match="6 new ones do not fit into the 128"):
        run(models_of("gpt2"), tmp_path / "s", make_data([{"text": "." * 124}], "{text}"))
    assert not (tmp_path / "s").exists()
    for more, message in (
        ({"generate_layers": [1]}, "are two runs"),
        ({"choices": [" yes"]}, "without generate_answer"),
    ):
        with pytest.raises(RecipeError, match=message):
            build(
                {
                    "name": "x",
                    "models": "demo",
                    "data": {"source": "demo:qa"},
                    "extract": {"generate_answer": True, **more},
                }
            )
