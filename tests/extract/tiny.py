"""A tiny configuration of any model type, made by shrinking every size that a configuration is known to have."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

_SIZES: dict[int, tuple[str, ...]] = {
    320: ("vocab_size", "text_vocab_size", "vocab_size_per_layer_input", "char_vocab_size"),
    32: (
        *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size", "width", "d_embed"),
        *("word_embed_proj_dim", "embedding_dim", "decoder_hidden_size", "output_hidden_size", "lru_width"),
        *("attention_hidden_size", "projection_dim", "out_hidden_size", "dim_model", "d_latents"),
    ),
    48: (
        *("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_inner", "d_ff", "dim_ff", "feed_forward_size"),
        *("ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "intermediate_size_mlp", "moe_intermediate_size"),
        *("shared_expert_intermediate_size", "block_ff_dim", "emb_mlp_size", "feedforward_size"),
        *("moe_shared_expert_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size"),
    ),
    128: ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length"),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "heads"),
        *("decoder_attention_heads", "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        *("attention_heads", "num_attention_heads_encoder"),
    ),
    2: ("num_key_value_heads", "n_kv_heads", "num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"),
    3: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"),
        *("num_decoder_layers", "num_encoder_layers"),
    ),
    16: ("kv_lora_rank", "q_lora_rank", "encoder_hash_byte_group_vocab", "entity_vocab_size", "entity_emb_size"),
    8: ("head_dim", "kv_channels", "d_kv", "attention_head_dim", "sliding_window", "local_attention"),
}
_OTHER = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "init_std": 0.2}


_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
_LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA_HEADS | {"attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA_HEADS | {"layer_types": ["mamba", "attention", "mamba"]},
    "falcon_h1": _MAMBA_HEADS | {"mamba_d_ssm": 64},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 7,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "layers_block_type": None,
    },
    "bailing_hybrid": {"num_experts": 8, "n_group": 1, "topk_group": 1},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "axk1": _LATENT | {"n_group": 1, "topk_group": 1},
    "axk2": _LATENT,
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "longcat_flash": _LATENT,
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "hy_v4": _LATENT,
    "kimi_linear": _LATENT,
    "mistral4": _LATENT,
    "mistral_large4": _LATENT,
    "qwen2_vl_text": _SECTIONS,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_5_omni_text": _SECTIONS,
    "glm4v_text": _SECTIONS,
    "glm4v_moe_text": _SECTIONS,
    "glm_ocr_text": _SECTIONS,
    "glmga_text": _SECTIONS,
    "glm46v_text": _SECTIONS,
    "paddleocr_vl_text": _SECTIONS,
    "zaya": {"num_experts_per_tok": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "esm": {"vocab_size": 320},
    "esmc": {"num_key_value_heads": 4},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh", "local"],
        "num_buckets": 4,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
    },
    "nemotron": {"num_key_value_heads": 4},
}


def tiny_config(kind: str) -> PreTrainedConfig:
    """Return a configuration of a model type with a few narrow layers and a vocabulary of 320."""
    return _shrink(CONFIG_MAPPING[kind], _SPECIAL.get(kind, {}))


def _shrink(cls: Any, changes: dict[str, Any]) -> Any:
    default = cls()
    known = default.to_dict()
    sizes = {key: size for size, keys in _SIZES.items() for key in keys} | _OTHER
    given = {key: value for key, value in sizes.items() if isinstance(known.get(key), int) or key in _OTHER}
    if "head_dim" in known:
        given["head_dim"] = 8
    for key, _ in getattr(cls, "sub_configs", {}).items():
        if getattr(default, key, None) is not None:
            sub = type(getattr(default, key))
            given[key] = _shrink(sub, _SPECIAL.get(sub.model_type, {})).to_dict()
    rope = known.get("rope_parameters") or {}
    if "mrope_section" in rope:
        given["rope_parameters"] = rope | {"mrope_section": [2, 1, 1]}
    kinds = list(dict.fromkeys(known.get("layer_types") or []))
    if len(kinds) > 1 and not {"layer_types", "layers_block_type"} & set(changes):
        # Three layers of a hybrid would often all be of one kind.
        given["layer_types"] = [kinds[i % len(kinds)] for i in range(changes.get("num_hidden_layers", 3))]
    try:
        return cls(**(given | changes))
    except Exception:
        given.pop("layer_types", None)
        return cls(**(given | changes))
