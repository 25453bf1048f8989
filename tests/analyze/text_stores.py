"""Stores of generated text, written with the real writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import probe_stores as stores

from layercache.store import writer
from layercache.store.layout import Run

OUTPUT = "generation:1a2b3c4d"
PROMPTS = [
    "Where is the cat?",
    "Who wrote Emma?",
    "What is 6 times 7?",
    "Name a colour.",
    "Où est le café ?",
    "首都はどこ?",
    "Say nothing.",
    "How long is a marathon?",
]
REFERENCES: list[list[str]] = [
    ["The cat sat on the mat.", "On the mat"],
    ["Jane Austen"],
    ["42", "forty-two"],
    ["red", "green", "a deep blue"],
    ["Le café est à gauche, près de l'église."],
    ["東京"],
    ["..."],
    ["A marathon is forty two kilometres and 195 metres long"],
]
TEXTS: dict[int, list[str]] = {
    0: ["the the the the the the the the", "", "7 7 7 7 7 7", " \n", "é é é é é", "東 東", "", "long long long long"],
    1: ["A cat sat on a mat!", "Jane", "42.", "the blue", "Le cafe est a gauche", "東京です", "nothing", "forty two"],
    2: [
        "The cat sat on the mat.",
        "JANE AUSTEN wrote it",
        "Forty-two",
        "Green",
        "Le café est à gauche, près de l'église.",
        "東京",
        "...",
        "A marathon is forty two miles long",
    ],
}


def new_run(path: Path, *, model: str = "toy", quantization: str | None = None, layers: int = 3, **spec: Any) -> Run:
    names = [(layer, f"block.{layer}") for layer in range(layers)]
    settings = {"weights": "w", "quantization": quantization, **spec}
    return writer.open_run(path, settings, model=model, layers=names, width=4, final_layer=layers - 1)


def put_text(
    run: Run,
    prompts: Sequence[str],
    texts: Mapping[int, Sequence[str]],
    *,
    output: str = OUTPUT,
    tokens: Mapping[int, Sequence[list[int]]] | None = None,
) -> None:
    """Publish one shard of generated text; the tokens of a text are its characters unless they are given."""
    shard = writer.Shard(run, {output: list(texts)}, provenance={})
    shard.add("samples", stores.samples(prompts, {}))
    for layer, said in texts.items():
        ids = [[ord(char) for char in text] for text in said] if tokens is None else tokens[layer]
        shard.add(
            "generations",
            {
                "sample_id": [stores.sample_id(prompt) for prompt in prompts],
                "output": [output] * len(said),
                "layer": [layer] * len(said),
                "text": list(said),
                "token_ids": ids,
                "token_logprobs": [[-0.5] * len(own) for own in ids],
                "token_entropies": [[1.0] * len(own) for own in ids],
                "finish_reason": ["length"] * len(said),
            },
        )
    shard.publish()


def put_rows(run: Run, prompts: Sequence[str], references: Sequence[Any], **settings: Any) -> None:
    frame = pl.DataFrame({"answers": pl.Series(references, dtype=pl.List(pl.String))})
    stores.put_rows(run, frame, prompts, [], **{"reference": ["answers"], **settings})


def text_store(path: Path, **spec: Any) -> Run:
    """A run with the texts and references above."""
    run = new_run(path, **spec)
    put_rows(run, PROMPTS, REFERENCES)
    put_text(run, PROMPTS, TEXTS)
    return run


def planted(n: int, seed: int = 0) -> tuple[list[str], list[list[str]], dict[int, list[str]], np.ndarray]:
    """Prompts, references, texts of three layers and which answers of the last are right."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "dark", "light", "old", "new", "small"]
    answers = [" ".join(rng.choice(words, 5)) for _ in range(n)]
    right = rng.random(n) < 0.5
    last = [answer if ok else " ".join(rng.choice(words, 5)) + " wrong" for answer, ok in zip(answers, right)]
    other = {layer: [" ".join(rng.choice(words, 5)) for _ in range(n)] for layer in (0, 1)}
    return [f"question {at}" for at in range(n)], [[answer] for answer in answers], {**other, 2: last}, right
