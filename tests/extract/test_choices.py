"""Scores of answers at every layer, against one prompt and answer at a time through plain transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from layercache.errors import DataError, ModelError, RecipeError
from layercache.extract import choices, forward
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.outputs import Lens, choices_hash, parse_output, parse_position
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec, validate
from layercache.store import reader, verify

from .conftest import TEXTS, make_data, make_tokenizer
from .reference import Reference, log_softmax
from .test_lens import tail
from .test_token_poolings import pad_on

KINDS = ["llama", "gpt2", "gemma2", "opt"]
CHOICES = [" a", " the moon", "s", ", and the ships sleep"]
OUTPUT = f"lens:last@prompt:top10:choices-{choices_hash(CHOICES)}"


def run(folder: Path, store: Path, data: Any = None, **settings: Any) -> Summary:
    spec = ExtractSpec(**({"pooling": ["mean"], "choices": CHOICES, "batch_tokens": 128} | settings))
    return extract(ModelSpec(model=str(folder)), data or make_data(), spec, store, Progress())


def scores(store: Path) -> pl.DataFrame:
    frame = pl.from_arrow(reader.open(store).sql("SELECT * FROM choices ORDER BY sample_id, layer, choice"))
    assert isinstance(frame, pl.DataFrame)
    return frame


def continued(tokenizer: Any, prompt: str, choice: str, **kw: Any) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of the answer as it goes on with it."""
    before, both = (tokenizer(text, **kw)["input_ids"] for text in (prompt, prompt + choice))
    if both[: len(before)] == before and len(both) > len(before):
        return before, both[len(before) :]
    return before, tokenizer(choice, add_special_tokens=False)["input_ids"]


