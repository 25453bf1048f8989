"""Tiny models with random weights, saved to disk as any model is, and a tokenizer trained on a few lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from layercache.dataset import Dataset
from layercache.recipe import Label
from layercache.template import Prompt, parse_template, render

torch.set_num_threads(1)

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A film about a gardener who talks to the moon, told in nine short letters.",
    "Why?",
    "Seven sailors cross a frozen sea; only one of them can read the map, and she is asleep.",
    "Naïve café — déjà vu, 日本語 and 🙂 in one line.",
    "Short one.",
    "The lighthouse keeper counts the ships, and the ships count the lighthouse keeper's lamps.",
    "It rains.",
]
SPECIALS = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }} </s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

_SMALL: dict[str, Any] = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = _SMALL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_MULTI_HEAD = {key: value for key, value in _USUAL.items() if key not in ("num_key_value_heads", "head_dim")}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _USUAL,
    "mistral": _USUAL | {"sliding_window": 6},
    "qwen2": _USUAL,
    "qwen3": _USUAL,
    "gemma2": _USUAL | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 6},
    "gemma3_text": _USUAL | {"sliding_window": 6},
    "phi3": _USUAL | {"sliding_window": None},
    "olmo2": _USUAL,
    "granite": _USUAL | {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "cohere": _USUAL | {"logit_scale": 0.25},
    "stablelm": _USUAL,
    "mixtral": _USUAL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": _SMALL | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
    "gpt_neox": _MULTI_HEAD | {"tie_word_embeddings": False},
    "gptj": _SMALL | {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "opt": _SMALL
    | {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
        "init_std": 0.2,
    },
    "bloom": _SMALL | {"hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2},
    "falcon": _MULTI_HEAD | {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "mpt": _SMALL | {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128},
    "gpt_neo": _SMALL
    | {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "max_position_embeddings": 128,
        "window_size": 8,
    },
    "phi": _USUAL,
    "glm4": _USUAL,
    "gpt_oss": _USUAL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "llama4_text": _USUAL | {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    "bert": _MULTI_HEAD,
    "roberta": _MULTI_HEAD | {"pad_token_id": 0, "max_position_embeddings": 128},
    "modernbert": _MULTI_HEAD
    | {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": _SMALL | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 128},
    "electra": _MULTI_HEAD | {"embedding_size": 16},
    "albert": _MULTI_HEAD | {"embedding_size": 16},
}
MASKED = ("bert", "roberta", "modernbert", "distilbert", "electra", "albert")
DECODERS = tuple(name for name in CONFIGS if name not in MASKED)


def make_tokenizer(*, encoder: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds a BOS, and with `encoder` an EOS as well."""
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    single = "<s> $A </s>" if encoder else "<s> $A"
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)]),
        ]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(
    kind: str, folder: Path, *, headless: bool = False, seed: int = 0, config: Any = None, **changes: Any
) -> Path:
    """Save a tiny model of an architecture, with its tokenizer."""
    torch.manual_seed(seed)
    config = config or AutoConfig.for_model(kind, **(CONFIGS[kind] | changes))
    auto = AutoModel if headless else AutoModelForMaskedLM if kind in MASKED else AutoModelForCausalLM
    model = auto.from_config(config)
    for name, parameter in model.named_parameters():
        # Norms start as the identity; moved off it, a norm that is missed or applied twice shows.
        if "norm" in name.lower() or "ln_" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    make_tokenizer(encoder=kind in MASKED, chat=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a tiny model of an architecture; made once."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(kind: str, **changes: Any) -> Path:
        key = (kind, *sorted(changes.items()))
        if key not in made:
            made[key] = make_model(kind, tmp_path_factory.mktemp(kind), **changes)
        return made[key]

    return get


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what `test_matrix.py` covered, wherever its tests ran."""
    rows: dict[str, dict[str, str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "matrix":
                kind, dtype, right, left, what = value.split("|")
                rows.setdefault(kind, {})[dtype] = f"{right:>6} {left:>6}  {what}"
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("architectures: padding used where right and where left is preferred, what was compared")
    dtypes = sorted({dtype for cells in rows.values() for dtype in cells}, reverse=True)
    write(f"{'':18}" + "".join(f"{dtype:28}" for dtype in dtypes))
    for kind, cells in sorted(rows.items()):
        write(f"{kind:18}" + "".join(f"{cells.get(dtype, '-'):28}" for dtype in dtypes))
    write("each alone and in a ragged batch; * positions left to the model")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cache of weight hashes out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def make_data(
    rows: list[dict[str, Any]] | None = None,
    template: str = "{text}",
    *,
    name: str = "data",
    chat: bool = False,
    target: str | None = None,
    labels: list[Label] | None = None,
    split: str | None = None,
) -> Dataset:
    """A data set made of rows in memory."""
    rows = [{"text": text} for text in TEXTS] if rows is None else rows
    parts = parse_template(template)
    columns: dict[str, list[Any]] = {key: [row[key] for row in rows] for key in rows[0]}
    prompts: list[Prompt] = render(parts, columns, len(rows), columns[target] if target else None)
    frame = pl.DataFrame(columns)
    return Dataset(
        name=name,
        source=f"{name}.csv",
        frame=frame,
        prompts=prompts,
        labels=labels or [],
        split=split,
        group_by=None,
        target=target,
        template=template,
        chat=chat,
        notes=[],
    )
