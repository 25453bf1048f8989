"""Finds a model's blocks, final norm, head and sublayers by how it is built, not by its name.

    embeddings → block 1 → … → block L → final norm → head
       layer 0     layer 1       layer L     layer L+1

Names are only a tie-breaker, in the short tables below. Whether what was found is right is not taken on
trust: `selfcheck.py` compares every layer and the lens with the model's own outputs.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from layercache.errors import ModelError

_ATTENTION = (
    "post_self_attn_layernorm",  # GLM-4: the sublayer's output is normed before it is added
    "attention.output.dense",  # BERT, RoBERTa, ELECTRA: before the residual and the LayerNorm
    "self_attention.dense",  # BLOOM adds the residual inside; Falcon
    "self_attn",
    "self_attention",
    "attn",
    "attention",
)
_MLP = (
    "post_mlp_layernorm",  # GLM-4
    "output.dense",  # BERT, RoBERTa, ELECTRA
    "mlp.dense_4h_to_h",  # BLOOM adds the residual inside; Falcon, GPT-NeoX
    "ffn.down_proj",  # MPT adds the residual inside
    "mlp",
    "feed_forward",
    "block_sparse_moe",
    "moe",
    "ffn",
    "fc2",  # OPT has no module around its two layers
    "ffn_output",  # ALBERT
)
_SANDWICH = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
"""Gemma 2 and 3, OLMo 2: with both, a sublayer's output is normed before it is added to the residual."""

_FINAL_NORMS = ("norm", "ln_f", "norm_f", "embedding_norm", "emb_layer_norm_after")
"""Names that say so; LFM2 and ESM call theirs the last two. Others with `emb` come before the blocks."""

_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_SCALES = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


