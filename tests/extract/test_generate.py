"""Text from every layer: against transformers' own `generate`, and against full passes written out by hand."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercache.errors import DataError, LayercacheError, ModelError, RecipeError
from layercache.extract import checkpoint
from layercache.extract.generation import generate, sampling
from layercache.extract.generation.full_passes import FullPasses
from layercache.extract.generation.growing_cache import GrowingLayer
from layercache.extract.generation.sampling import Settings
from layercache.extract.generation.sweep import Sweep
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec, ModelSpec, build
from layercache.store import layout, reader, verify

from .conftest import CONFIGS, TEXTS, make_data, make_model
from .reference import FINAL_NORM, Reference, log_softmax

KINDS = ("llama", "gpt2", "gpt_neox", "gemma2", "mixtral", "opt", "bloom", "falcon", "mistral", "qwen3")
OTHERS = ("gemma3_text", "phi3", "olmo2", "granite", "cohere", "stablelm", "gptj", "mpt", "gpt_neo", "phi")
STATE_SPACE: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "initializer_range": 0.2},
    "falcon_h1": CONFIGS["llama"]
    | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
}
NEW = 5
LAYERS = [0, 1, 2, 3]


class Slow:
    """One prompt at a time, no cache: every layer's next token through the model's own norm and head."""

    def __init__(self, folder: Path, norm: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.norm = self.model.get_submodule(norm)

    @torch.no_grad()
    def logits(self, ids: list[int], layer: int, *, normed: bool = True) -> np.ndarray:
        """The logits that a layer's state at the last position gives."""
        before: list[torch.Tensor] = []
        with hooked(self.norm.register_forward_pre_hook(lambda _m, args: before.append(args[0]))):
            found = self.model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        states = [*found.hidden_states[:-1], before[-1]]
        state = states[layer].reshape(before[-1].shape)
        replace = self.norm.register_forward_pre_hook(lambda _m, _args: (state,))
        skip = self.norm.register_forward_hook(lambda _m, _args, output: output if normed else state)
        with hooked(replace), hooked(skip):
            out = self.model(input_ids=torch.tensor([ids]), use_cache=False)
        return out.logits[0, -1].numpy()

    def text(self, ids: list[int], layer: int, new: int = NEW, **kw: Any) -> tuple[list[int], list[np.ndarray]]:
        """Greedy tokens, and the logits that each was chosen from."""
        logits: list[np.ndarray] = []
        tokens: list[int] = []
        for _ in range(new):
            logits.append(self.logits([*ids, *tokens], layer, **kw))
            tokens.append(int(logits[-1].argmax()))
        return tokens, logits


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def run(folder: Path, store: Path, texts: list[str] | None = None, progress: Any = None, **settings: Any) -> Summary:
    rows = [{"text": text} for text in texts or TEXTS]
    asked = {"pooling": ["last"], "lens": [], "generate_layers": "all", "max_new_tokens": NEW} | settings
    spec = ExtractSpec(**asked)
    return extract(ModelSpec(model=str(folder)), make_data(rows), spec, store, progress or Progress())


def texts_of(store: Path) -> pl.DataFrame:
    """The generations with their prompts."""
    frame = pl.from_arrow(
        reader.open(store).sql(
            "SELECT g.*, s.prompt FROM generations g JOIN samples s USING (run, condition, sample_id)"
            " ORDER BY prompt, output, layer"
        )
    )
    assert isinstance(frame, pl.DataFrame)
    return frame


