"""What single architectures do otherwise, each against the model run by hand; and models that are broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from layercache.errors import ModelError
from layercache.extract.run import extract
from layercache.progress import Progress
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import reader

from .conftest import TEXTS, make_data, make_model, make_tokenizer
from .reference import close
from .tiny import tiny_config

BY_TOKEN = ["last"]


def run(folder: Path, store: Path, **settings: Any) -> tuple[reader.Store, Any, Any]:
    spec = ExtractSpec(**({"pooling": BY_TOKEN, "batch_tokens": 256} | settings))
    summary = extract(ModelSpec(model=str(folder)), make_data(), spec, store, Progress())
    opened = reader.open(store)
    return opened, opened.run(summary.run), summary


def by_text(store: reader.Store, run: Any, layer: int) -> dict[str, np.ndarray]:
    matrix = store.matrix(run, layer, "last")
    ids = store.rows(run, "data")["sample_id"].to_list()
    vectors = dict(zip(matrix.sample_ids, matrix.values, strict=True))
    return {text: vectors[one] for one, text in zip(ids, TEXTS, strict=True)}


def save(model: Any, folder: Path, *, encoder: bool = False) -> Path:
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    make_tokenizer(encoder=encoder).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "mamba2"])
def test_state_space_layers_are_counted_from_the_embeddings(kind: str, tmp_path: Path) -> None:
    """transformers' `hidden_states[0]` is the output of block 0 here; ours is what enters it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind)).eval()
    store, made, _ = run(save(model, tmp_path / "model"), tmp_path / "store")
    assert [layer.layer for layer in made.layers] == [0, 1, 2, 3, 4]
    expected: dict[str, list[torch.Tensor]] = {}
    for text in TEXTS:
        ids = torch.tensor([make_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            state = model.backbone.embeddings(ids)
            states = [state]
            for block in model.backbone.layers:
                state = block(state)
                states.append(state)
            states.append(model.backbone.norm_f(state))
        expected[text] = [one[0, -1] for one in states]
    for layer in range(5):
        found = by_text(store, made, layer)
        close(np.stack([found[text] for text in TEXTS]), np.stack([expected[text][layer] for text in TEXTS]))


@pytest.mark.parametrize("whole", [True, False])
def test_a_t5_is_read_through_its_encoder(whole: bool, tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=320,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = (T5ForConditionalGeneration if whole else T5EncoderModel)(config).eval()
    folder = save(model, tmp_path / "model", encoder=True)
    store, made, summary = run(folder, tmp_path / "store", lens=[])
    assert [layer.name for layer in made.layers][1:] == [
        *(f"encoder.block.{i}" for i in range(3)),
        "encoder.final_layer_norm",
    ]
    assert "model is an encoder-decoder: its encoder is read" in summary.notes
    for text, vector in by_text(store, made, 4).items():
        ids = torch.tensor([make_tokenizer(encoder=True)(text)["input_ids"]])
        with torch.no_grad():
            expected = model.encoder(input_ids=ids).last_hidden_state[0, -1].numpy()
        close(vector[None], expected[None])
    with pytest.raises(ModelError, match="no language-model head"):
        run(folder, tmp_path / "other")


def test_opt_350m_normalises_after_its_blocks_and_projects(tmp_path: Path) -> None:
    folder = make_model("opt", tmp_path / "model", do_layer_norm_before=False, word_embed_proj_dim=16)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.model.decoder.final_layer_norm is None
    store, made, _ = run(folder, tmp_path / "store")
    assert [layer.layer for layer in made.layers] == [0, 1, 2, 3], "there is no final norm"
    rows = store.sql("SELECT sample_id, top_ids, top_logprobs FROM lens WHERE layer = 3").to_pylist()
    ids = store.rows(made, "data")["sample_id"].to_list()
    for row in rows:
        text = TEXTS[ids.index(row["sample_id"])]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([make_tokenizer()(text)["input_ids"]])).logits[0, -1]
        logp = torch.log_softmax(logits, -1)
        np.testing.assert_allclose(row["top_logprobs"], logp[row["top_ids"]], atol=1e-4)


def test_albert_runs_two_groups_of_shared_blocks(tmp_path: Path) -> None:
    folder = make_model("albert", tmp_path / "model", num_hidden_groups=2, num_hidden_layers=4)
    store, made, _ = run(folder, tmp_path / "store", lens=[])
    names = [layer.name.rpartition(".")[2] for layer in made.layers]
    assert names == ["embeddings", "0", "0", "1", "1"]
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    for layer in range(5):
        for text, vector in by_text(store, made, layer).items():
            ids = torch.tensor([make_tokenizer(encoder=True)(text)["input_ids"]])
            with torch.no_grad():
                states = model(input_ids=ids, output_hidden_states=True).hidden_states
            close(vector[None], states[layer][0, -1:].numpy())


def test_gemmas_layer_0_is_scaled_as_what_enters_its_first_block(
    models_of: Callable[..., Path], tmp_path: Path
) -> None:
    store, made, _ = run(models_of("gemma2"), tmp_path / "store", layers=[0, 3])
    table = load_file(models_of("gemma2") / "model.safetensors")["model.embed_tokens.weight"]
    for text, vector in by_text(store, made, 0).items():
        own = table[make_tokenizer()(text)["input_ids"][-1]] * 32**0.5
        close(vector[None], own[None].numpy())


def test_the_language_model_is_read_beside_a_larger_vision_tower(tmp_path: Path) -> None:
    config = tiny_config("gemma3")
    config.vision_config.num_hidden_layers = 9
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    sizes = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters())
        for name in ("model.vision_tower", "model.language_model.layers")
    }
    assert sizes["model.vision_tower"] > sizes["model.language_model.layers"]
    store, made, _ = run(save(model, tmp_path / "model"), tmp_path / "store")
    assert made.layers[1].name == "model.language_model.layers.0"
    for text, vector in by_text(store, made, 2).items():
        ids = torch.tensor([make_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            own = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1:]
        close(vector[None], own.numpy())


@pytest.mark.parametrize("kind", ["gptj", "phi"])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_with_a_bias(kind: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = make_model(kind, tmp_path / "model", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    store, made, _ = run(folder, tmp_path / "store")
    ids = store.rows(made, "data")["sample_id"].to_list()
    for row in store.sql("SELECT sample_id, entropy FROM lens WHERE layer = 3").to_pylist():
        text = TEXTS[ids.index(row["sample_id"])]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([make_tokenizer()(text)["input_ids"]])).logits[0, -1].double()
        logp = torch.log_softmax(logits, -1)
        assert row["entropy"] == pytest.approx(float(-(logp.exp() * logp).sum()), abs=1e-4)


def change(folder: Path, name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = value(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            r"not finite from layer 2 \(model\.layers\.1\) on: the weights are broken",
        ),
        ("model.embed_tokens.weight", r"not finite from layer 0 \(embeddings\)"),
        ("model.norm.weight", r"not finite from layer 4 \(model\.norm\)"),
        ("lm_head.weight", "the weights of its head are broken"),
    ],
)
def test_weights_that_are_not_numbers_are_refused(tensor: str, match: str, tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model", tie_word_embeddings=False)
    change(folder, tensor, lambda weight: torch.full_like(weight, float("nan")))
    with pytest.raises(ModelError, match=match):
        run(folder, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("shard=*"))


def test_a_tokenizer_without_a_pad_token_works(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    store, made, _ = run(folder, tmp_path / "store")
    other, also, _ = run(models_of("llama"), tmp_path / "other")
    close(store.matrix(made, 3, "last").values, other.matrix(also, 3, "last").values)


def test_token_ids_without_an_embedding_are_refused_before_any_run(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model", vocab_size=200)
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens and gave token \d+, the model has .* for 200"):
        run(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_vocabulary_padded_beyond_the_tokenizers_works(tmp_path: Path) -> None:
    store, _, _ = run(make_model("llama", tmp_path / "model", vocab_size=384), tmp_path / "store", top_k=384)
    row = store.sql("SELECT top_ids, top_tokens FROM lens WHERE layer = 3 LIMIT 1").to_pylist()[0]
    texts = dict(zip(row["top_ids"], row["top_tokens"], strict=True))
    assert len(texts) == 384
    assert texts[383] == ""


def test_a_tokenizer_with_more_tokens_than_embeddings_works_while_they_are_not_used(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == 322
    assert run(folder, tmp_path / "store")[2].forward_passes == len(TEXTS)
    with pytest.raises(ModelError, match="has 322 tokens and gave token 321, the model has embeddings for 320"):
        extract(
            ModelSpec(model=str(folder)), make_data([{"text": "a <two>"}]), ExtractSpec(), tmp_path / "s", Progress()
        )


def test_a_pad_token_that_the_model_does_not_know_is_not_used(tmp_path: Path) -> None:
    folder = make_model("gpt2", tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<never trained>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id >= 320
    _, _, summary = run(folder, tmp_path / "store")
    assert summary.forward_passes == len(TEXTS)


def test_models_of_several_streams_are_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("deepseek_v4"))
    with pytest.raises(ModelError, match=r"DeepseekV4ForCausalLM: layer 0 is \[1, \d+, 4, 32\] for 1 prompts"):
        run(save(model, tmp_path / "model"), tmp_path / "store")


def test_attention_that_depends_on_earlier_prompts_is_refused(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_config(tiny_config("big_bird"))
    folder = save(model, tmp_path / "model", encoder=True)
    with pytest.raises(ModelError, match="block-sparse attention"):
        run(folder, tmp_path / "store")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_type": "original_full"}))
    assert run(folder, tmp_path / "store")[2].forward_passes == len(TEXTS)


def test_how_batches_are_made_is_kept_with_every_shard(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_config(tiny_config("fnet"))
    store, made, summary = run(save(model, tmp_path / "model", encoder=True), tmp_path / "store")
    checked = store.shards(made)[0].provenance["self_check"]
    assert checked["batches"] == "in batches of equal length"
    assert checked["captured"] == len(made.layers)
    assert summary.padded_tokens == summary.tokens
    assert any(note.startswith("prompts are run in batches of equal length") for note in summary.notes)
