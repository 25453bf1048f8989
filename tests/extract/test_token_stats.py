"""Statistics over tokens of real states, against loops and singular values; what the store holds of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercache import dataset
from layercache.demo import model_path
from layercache.errors import RecipeError
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.outputs import parse_output, parse_statistic
from layercache.progress import Progress
from layercache.recipe import DataSpec, ExtractSpec, ModelSpec
from layercache.store import reader, verify
from layercache.token_statistics import parse

from .conftest import TEXTS, make_data, make_tokenizer
from .slow_statistics import STATS, statistic
from .test_states import run_kind
from .tiny import tiny_config

FEW = "fewer than three tokens"
SETTINGS: dict[str, Any] = {"pooling": ["mean"], "lens": [], "stats": STATS, "precision": 23}


def stored(store: reader.Store) -> dict[tuple[str, int, str], float]:
    rows = store.sql("SELECT sample_id, layer, metric, value FROM token_stats").to_pylist()
    return {(row["sample_id"], row["layer"], row["metric"]): row["value"] for row in rows}


def check(found: dict[tuple[str, int, str], float], states: dict[tuple[str, int], np.ndarray]) -> None:
    """Hold stored numbers against the states [n, d] of every sample and layer, special tokens left out."""
    # A prompt of two or three tokens has none of them, or none of those without its first.
    expected = {
        (one, layer, name): value
        for (one, layer), own in states.items()
        for name in STATS
        if len(own) >= 3 + name.endswith("-first") and not np.isnan(value := statistic(name, own))
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "bert"])
def test_of_transformers(kind: str, models_of: Callable[..., Path], tmp_path: Path) -> None:
    got = run_kind(models_of(kind), kind, tmp_path / "s", **SETTINGS)
    states = {
        (one, layer): own[~passed.special]
        for one, (passed, _) in got.passed.items()
        for layer, own in enumerate(passed.states)
    }
    assert max(map(len, states.values())) > 32 > min(map(len, states.values())), "both sides of the Gram matrix"
    check(stored(got.store), states)
    assert verify.verify(got.store.path, deep=True) == []


def by_hand(model: Any, ids: list[int]) -> list[np.ndarray]:
    """The states of a Mamba: its embeddings, every block called alone, the final norm."""
    with torch.no_grad():
        state = model.backbone.embeddings(torch.tensor([ids]))
        states = [state]
        for block in model.backbone.layers:
            state = block(state)
            states.append(state)
        states.append(model.backbone.norm_f(state))
    return [one[0].float().numpy() for one in states]


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def mamba(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(request.param)).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model, folder


@pytest.mark.filterwarnings("default")
def test_of_state_space_models_run_by_hand(mamba: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = mamba
    spec = ExtractSpec(**{**SETTINGS, "pooling": ["token"]}, batch_tokens=256)
    summary = extract(ModelSpec(model=str(folder)), make_data(), spec, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    assert [one.layer for one in store.run(summary.run).layers] == [0, 1, 2, 3, 4]
    ids = store.rows(summary.run, "data")["sample_id"].to_list()
    tokenizer = make_tokenizer()
    own = {one: by_hand(model, tokenizer(text)["input_ids"]) for one, text in zip(ids, TEXTS, strict=True)}
    # The first token is the BOS.
    check(stored(store), {(one, layer): each[layer][1:] for one, each in own.items() for layer in range(5)})
    for layer in range(5):
        tokens = store.matrix(summary.run, layer, "token")
        for one in ids:
            np.testing.assert_allclose(tokens.values[tokens.sample_ids == one], own[one][layer], atol=2e-5, rtol=2e-4)


@pytest.mark.filterwarnings("default")
def test_what_transformers_calls_the_first_state_of_a_mamba_is_not_its_embedding(mamba: tuple[Any, Path]) -> None:
    """The trap that the layer table is about: if this fails, transformers counts as everything else does."""
    model, _ = mamba
    ids = make_tokenizer()(TEXTS[0])["input_ids"]
    own = by_hand(model, ids)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert not np.allclose(theirs[0][0].numpy(), own[0], atol=1e-3)
    np.testing.assert_allclose(theirs[0][0].numpy(), own[1], atol=1e-5)


def test_of_the_demo(tmp_path: Path) -> None:
    data = dataset.load(DataSpec(source="demo:movies", limit=3))
    spec = ExtractSpec(**SETTINGS, layers=[0, 1, 3, 6], self_check=False)
    summary = extract(ModelSpec(model="demo"), data, spec, tmp_path / "s", Progress())
    store = reader.open(tmp_path / "s")
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    states = {}
    for one, prompt in zip(store.rows(summary.run, data.name)["sample_id"].to_list(), data.prompts, strict=True):
        ids = tokenizer(prompt.text)["input_ids"]
        plain = ~np.isin(ids, tokenizer.all_special_ids)
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        states |= {(one, layer): found[layer][0].numpy()[plain] for layer in (0, 1, 3)}
    final = {key: value for key, value in stored(store).items() if key[1] != 6}
    assert len(final) < len(stored(store))
    check(final, states)


def run(folder: Path, store: Path, texts: list[str] = TEXTS, **settings: Any) -> Summary:
    spec = ExtractSpec(**({"pooling": ["mean"], "lens": [], "batch_tokens": 128} | settings))
    data = make_data([{"text": text} for text in texts])
    return extract(ModelSpec(model=str(folder)), data, spec, store, Progress())


def test_what_has_no_value_is_counted_with_its_reason(models_of: Callable[..., Path], tmp_path: Path) -> None:
    texts = ["Hi", "A film that goes on."]
    summary = run(models_of("gpt2"), tmp_path / "s", texts, stats=["curvature", "prompt_entropy+centre", "norm"])
    store = reader.open(tmp_path / "s")
    rows = store.samples(summary.run).select("prompt", "absent").to_dicts()
    gaps = {row["prompt"]: {(gap["output"], gap["reason"]) for gap in row["absent"]} for row in rows}
    assert gaps["Hi"] == {("stats:curvature", FEW), ("stats:prompt_entropy+centre", FEW)}
    assert summary.absent["stats:curvature"][FEW] == 1
    values = store.sql(
        "SELECT count(*) AS n, count(value) AS known, bool_and(isfinite(value)) AS fine FROM token_stats"
    )
    assert values.to_pylist()[0]["fine"]
    again = run(models_of("gpt2"), tmp_path / "s", texts, stats=["curvature", "prompt_entropy+centre", "norm"])
    assert again.forward_passes == 0


def test_equal_embeddings_have_no_curvature_and_no_centred_entropy(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    # Llama knows of positions in its attention only.
    summary = run(models_of("llama"), tmp_path / "s", ["yyyyyyyy"], stats=["curvature", "prompt_entropy+centre"])
    assert summary.absent == {
        "stats:curvature": {"no two steps in a row between different states": 1},
        "stats:prompt_entropy+centre": {"tokens with equal states": 1},
    }
    layers = {layer for _, layer, _ in stored(reader.open(tmp_path / "s"))}
    assert 0 not in layers


def test_a_spectrum_of_some_samples(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    stats = ["prompt_entropy", "prompt_entropy2", "effective_rank+centre", "norm"]
    whole = run(folder, tmp_path / "whole", stats=stats)
    everything = stored(reader.open(tmp_path / "whole"))
    ids = reader.open(tmp_path / "whole").samples(whole.run)["sample_id"].to_list()

    def ask(n: int | None, texts: list[str] = TEXTS, **settings: Any) -> tuple[Summary, set[str]]:
        summary = run(folder, tmp_path / "s", texts, stats=stats, spectrum_sample=n, **settings)
        found = stored(reader.open(tmp_path / "s"))
        # A number is what it is with or without a sample.
        assert all(value == pytest.approx(everything[key], rel=1e-5) for key, value in found.items())
        cheap = {one for one, _, metric in found if metric in ("norm", "prompt_entropy2")}
        assert cheap >= {one for one, _, metric in found if metric in ("prompt_entropy", "effective_rank+centre")}
        return summary, {one for one, _, metric in found if metric == "prompt_entropy"}

    first, three = ask(3, TEXTS[:5])
    assert (first.forward_passes, len(three)) == (5, 3)
    assert "take a spectrum are taken of 3 of 5 samples" in " ".join(first.notes)
    assert ask(3, TEXTS[:5])[0].forward_passes == 0
    # Among more samples the choice keeps to those it made as far as it can.
    more, grown = ask(3)
    assert more.forward_passes == len(TEXTS) - 5
    assert grown > three
    # A larger sample asks only for the rest, and so does none.
    wider, six = ask(6)
    assert wider.forward_passes == len(six - grown)
    last, all_of_them = ask(None)
    assert last.forward_passes == len(set(ids) - six)
    assert all_of_them == {one for one, _, metric in everything if metric == "prompt_entropy"}
    assert stored(reader.open(tmp_path / "s")).keys() == everything.keys()
    assert verify.verify(tmp_path / "s", deep=True) == []


def test_the_sample_goes_by_seed_and_not_by_order(models_of: Callable[..., Path], tmp_path: Path) -> None:
    def chosen(folder: str, texts: list[str], seed: int) -> set[str]:
        run(
            models_of("llama"),
            tmp_path / folder,
            texts,
            stats=["effective_rank"],
            layers=[1],
            spectrum_sample=4,
            seed=seed,
        )
        return {one for one, _, _ in stored(reader.open(tmp_path / folder))}

    long = [text for text in TEXTS if len(text) > 12] + ["One more of them.", "And this, the very last one."]
    assert chosen("a", long, 0) == chosen("b", long[::-1], 0)
    assert len({frozenset(chosen(str(seed), long, seed)) for seed in range(4)}) > 1


def test_a_dry_run_counts_the_sample(models_of: Callable[..., Path], tmp_path: Path) -> None:
    spec = ExtractSpec(pooling=["mean"], lens=[], stats=["prompt_entropy"])
    data, model = make_data(), ModelSpec(model=str(models_of("llama")))

    def planned(n: int | None) -> int:
        asked = spec.model_copy(update={"spectrum_sample": n})
        return extract(model, data, asked, tmp_path / "s", Progress(), dry_run=True).estimate["token_stats"]

    assert planned(2) < planned(6) < planned(None)


def test_statistics_come_in_any_order_of_layers_and_names(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder, store = models_of("gpt2"), tmp_path / "s"
    run(folder, store, stats=["prompt_entropy"], layers=[2])
    assert run(folder, store, stats=["prompt_entropy1"], layers=[2]).forward_passes == 0
    summary = run(folder, store, stats=["prompt_entropy+unit+centre", "prompt_entropy"], layers=[0, 2])
    assert summary.forward_passes == len(TEXTS)
    held = {name for shard in reader.open(store).shards(summary.run) for name in shard.outputs}
    assert held == {"tokens", "hidden:resid:mean@prompt", "stats:prompt_entropy", "stats:prompt_entropy+centre+unit"}
    frame = pl.from_arrow(reader.open(store).sql("SELECT DISTINCT metric, layer FROM token_stats"))
    assert len(frame) == 4


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("prompt_entropy", "prompt_entropy"),
        (" prompt_entropy1.0 ", "prompt_entropy"),
        ("prompt_entropy2-first+unit+centre", "prompt_entropy2+centre+unit-first"),
        ("prompt_entropy0.50+centre+centre", "prompt_entropy0.5+centre"),
        ("first_pc_share-first", "first_pc_share-first"),
        ("sinks6", "sinks6"),
        ("max_norm", "max_norm"),
    ],
)
def test_names(name: str, canonical: str) -> None:
    assert parse_statistic(name) == canonical == parse_statistic(canonical)
    assert str(parse_output(f"stats:{canonical}")) == f"stats:{canonical}"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("entropy", "unknown statistic 'entropy': use one of norm, max_norm, sinks, mean_cosine"),
        ("prompt_entropy+center", r"prompt_entropy has no option \+center; it has \+centre, \+unit, -first"),
        ("curvature+centre", r"curvature has no option \+centre; it has -first"),
        ("norm-first", "norm has no option -first; it has none"),
        ("curvature2", "curvature takes no number"),
        ("prompt_entropy0", "the order of an entropy is above 0"),
        ("prompt_entropy1000", "at most 100"),
        ("sinks0.5", "at least 1"),
    ],
)
def test_names_that_are_refused(name: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        parse_statistic(name)


def test_which_take_a_spectrum() -> None:
    assert [name for name in STATS if parse(name).spectral] == [
        name
        for name in STATS
        if name.startswith(("effective", "first", "prompt_entropy")) and not name.startswith("prompt_entropy2")
    ]