class ByHand:
    """Scores one answer at a time."""

    def __init__(self, folder: Path, kind: str, **kw: Any) -> None:
        self.reference, self.kw = Reference(folder, kind), kw
        self.seen: dict[tuple[str, str], tuple[list[int], list[int], np.ndarray]] = {}

    def __call__(self, prompt: str, choice: str, layer: int) -> tuple[float, float]:
        """The first token's log-probability, and the whole answer's."""
        if (prompt, choice) not in self.seen:
            ids, answer = continued(self.reference.tokenizer, prompt, choice, **self.kw)
            self.seen[prompt, choice] = ids, answer, self.reference.run_ids(ids + answer)[0]
        ids, answer, states = self.seen[prompt, choice]
        before = torch.from_numpy(states[layer, len(ids) - 1 : -1])
        with torch.no_grad():
            logp = log_softmax(tail(self.reference.model, self.reference.norm(before)).numpy())
        each = [logp[n, token] for n, token in enumerate(answer)]
        return each[0], sum(each)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_are_the_models_own(
    kind: str, side: str, models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pad_on(monkeypatch, side)
    summary = run(models_of(kind), tmp_path / "s")
    by_hand = ByHand(models_of(kind), kind)
    found = scores(tmp_path / "s")
    prompts = {row["sample_id"]: row["prompt"] for row in reader.open(tmp_path / "s").samples(summary.run).to_dicts()}
    assert len(found) == len(TEXTS) * len(CHOICES) * 4
    column = reader.open(tmp_path / "s").sql("SELECT DISTINCT [line.choice FOR line IN choices] AS texts FROM lens")
    assert column.to_pylist() == [{"texts": CHOICES}]
    assert found["output"].unique().to_list() == [OUTPUT]
    for row in found.iter_rows(named=True):
        first, whole = by_hand(prompts[row["sample_id"]], row["choice"], row["layer"])
        assert row["first_logprob"] == pytest.approx(first, rel=1e-4, abs=1e-4)
        assert row["logprob"] == pytest.approx(whole, rel=1e-4, abs=1e-4)
    longer = [len(ids) + len(answer) - 1 for ids, answer, _ in by_hand.seen.values() if len(answer) > 1]
    assert 0 < len(longer) < len(TEXTS) * len(CHOICES)
    assert (summary.choice_passes, summary.choice_tokens) == (len(longer), sum(longer))
    assert f"and {len(longer)} passes over prompt and choice" in str(summary)
    assert verify.verify(tmp_path / "s", deep=True) == []


def test_the_rest_of_the_lens_is_what_it_is_without_choices(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    run(folder, tmp_path / "with", lens=["last", "first@text"])
    run(folder, tmp_path / "without", lens=["last", "first@text"], choices=[])
    query = "SELECT * EXCLUDE (run, output, choices) FROM lens ORDER BY position_name, layer, sample_id"
    left, right = (reader.open(tmp_path / name).sql(query) for name in ("with", "without"))
    for name in left.column_names:
        if name in ("entropy", "logsumexp", "top_logprobs", "target_logprob", "kl_to_final", "js_to_final"):
            a, b = (np.array([np.nan if x is None else x for x in one[name].to_pylist()]) for one in (left, right))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert left[name].to_pylist() == right[name].to_pylist()
    # Positions other than the prompt's last score nothing.
    plain = reader.open(tmp_path / "with").sql("SELECT output, count(choices) AS n FROM lens GROUP BY ALL ORDER BY ALL")
    assert plain.to_pylist() == [
        {"output": "lens:first@text:top10", "n": 0},
        {"output": OUTPUT, "n": 4 * len(TEXTS)},
    ]


def test_a_chat_prompt_is_continued_after_its_template(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    summary = run(folder, tmp_path / "s", make_data(chat=True))
    by_hand = ByHand(folder, "llama", add_special_tokens=False)
    samples = reader.open(tmp_path / "s").samples(summary.run)
    prompts = dict(zip(samples["sample_id"], samples["prompt"], strict=True))
    assert all(text.endswith("[assistant]") for text in prompts.values())
    for row in scores(tmp_path / "s").filter(layer=2).iter_rows(named=True):
        first, whole = by_hand(prompts[row["sample_id"]], row["choice"], 2)
        assert row["first_logprob"] == pytest.approx(first, rel=1e-4, abs=1e-4)
        assert row["logprob"] == pytest.approx(whole, rel=1e-4, abs=1e-4)


def test_what_grows_together_with_the_prompt_counts_alone() -> None:
    tokenizer = make_tokenizer()
    data = make_data([{"text": "Count the"}, {"text": "Count"}], "{text} ")
    samples = list(_samples(data, tokenizer))
    texts = ["s, and", "ships"]
    found = choices.tokenize(texts, samples, tokenizer, chat=False)
    for sample, prompt in zip(samples, data.prompts, strict=True):
        for text, answer in zip(texts, found[sample.id], strict=True):
            assert list(answer) == continued(tokenizer, prompt.text, text)[1]
    together = tokenizer("Count the ships")["input_ids"]
    assert together[: len(samples[0])] != samples[0].tokens.tolist()
    assert list(found[samples[0].id][1]) == tokenizer("ships", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match="the choice '' has no token"):
        choices.tokenize([""], samples, tokenizer, chat=False)


def _samples(data: Any, tokenizer: Any) -> Any:
    from layercache.extract.tokenize import tokenize

    return tokenize(data.prompts, tokenizer, chat=False, context=None, truncate=False).distinct.values()


def test_scores_are_cached_by_the_set_of_answers(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder, store = models_of("llama"), tmp_path / "s"
    assert run(folder, store, layers=[1]).forward_passes == len(TEXTS)
    assert run(folder, store, layers=[1], choices=list(reversed(CHOICES))).forward_passes == 0
    more = run(folder, store, layers=[1, 2])
    assert more.forward_passes == len(TEXTS)
    assert more.choice_passes > 0
    assert sorted(scores(store)["layer"].unique()) == [1, 2]
    plain = run(folder, store, layers=[1, 2], choices=[])
    assert (plain.forward_passes, plain.choice_passes) == (len(TEXTS), 0)
    assert run(folder, store, layers=[1, 2], choices=[" a"]).forward_passes == len(TEXTS)
    assert verify.verify(store, deep=True) == []
    held = {one.output for one in reader.open(store).lens_outputs(more.run)}
    assert held == {OUTPUT, "lens:last@prompt:top10", f"lens:last@prompt:top10:choices-{choices_hash([' a'])}"}


def test_one_token_answers_take_no_pass_of_their_own(models_of: Callable[..., Path], tmp_path: Path) -> None:
    summary = run(models_of("llama"), tmp_path / "s", choices=["s", "."])
    assert summary.choice_passes == summary.choice_tokens == 0
    found = scores(tmp_path / "s")
    assert found["logprob"].to_list() == found["first_logprob"].to_list()
    assert "passes over prompt and choice" not in str(summary)


def test_dry_run_foresees_passes_and_bytes(models_of: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data([{"text": f"{i} {text}"} for i in range(30) for text in TEXTS])
    size: dict[bool, int] = {}
    foreseen: dict[bool, int] = {}
    for scored in (False, True):
        spec = ExtractSpec(pooling=["mean"], choices=CHOICES if scored else [])
        store = tmp_path / str(scored)
        args = (ModelSpec(model=str(models_of("llama"))), data, spec, store, Progress())
        planned = extract(*args, dry_run=True)
        assert not store.exists()
        done = extract(*args)
        assert (planned.choice_passes, planned.choice_tokens) == (done.choice_passes, done.choice_tokens)
        assert (planned.choice_passes > 0) == scored
        (shard,) = reader.open(store).shards(done.run)
        size[scored], foreseen[scored] = shard.files["lens.parquet"].bytes, planned.estimate["lens"]
        assert extract(*args, dry_run=True).choice_passes == 0
    assert foreseen[True] - foreseen[False] == pytest.approx(size[True] - size[False], rel=0.12)


def test_passes_over_answers_stay_within_the_budget(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, ...]] = []
    run_batch = forward.Forward.run

    def watched(self: Any, batch: Any) -> Any:
        if any(":" in sample.id for sample in batch.samples):
            ran.append(tuple(batch.input_ids.shape))
        return run_batch(self, batch)

    monkeypatch.setattr(forward.Forward, "run", watched)
    summary = run(models_of("llama"), tmp_path / "s", batch_tokens=100)
    assert sum(rows for rows, _ in ran) == summary.choice_passes
    assert all(rows * columns <= 100 or rows == 1 for rows, columns in ran)
    assert any(rows > 1 for rows, _ in ran)


def test_running_out_of_memory_and_being_killed_lose_nothing(
    models_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run_batch = models_of("llama"), forward.Forward.run
    whole = run(folder, tmp_path / "whole")

    def limited(self: Any, batch: Any) -> Any:
        if batch.input_ids.numel() > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_batch(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "run", limited)
        assert run(folder, tmp_path / "small", batch_tokens=1000).forward_passes == len(TEXTS)
    calls = iter(range(1000))

    def dying(self: Any, batch: Any) -> Any:
        if any(":" in sample.id for sample in batch.samples) and next(calls) == 8:
            raise KeyboardInterrupt
        return run_batch(self, batch)

    spec = ExtractSpec(pooling=["mean"], choices=CHOICES, batch_tokens=40)
    args = (ModelSpec(model=str(folder)), make_data(), spec, tmp_path / "killed", Progress())
    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            extract(*args, shard_bytes=1)
    again = extract(*args)
    assert 0 < again.forward_passes < len(TEXTS)
    key = ["sample_id", "layer", "choice"]
    expected = scores(tmp_path / "whole").sort(key)
    for name in ("small", "killed"):
        found = scores(tmp_path / name).sort(key)
        assert found.select(key).equals(expected.select(key))
        np.testing.assert_allclose(found["logprob"], expected["logprob"], rtol=1e-4, atol=1e-4)
    assert whole.choice_passes > again.choice_passes


def test_a_prompt_that_leaves_no_room_for_an_answer(models_of: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": "Why?"}, {"text": " ".join(TEXTS * 3)}]
    summary = run(models_of("llama"), tmp_path / "s", make_data(rows), truncate=True, layers=[3])
    assert "1 prompts leave no room for a whole choice, whose logprob is NULL there" in summary.notes
    samples = reader.open(tmp_path / "s").samples(summary.run)
    cut = samples.filter(pl.col("n_truncated") > 0)["sample_id"][0]
    lengths = {text: len(continued(make_tokenizer(), rows[1]["text"], text)[1]) for text in CHOICES}
    assert 1 in lengths.values()
    for row in scores(tmp_path / "s").iter_rows(named=True):
        assert row["first_logprob"] is not None
        assert (row["logprob"] is None) == (row["sample_id"] == cut and lengths[row["choice"]] > 1)
    assert verify.verify(tmp_path / "s", deep=True) == []


def test_entropy_counts_a_position_once_though_it_is_held_twice(models_of: Callable[..., Path], tmp_path: Path) -> None:
    from layercache.analyze.entropy import entropy
    from layercache.recipe import EntropySpec

    folder = models_of("llama")
    run(folder, tmp_path / "once", choices=[])
    summary = run(folder, tmp_path / "s", choices=[])
    run(folder, tmp_path / "s")
    once, twice = (
        entropy(reader.open(tmp_path / name), EntropySpec(bootstrap=10), Progress()).results for name in ("once", "s")
    )
    assert once.select(["layer", "metric", "n"]) == twice.select(["layer", "metric", "n"])
    np.testing.assert_allclose(once["value"].to_numpy(), twice["value"].to_numpy(), rtol=1e-5, atol=1e-5)
    assert len(reader.open(tmp_path / "s").lens_outputs(summary.run)) == 2


def test_models_that_do_not_continue_text_are_refused(models_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not continue a prompt: leave out --choice"):
        run(models_of("bert"), tmp_path / "s")
    with pytest.raises(ModelError, match="--lens none"):
        run(models_of("llama", headless=True), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_settings() -> None:
    spec = ExtractSpec(choices=[" yes, sir", " no", " no"], lens=["last@prompt", "first@text"], pooling=[])
    assert spec.choices == [" yes, sir", " no"]
    assert [str(one) for one in spec.outputs()] == [
        f"lens:last@prompt:top10:choices-{choices_hash([' no', ' yes, sir'])}",
        "lens:first@text:top10",
    ]
    output = Lens(parse_position("last"), 7, "0123abcd")
    assert parse_output(str(output)) == output
    for settings, said in (
        ({"choices": [""]}, "a choice is empty"),
        ({"choices": [" a"], "lens": []}, "add last to lens"),
        ({"choices": [" a"], "lens": ["last@text"]}, "add last to lens"),
        ({"choices": " a, b"}, "choices"),
    ):
        with pytest.raises(RecipeError, match=said):
            validate(ExtractSpec, settings, "extract")
    for name in ("lens:last@prompt:top10:choices-xyz", "lens:last@prompt:top10:choices-", "lens:last@prompt:top"):
        with pytest.raises(RecipeError):
            parse_output(name)