@dataclass(frozen=True)
class Structure:
    """The parts of a model, as modules of it.

    Attributes:
        base: what is called to run the blocks without the head.
        blocks: the distinct blocks in the order of the forward pass; one may be run many times (ALBERT).
        n_layers: L, the blocks run in one forward pass.
        final_norm: the norm after the last block; None where there is none (BERT).
        projection: what stands between the final norm and the head (OPT); usually None.
        head: the linear unembedding, when it is applied to the normed state as it is; None when the head
            is more than that (BERT) or not there.
        softcap, scale: what the logits are capped at and multiplied by.
        names: name of every block's module.
        width: elements of a state.
    """

    base: nn.Module
    blocks: tuple[nn.Module, ...]
    n_layers: int
    final_norm: nn.Module | None
    projection: nn.Module | None
    head: nn.Linear | None
    softcap: float | None
    scale: float
    names: tuple[str, ...]
    norm_name: str
    width: int

    @property
    def layers(self) -> list[tuple[int, str]]:
        """Every layer's number and what the model calls the module whose output it is."""
        found = [(0, "embeddings"), *((i + 1, self._name(i)) for i in range(self.n_layers))]
        return [*found, (self.n_layers + 1, self.norm_name)] if self.final_norm is not None else found

    def _name(self, i: int) -> str:
        # ALBERT runs its first group of blocks a number of times, then the next.
        return self.names[i * len(self.names) // self.n_layers]


def analyse(model: nn.Module, config: Any) -> Structure:
    """Find a model's parts.

    Args:
        model: with or without its head, on any device, `meta` included.
        config: its configuration.

    Raises:
        ModelError: no stack of blocks.
    """
    stack_name, stack = _find_stack(model)
    base = _find_base(model, stack_name)
    # The base's own configuration is the text's in a multimodal model, the encoder's in an encoder-decoder.
    text = getattr(base, "config", config).get_text_config()
    blocks = tuple(stack)
    n_layers = _n_layers(text, len(blocks))
    norm_name, norm = _find_norm(model, base, stack_name)
    width = getattr(text, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(f"{type(model).__name__}: the configuration does not say how wide a state is (hidden_size)")
    softcap = next((float(v) for key in _SOFT_CAPS if (v := getattr(text, key, None))), None)
    return Structure(
        base=base,
        blocks=blocks,
        n_layers=n_layers,
        final_norm=norm,
        projection=_sibling(model, stack_name, "project_out"),
        head=_linear_head(model, base),
        softcap=softcap,
        scale=_scale(text),
        names=tuple(f"{stack_name}.{i}" for i in range(len(blocks))),
        norm_name=norm_name,
        width=width,
    )


def sublayer(block: nn.Module, site: str) -> nn.Module:
    """Find the module whose output a block's sublayer adds to the residual stream.

    `attn_out` and `mlp_out` are what is added: after the norm that some models put on a sublayer's output
    (Gemma 2 and 3, OLMo 2), before the residual and the norm that follows it in others (BERT).

    Raises:
        ModelError: the block has no such sublayer.
    """
    if all(isinstance(getattr(block, name, None), nn.Module) for name in _SANDWICH.values()):
        return getattr(block, _SANDWICH[site])  # type: ignore[no-any-return]
    for path in _ATTENTION if site == "attn_out" else _MLP:
        found: Any = block
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(f"site {site}: blocks of kind {type(block).__name__} have no module for it; use --sites resid")


def _n_layers(config: Any, n_blocks: int) -> int:
    """Return how many blocks a forward pass runs: those there are, or a multiple where they are shared (ALBERT)."""
    layers = getattr(config, "num_hidden_layers", None)
    shared = isinstance(getattr(config, "num_hidden_groups", None), int) or n_blocks == 1
    return layers if shared and isinstance(layers, int) and layers > n_blocks else n_blocks


def _find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the stack of blocks nearest to the token embeddings, and its name.

    The search goes outwards from the embeddings, so that a vision tower, however large, is not taken for
    the language model beside it.

    Raises:
        ModelError: no stack anywhere.
    """
    for name in _around_embeddings(model):
        found = _largest_list(model.get_submodule(name), name)
        if found is not None:
            return found
    raise ModelError(f"{type(model).__name__}: no stack of blocks found; layercache cannot read this model")


def _around_embeddings(model: nn.Module) -> list[str]:
    """Return the names of the modules around the token embeddings, the innermost first and the model itself last."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return [""]
    path = next((name for name, module in model.named_modules() if module is embeddings), "").split(".")
    return [".".join(path[:depth]) for depth in range(len(path) - 1, 0, -1)] + [""]


def _largest_list(parent: nn.Module, path: str) -> tuple[str, nn.ModuleList] | None:
    """Return the outermost list of modules that holds the most parameters, and its name; text before images and sound."""
    best: tuple[bool, int, str, nn.ModuleList] | None = None
    taken: list[str] = []
    for name, module in parent.named_modules(prefix=path):
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in taken):
            continue
        taken.append(name)
        size = sum(parameter.numel() for parameter in module.parameters())
        text = not any(word in name.removeprefix(path) for word in _OTHER_SENSES)
        if size and (best is None or (text, size) > best[:2]):
            best = (text, size, name, module)
    return None if best is None else best[2:]


def _find_base(model: nn.Module, stack_name: str) -> nn.Module:
    """Return what runs the blocks without the head: transformers' base model, else the largest part without a head."""
    base = getattr(model, "base_model", None)
    head = _head(model)
    if isinstance(base, nn.Module) and (base is not model or head is None):
        return base
    path = stack_name.split(".")[:-1]
    for depth in range(1, len(path) + 1):
        part = model.get_submodule(".".join(path[:depth]))
        if all(module is not head for module in part.modules()):
            return part
    return model


def _head(model: nn.Module) -> nn.Module | None:
    """Return the module that transformers calls the output embeddings."""
    get: Any = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _find_norm(model: nn.Module, base: nn.Module, stack_name: str) -> tuple[str, nn.Module | None]:
    """Look for the norm beside the stack, then beside the modules around it, up to the base model."""
    top = next((name for name, module in model.named_modules() if module is base), "")
    name = stack_name
    while name and name != top:
        name, _, _ = name.rpartition(".")
        parent = model.get_submodule(name)
        found = [
            (key, child)
            for key, child in parent.named_children()
            if "norm" in type(child).__name__.lower()
            and not any(True for _ in child.children())
            and (key in _FINAL_NORMS or "emb" not in key)
        ]
        if found:
            # `norm`, `ln_f`, `final_layernorm`: where there are two, the final one says so.
            found.sort(key=lambda item: ("final" in item[0] or item[0] in _FINAL_NORMS, item[0]))
            return f"{name}.{found[-1][0]}".lstrip("."), found[-1][1]
    return "", None


def _sibling(model: nn.Module, stack_name: str, key: str) -> nn.Module | None:
    found = getattr(model.get_submodule(stack_name.rpartition(".")[0]), key, None)
    return found if isinstance(found, nn.Module) else None


def _linear_head(model: nn.Module, base: nn.Module) -> nn.Linear | None:
    """Return the head when it is one linear layer directly on the model; deeper ones do more than unembed."""
    if model is base:
        return None
    head = _head(model)
    direct = any(child is head for child in model.children())
    others = [c for c in model.children() if c is not base and c is not head and any(True for _ in c.parameters())]
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():  # a quantised one holds bytes
        return None
    return head if direct and not others else None


def _scale(config: Any) -> float:
    scale = 1.0
    for key in _SCALES:
        value = getattr(config, key, None)
        scale *= float(value) if isinstance(value, (int, float)) and value else 1.0
    for key in _DIVISORS:
        value = getattr(config, key, None)
        scale /= float(value) if isinstance(value, (int, float)) and value else 1.0
    return scale