def ends_at(folder: Path, *ids: int) -> Path:
    """Make tokens end a text."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": list(ids)}))
    return folder


@pytest.fixture
def llama(models_of: Callable[..., Path]) -> Path:
    return models_of("llama")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layers_text_is_that_of_full_passes(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    summary = run(models_of(kind), tmp_path / "s", TEXTS[1:4])
    assert not summary.notes, "the sweep was not used"
    slow, frame = Slow(models_of(kind), FINAL_NORM.get(kind) or "model.norm"), texts_of(tmp_path / "s")
    assert frame["layer"].to_list() == LAYERS * 3
    for row in frame.iter_rows(named=True):
        tokens, logits = slow.text(slow.tokenizer(row["prompt"])["input_ids"], row["layer"])
        kept = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
        assert row["token_ids"] == kept, (row["prompt"], row["layer"])
        logp = log_softmax(np.stack(logits))[: len(kept)]
        np.testing.assert_allclose(row["token_logprobs"], logp[np.arange(len(kept)), kept], rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(row["token_entropies"], -(np.exp(logp) * logp).sum(1), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layers_text_is_the_models_own(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    run(models_of(kind), tmp_path / "s", TEXTS[1:5], max_new_tokens=12, generate_layers=[3])
    reference = Reference(models_of(kind), kind)
    for row in texts_of(tmp_path / "s").iter_rows(named=True):
        ids = torch.tensor([reference.tokenizer(row["prompt"])["input_ids"]])
        out = reference.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, ids.shape[1] :].tolist()
        assert row["token_ids"] == out
        assert row["text"] == reference.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("kind", OTHERS)
def test_texts_are_the_same_alone_and_batched(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of(kind, initializer_range=0.2) if kind in ("mpt", "gptj", "gpt_neo") else models_of(kind)
    batched, alone = run(folder, tmp_path / "a"), run(folder, tmp_path / "b", batch_tokens=1)
    assert not batched.notes
    assert alone.batches == 2 * len(TEXTS)
    assert batched.batches < alone.batches
    left, right = texts_of(tmp_path / "a"), texts_of(tmp_path / "b")
    assert left.select("sample_id", "layer", "token_ids").equals(right.select("sample_id", "layer", "token_ids"))


@pytest.mark.parametrize("kind", STATE_SPACE)
def test_state_space_models_sweep_too(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, kind, STATE_SPACE[kind])
    folder = make_model(kind, tmp_path / "m")
    # What transformers calls Mamba's states is shifted by a block, so they are not held against the model's own.
    assert not run(folder, tmp_path / "a", self_check=False).notes
    monkeypatch.setattr(Sweep, "__init__", refuse)
    assert "slow" in run(folder, tmp_path / "b", self_check=False).notes[0]
    assert tokens_of(tmp_path / "a") == tokens_of(tmp_path / "b")


def refuse(self: Any, *args: Any) -> None:
    raise generate.Unsupported("it is not to be used")


def tokens_of(store: Path) -> list[list[int]]:
    return texts_of(store)["token_ids"].to_list()


def test_a_model_without_a_cache_takes_full_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["llama"] | {"lru_width": 32, "attention_window_size": 8}
    monkeypatch.setitem(CONFIGS, "recurrent_gemma", config)
    summary = run(make_model("recurrent_gemma", tmp_path / "m"), tmp_path / "s", TEXTS[:2], max_new_tokens=4)
    assert "full pass" in summary.notes[0]
    slow = Slow(tmp_path / "m", "model.final_norm")
    for row in texts_of(tmp_path / "s").iter_rows(named=True):
        ids = slow.tokenizer(row["prompt"])["input_ids"]
        assert row["token_ids"] == slow.text(ids, row["layer"], 4)[0][: len(row["token_ids"])]


@pytest.mark.parametrize("broken", ["rows", "length", "narrow"])
def test_a_sweep_that_goes_wrong_is_not_used(
    broken: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(llama, tmp_path / "right")
    assert not expected.notes
    if broken == "rows":
        keep = GrowingLayer.reorder_cache
        monkeypatch.setattr(GrowingLayer, "reorder_cache", lambda self, rows: keep(self, rows.flip(0)))
    elif broken == "length":
        monkeypatch.setattr("layercache.extract.generation.sweep.narrow", lambda value, _path, rows, _axes: value)
    else:
        monkeypatch.setattr("layercache.extract.generation.sweep.row_axis", lambda *_: None)
    summary = run(llama, tmp_path / "s")
    assert "slow" in summary.notes[0]
    assert tokens_of(tmp_path / "s") == tokens_of(tmp_path / "right")


def test_tokens_that_end_a_text_end_it(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s")
    before = texts_of(tmp_path / "s")
    ends = {before["token_ids"][0].to_list()[2], before["token_ids"][9].to_list()[0]}
    folder = ends_at(make_model("llama", tmp_path / "m"), *ends)
    run(folder, tmp_path / "t")
    reasons = set()
    for old, new in zip(before.iter_rows(named=True), texts_of(tmp_path / "t").iter_rows(named=True), strict=True):
        stops = [i for i, token in enumerate(old["token_ids"]) if token in ends]
        kept = old["token_ids"][: stops[0] + 1] if stops else old["token_ids"]
        assert new["token_ids"] == kept
        assert new["finish_reason"] == ("eos" if stops else "length")
        assert len(new["token_logprobs"]) == len(new["token_entropies"]) == len(kept)
        reasons.add(new["finish_reason"])
    assert reasons == {"eos", "length"}
    # Another end is another output, though the weights are the same.
    assert before["output"][0] != texts_of(tmp_path / "t")["output"][0]


def test_an_empty_text_is_kept_as_one(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", TEXTS[:1])
    firsts = {tokens[0] for tokens in tokens_of(tmp_path / "s")}
    run(ends_at(make_model("llama", tmp_path / "m"), *firsts), tmp_path / "t", TEXTS[:1])
    frame = texts_of(tmp_path / "t")
    assert frame["text"].to_list() == [""] * 4
    assert frame["finish_reason"].to_list() == ["eos"] * 4


def test_a_string_ends_a_text_and_is_cut_from_it(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", max_new_tokens=12)
    before = texts_of(tmp_path / "s")
    # Two characters in the middle of texts, wherever tokens part them.
    stops = [text[4:6] for text in before["text"].to_list() if len(text) > 6][::9]
    run(llama, tmp_path / "t", max_new_tokens=12, stop=stops)
    ended = 0
    for old, new in zip(before.iter_rows(named=True), texts_of(tmp_path / "t").iter_rows(named=True), strict=True):
        cut = min((old["text"].find(one) for one in stops if one in old["text"]), default=None)
        if cut is None:
            assert (new["text"], new["finish_reason"]) == (old["text"], old["finish_reason"])
            continue
        ended += 1
        assert (new["text"], new["finish_reason"]) == (old["text"][:cut], "stop")
        assert new["token_ids"] == old["token_ids"][: len(new["token_ids"])]
    assert 4 < ended < len(before)


def test_a_sweep_that_trips_later_gives_way(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(llama, tmp_path / "right")
    step = Sweep.step

    def trips(self: Any, tokens: torch.Tensor, keep: list[int]) -> torch.Tensor:
        if len(keep) > 20:
            raise RuntimeError("shape mismatch")
        return step(self, tokens, keep)

    monkeypatch.setattr(Sweep, "step", trips)
    assert "shape mismatch" in run(llama, tmp_path / "s").notes[0]
    assert tokens_of(tmp_path / "s") == tokens_of(tmp_path / "right")


def test_sampling_depends_on_the_sample_and_the_seed_alone(llama: Path, tmp_path: Path) -> None:
    how = {"temperature": 1.5, "sample_top_p": 0.9, "sample_top_k": 50}
    run(llama, tmp_path / "a", **how)
    run(llama, tmp_path / "b", TEXTS[::-1], batch_tokens=1, **how)
    run(llama, tmp_path / "c", generate_seed=1, **how)
    run(llama, tmp_path / "d")
    a, b, c, d = (texts_of(tmp_path / name) for name in "abcd")
    assert a["token_ids"].equals(b["token_ids"])
    assert len({frame["output"][0] for frame in (a, c, d)}) == 3
    assert not a["token_ids"].equals(c["token_ids"])
    assert not a["token_ids"].equals(d["token_ids"])


def test_sampled_tokens_have_the_frequencies_they_should() -> None:
    logits = torch.log(torch.tensor([0.5, 0.05, 0.3, 0.15]))
    n = 4001
    uniform = torch.linspace(0, 1, n)[:-1]

    def shares(**how: Any) -> list[float]:
        settings = Settings(1, (), how.get("temperature", 1.0), how.get("top_k"), how.get("top_p"), 0, True, ())
        drawn = sampling.draw(Same(), logits.repeat(n - 1, 1), settings, uniform)  # type: ignore[arg-type]
        assert torch.allclose(drawn.logprobs, logits[drawn.tokens])
        return (torch.bincount(drawn.tokens, minlength=4) / (n - 1)).tolist()

    assert shares() == pytest.approx([0.5, 0.05, 0.3, 0.15], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([0.625, 0, 0.375, 0], abs=1e-3)
    assert shares(top_p=0.8) == pytest.approx([0.625, 0, 0.375, 0], abs=1e-3)
    assert shares(top_p=0.81) == pytest.approx([0.5 / 0.95, 0, 0.3 / 0.95, 0.15 / 0.95], abs=1e-3)
    assert shares(top_p=1e-9) == [1, 0, 0, 0]
    squares = np.array([0.5, 0.05, 0.3, 0.15]) ** 2
    assert shares(temperature=0.5) == pytest.approx((squares / squares.sum()).tolist(), abs=1e-3)


class Same:
    """An unembedding that takes states for logits."""

    vocabulary = 4

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return states


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
def test_without_the_final_norm(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    summary = run(models_of(kind), tmp_path / "s", TEXTS[:3], no_final_norm=True)
    slow, frame = Slow(models_of(kind), FINAL_NORM.get(kind) or "model.norm"), texts_of(tmp_path / "s")
    for row in frame.iter_rows(named=True):
        tokens, _ = slow.text(slow.tokenizer(row["prompt"])["input_ids"], row["layer"], normed=False)
        assert row["token_ids"] == tokens[: len(row["token_ids"])]
    opened = reader.open(tmp_path / "s")
    made = [one.provenance["generation"] for one in opened.shards(summary.run) if "generation" in one.provenance]
    settings = made[0][frame["output"][0]]
    assert settings["final_norm"] is False
    assert frame["output"][0] == f"generation:{layout.digest(settings)[:8]}"
    run(models_of(kind), tmp_path / "t", TEXTS[:3])
    assert tokens_of(tmp_path / "t") != tokens_of(tmp_path / "s")


def test_only_missing_layers_are_generated(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, ...]] = []
    decode = generate.Generate.decode
    monkeypatch.setattr(
        generate.Generate,
        "decode",
        lambda self, samples, layers: (ran.append(tuple(layers)), decode(self, samples, layers))[1],
    )
    run(llama, tmp_path / "s", generate_layers=[1, 3])
    first = run(llama, tmp_path / "s")
    again = run(llama, tmp_path / "s")
    assert ran == [(1, 3), (0, 2)]
    assert (first.forward_passes, again.forward_passes) == (len(TEXTS), 0)
    run(llama, tmp_path / "whole")
    assert tokens_of(tmp_path / "s") == tokens_of(tmp_path / "whole")
    assert not verify.verify(tmp_path / "s", deep=True)


def test_a_stopped_run_does_the_rest(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = generate.Generate.decode, []

    def stops(self: Any, samples: Any, layers: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(self, samples, layers)

    monkeypatch.setattr(generate.Generate, "decode", stops)
    spec = ExtractSpec(pooling=["last"], lens=[], generate_layers="all", max_new_tokens=NEW, batch_tokens=1)
    model, data = ModelSpec(model=str(llama)), make_data()
    with pytest.raises(KeyboardInterrupt):
        extract(model, data, spec, tmp_path / "s", Progress(), shard_bytes=1)
    assert len(texts_of(tmp_path / "s")) == 3 * 4
    done = extract(model, data, spec, tmp_path / "s", Progress(), shard_bytes=1)
    assert (done.forward_passes, len(calls)) == (len(TEXTS) - 3, 4 + len(TEXTS) - 3)
    run(llama, tmp_path / "whole")
    assert tokens_of(tmp_path / "s") == tokens_of(tmp_path / "whole")


@pytest.mark.parametrize("fits", [6, 1])
def test_running_out_of_memory_makes_smaller_batches(
    fits: int, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(llama, tmp_path / "right")
    decode = generate.Generate.decode

    def small(self: Any, samples: Any, layers: Any) -> Any:
        if len(samples) * len(layers) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, samples, layers)

    monkeypatch.setattr(generate.Generate, "decode", small)
    summary = run(llama, tmp_path / "s")
    assert any("memory ran out" in note for note in summary.notes)
    assert tokens_of(tmp_path / "s") == tokens_of(tmp_path / "right")


def test_the_first_tokens_lens_is_stored(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", generate_layers=[0, 2], top_k=3)
    frame = reader.open(tmp_path / "s").sql(
        "SELECT g.layer, top_ids[1] = token_ids[1], abs(top_logprobs[1] - token_logprobs[1]) < 1e-4 FROM generations g"
        " JOIN lens l USING (sample_id, layer) WHERE l.output = 'lens:last@prompt:top3'"
    )
    assert sorted(frame.column(0).to_pylist()) == [0] * len(TEXTS) + [2] * len(TEXTS)
    assert all(frame.column(1).to_pylist())
    assert all(frame.column(2).to_pylist())


def test_the_estimate_is_an_upper_bound(llama: Path, tmp_path: Path) -> None:
    spec = ExtractSpec(pooling=[], lens=[], generate_layers="all", max_new_tokens=60)
    model, data = ModelSpec(model=str(llama)), make_data([{"text": f"{i} {text}"} for i in range(5) for text in TEXTS])
    planned = extract(model, data, spec, tmp_path / "s", Progress(), dry_run=True)
    assert not (tmp_path / "s").exists()
    done = extract(model, data, spec, tmp_path / "s", Progress())
    opened = reader.open(tmp_path / "s")
    took = sum(one.files["generations.parquet"].bytes for one in opened.shards(done.run) if one.file("generations"))
    assert 0.25 * planned.estimate["generations"] < took <= planned.estimate["generations"]
    assert done.generated_tokens == sum(map(len, tokens_of(tmp_path / "s")))
    assert done.tokens == 2 * sum(opened.samples(done.run)["n_tokens"])


def test_progress_counts_samples_and_new_tokens(llama: Path, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}

    class Counted(Progress):
        @contextmanager
        def task(self, title: str, total: int, unit: str = "samples") -> Iterator[Task]:
            counts = seen[title] = [0, total, 0]

            class Counts(Task):
                def advance(self, amount: int = 1, **more: int) -> None:
                    counts[0] += amount
                    counts[2] += more.get("generated", 0)

            yield Counts()

    summary = run(llama, tmp_path / "s", progress=Counted())
    n = len(TEXTS)
    assert seen == {"extract data, llama0": [n, n, 0], "generate data, llama0": [n, n, summary.generated_tokens]}


def test_a_chat_template_is_followed(llama: Path, tmp_path: Path) -> None:
    spec = ExtractSpec(pooling=[], lens=[], generate_layers=[3], max_new_tokens=6)
    extract(ModelSpec(model=str(llama)), make_data(chat=True), spec, tmp_path / "s", Progress())
    reference = Reference(llama, "llama")
    frame = texts_of(tmp_path / "s")
    for text in TEXTS:
        ids = reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
        out = reference.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        (row,) = frame.filter(pl.col("prompt").str.contains(text, literal=True)).iter_rows(named=True)
        assert row["token_ids"] == out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("settings", "kind", "error", "says"),
    [
        ({"generate_layers": [4]}, "llama", ModelError, "0 to 3, not from 4"),
        ({"generate_layers": [-1]}, "llama", ModelError, "not from -1"),
        ({}, "bert", ModelError, "masked tokens"),
        ({"max_new_tokens": 100}, "llama", DataError, "row 1 has .* 128"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    settings: dict[str, Any],
    kind: str,
    error: type[LayercacheError],
    says: str,
    models_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=says) as caught:
        run(models_of(kind), tmp_path / "s", ["Why?", TEXTS[1]], **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no language-model head"):
        run(make_model("llama", tmp_path / "m", headless=True), tmp_path / "s")


def test_states_that_give_no_probabilities_are_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = generate.Unembedding.__call__
    monkeypatch.setattr(generate.Unembedding, "__call__", lambda self, states: call(self, states) * float("nan"))
    with pytest.raises(ModelError, match="layer 3 of sample"):
        run(llama, tmp_path / "s", self_check=False, generate_layers=[3])


def test_settings_that_have_no_effect_are_not_part_of_the_name(llama: Path) -> None:
    found = checkpoint.find(str(llama))
    names = {str(Settings.of(ExtractSpec(generate_seed=seed, generate_layers=[1]), found).output) for seed in (0, 1)}
    assert len(names) == 1
    with pytest.raises(RecipeError, match="temperature above 0"):
        build({"name": "x", "models": ["m"], "data": {"source": "d.csv"}, "extract": {"sample_top_p": 0.5}})


def test_the_full_passes_are_those_of_the_slow_reference(llama: Path) -> None:
    from layercache.extract import model
    from layercache.extract.tokenize import tokenize

    found = checkpoint.find(str(llama))
    loaded = model.load(model.plan(found, device="cpu", dtype="auto", attn="auto"))
    samples = tokenize(make_data().prompts, model.load_tokenizer(found), chat=False, context=None, truncate=False)
    several = list(samples.distinct.values())[:3]
    full, slow = FullPasses(loaded, 0), Slow(llama, "model.norm")
    states = full.start(several, LAYERS)
    with torch.inference_mode():
        logits = generate.Unembedding(loaded)(states).numpy()
    expected = [slow.logits(one.tokens.tolist(), layer) for layer in LAYERS[::-1] for one in several]
    np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-3, atol=1e-3)
