"""Builds small stores for the tests, and says what they must hold."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import layercache
from layercache.head import Head, Linear, Norm
from layercache.store import manifest
from layercache.store.layout import Run
from layercache.store.writer import Shard, open_run

WIDTH = 8
LAYERS = [0, 1, 2, 3]
MEAN, LAST, LENS = "hidden:resid:mean@prompt", "hidden:resid:last@prompt", "lens:last@prompt:top2"
Outputs = dict[str, list[int] | None]


def sample_id(number: int) -> str:
    return f"{number:024x}"


def make_run(store: Path, name: str = "org/tiny", **spec: object) -> Run:
    layers = [(layer, f"model.layers.{layer}") for layer in LAYERS]
    return open_run(store, {"weights": "w", **spec}, model=name, layers=layers, width=WIDTH, final_layer=LAYERS[-1])


def state(sample: str, site: str, pooling: str, layer: int, salt: int = 0) -> np.ndarray:
    """A state that tells which sample, feature and layer it is, and (by `salt`) which shard it came from."""
    seed = [int(sample, 16), len(site), sum(pooling.encode()), layer, salt]
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def add_samples(shard: Shard, ids: list[str], absent: dict[str, list[tuple[str, str]]] | None = None) -> None:
    n = len(ids)
    reasons = [[{"output": o, "reason": r} for o, r in (absent or {}).get(name, [])] for name in ids]
    shard.add(
        "samples",
        {
            "sample_id": ids,
            "prompt": [f"prompt {name}" for name in ids],
            "n_tokens": [4] * n,
            "n_special": [1] * n,
            "n_truncated": [0] * n,
            "spans": [[{"name": "prompt", "start": 1, "end": 4}]] * n,
            "absent": reasons,
        },
    )


def add_hidden(shard: Shard, ids: list[str], output: str, layers: list[int], salt: int = 0) -> None:
    _, site, pooling = output.split(":")
    for layer in layers:
        vectors = np.array([state(name, site, pooling, layer, salt) for name in ids], dtype=np.float32)
        n = len(ids)
        columns = {"sample_id": ids, "site": [site] * n, "layer": [layer] * n, "pooling": [pooling] * n}
        shard.add("hidden", {**columns, "vector": vectors.reshape(n, WIDTH)})


def add_lens(shard: Shard, ids: list[str], output: str, layers: list[int]) -> None:
    for layer in layers:
        n = len(ids)
        shard.add(
            "lens",
            {
                "sample_id": ids,
                "output": [output] * n,
                "layer": np.full(n, layer),
                "position": [3] * n,
                "position_name": [output.split(":")[1]] * n,
                "entropy": np.linspace(0, 1, n, dtype=np.float32),
                "logsumexp": [1.0] * n,
                "top_ids": [[5, 6]] * n,
                "top_tokens": [["five", "six"]] * n,
                "top_logprobs": [[-0.1, -2.5]] * n,
                "kl_to_final": [0.0] * n,
                "js_to_final": [0.0] * n,
                "agrees_with_final": [True] * n,
            },
        )


def add_tokens(shard: Shard, ids: list[str]) -> None:
    columns: dict[str, list[object]] = {"sample_id": [], "position": [], "token_id": [], "text": [], "spans": []}
    for name in ids:
        for position in range(4):
            values = (name, position, position + 10, f"t{position}", ["prompt"] if position else [])
            for column, value in zip(columns, values, strict=True):
                columns[column].append(value)
    shard.add("tokens", columns)


def fill(shard: Shard, ids: list[str], outputs: Outputs, salt: int = 0) -> Shard:
    """Add every row that the outputs promise."""
    add_samples(shard, ids)
    for output, layers in outputs.items():
        if output == "tokens":
            add_tokens(shard, ids)
        elif output.startswith("hidden:"):
            add_hidden(shard, ids, output, layers or [], salt)
        else:
            add_lens(shard, ids, output, layers or [])
    return shard


def put_shard(
    run: Run, numbers: range | list[int], outputs: Outputs | None = None, *, condition: str = "clean", salt: int = 0
) -> str:
    """Publish a complete shard; return its name."""
    outputs = {MEAN: LAYERS} if outputs is None else outputs
    ids = [sample_id(number) for number in numbers]
    shard = Shard(run, outputs, condition=condition, provenance={"host": "test"})
    name = fill(shard, ids, outputs, salt).publish()
    assert name is not None
    return name


def content(store: Path) -> dict[str, object]:
    """Every row that counts, of every table, run and condition: what readers see, in whatever shards it lies."""
    opened = layercache.open(store)
    found: dict[str, object] = {}
    with opened.connect() as connection:
        for table in ("samples", "tokens", "hidden", "lens"):
            rows = connection.sql(f"SELECT * FROM {table}").to_arrow_table().to_pylist()
            found[table] = sorted(repr({**row, "absent": sorted(map(repr, row.get("absent", [])))}) for row in rows)
    for run in opened.runs():
        for condition in opened.conditions(run):
            for site, pooling, layers in opened.features(run, condition):
                for layer in layers:
                    matrix = opened.matrix(run, layer, pooling, site=site, condition=condition)
                    key = f"{run.id} {condition} {site} {pooling} {layer}"
                    found[key] = (matrix.sample_ids.tolist(), matrix.values.tobytes())
    return found


def fix_manifest(path: Path) -> None:
    """Let a manifest state the files as they are."""
    value = json.loads((path / "manifest.json").read_bytes())
    for name, info in value["files"].items():
        data = (path / name).read_bytes()
        info |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_bytes(manifest.seal({**value, "sha256": ""}))


VOCABULARY = 11
TEXTS = ["", "<s>", " Paris", "Paris", " paris", "Lon", " Lond", "7", "é", "Par", "Paris"]
PIECES = ["", "<s>", "▁Paris", "Paris", "▁paris", "Lon", "▁Lond", "7", "é", "Par", "<Paris>"]


def make_head(bits: type = np.uint16, **changes: Any) -> Head:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    if bits is np.uint16:
        weight = (weight.view(np.uint32) >> 16).astype(np.uint16)
    norm = Norm("layer", 1e-5, rng.random(WIDTH, dtype=np.float32), rng.random(WIDTH, dtype=np.float32), False)
    head = Head(norm, None, Linear(weight.astype(bits), None), 4.0, 0.5, pa.array(TEXTS), pa.array(PIECES))
    return replace(head, **changes)
