"""Builds stores for the tests of the sample browser: tokens with spans, lenses, texts, and scores of single rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from layercache.recipe import Label
from layercache.store import reader, results
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, SAMPLE_SCORES, arrow_schema
from layercache.store.writer import Shard, open_run, put_rows

LENS, GRID, WRITTEN = "lens:last@prompt:top10", "lens:token@prompt:top10", "generation:0123abcd"
ABSENT = "hidden:resid:mean@hint"
CHANGES = ("control-name", "knockout-name")
CLASSES = ("high", "low")


@dataclass(frozen=True)
class Plan:
    """What a store is to hold.

    Attributes:
        n: rows of a data set; the last one has the prompt of the first.
        final_layer: L.
        n_tokens: tokens of a prompt, BOS included.
        columns: positions that the lens at every token reads, the last ones; 0 for none.
        word: what every name, text and token begins with.
    """

    n: int = 12
    final_layer: int = 4
    n_tokens: int = 9
    columns: int = 3
    models: tuple[str, ...] = ("one",)
    data: tuple[str, ...] = ("towns",)
    word: str = ""
    tokens: bool = True
    lens: bool = True
    texts: bool = True
    scores: bool = True

    @property
    def layers(self) -> range:
        return range(self.final_layer + 1)


def sample_id(row: int, plan: Plan) -> str:
    """Rows of one prompt have one sample."""
    return f"{row % (plan.n - 1):024x}"


def p_correct(row: int, layer: int, condition: str) -> float:
    """The probability of a right answer that the stores hold: even rows are right, and row r loses more than row r - 2."""
    clean = 0.9 - 0.001 * layer if row % 2 == 0 else 0.2
    lost = {"clean": 0.0, "control-name": 0.05, "knockout-name": 0.8 * (row % 100) / 100}[condition]
    return clean - lost if row % 2 == 0 else clean + lost


def build(path: Path, plan: Plan | None = None) -> Store:
    """Write the store."""
    plan = plan or Plan()
    rng = np.random.default_rng(7)
    for number, model in enumerate(plan.models):
        run = _run(path, plan, model, number, rng)
        for data in plan.data:
            _rows(run, plan, data)
            if plan.scores:
                for kind, (numbers, scores) in _results(run, plan, data, number).items():
                    tables = (
                        pa.Table.from_pylist(numbers, schema=arrow_schema(RESULTS)),
                        pa.Table.from_pylist(scores, schema=arrow_schema(SAMPLE_SCORES)),
                    )
                    results.save(path, kind, {"kind": kind, "run": run.id, "data": data}, [], results.Outcome(*tables))
    return reader.open(path)


def _run(path: Path, plan: Plan, model: str, number: int, rng: np.random.Generator) -> Run:
    layers = [(layer, f"{plan.word}block {layer}") for layer in plan.layers]
    spec = {"weights": f"w{number}"}
    run = open_run(path, spec, model=plan.word + model, layers=layers, width=2, final_layer=plan.final_layer)
    held = list(plan.layers)
    outputs: dict[str, list[int] | None] = {"tokens": None}
    outputs |= {LENS: held, **({GRID: held} if plan.columns else {})} if plan.lens else {}
    outputs |= {WRITTEN: held} if plan.texts else {}
    shard = Shard(run, outputs, provenance={})
    ids = [f"{n:024x}" for n in range(plan.n - 1)]
    spans = [
        {"name": "prompt", "start": 1, "end": plan.n_tokens},
        {"name": f"{plan.word}question", "start": 2, "end": plan.n_tokens - 1},
        {"name": "name", "start": 3, "end": 5},
    ]
    shard.add(
        "samples",
        {
            "sample_id": ids,
            "prompt": [_prompt(n, plan) for n in range(plan.n - 1)],
            "n_tokens": [plan.n_tokens] * len(ids),
            "n_special": [1] * len(ids),
            "n_truncated": [0] * len(ids),
            "spans": [spans] * len(ids),
            "absent": [[{"output": ABSENT, "reason": "empty span"}] if n == 0 else [] for n in range(len(ids))],
        },
    )
    if plan.tokens:
        for position in range(plan.n_tokens):
            texts = [_token(n, position, plan) for n in range(len(ids))]
            here = {"position": [position] * len(ids), "token_id": [100 + position] * len(ids)}
            shard.add("tokens", {"sample_id": ids, **here, "text": texts, "spans": [[]] * len(ids)})
    for layer in plan.layers if plan.lens else ():
        shard.add("lens", _lens(ids, layer, plan.n_tokens - 1, LENS, plan, rng))
        for column in range(plan.columns):
            shard.add("lens", _lens(ids, layer, plan.n_tokens - 1 - column, GRID, plan, rng))
    for layer in plan.layers if plan.texts else ():
        written = [f"{plan.word}text {n} of layer {layer} of {model}" if layer else " " for n in range(len(ids))]
        columns = {"sample_id": ids, "output": [WRITTEN] * len(ids), "layer": [layer] * len(ids), "text": written}
        more = {
            "token_ids": [[1]] * len(ids),
            "token_logprobs": [[-0.5]] * len(ids),
            "token_entropies": [[1.0]] * len(ids),
        }
        shard.add("generations", {**columns, **more, "finish_reason": ["eos"] * len(ids)})
    shard.publish()
    return run


def _prompt(n: int, plan: Plan) -> str:
    return "".join(_token(n, position, plan) for position in range(1, plan.n_tokens))


def _token(n: int, position: int, plan: Plan) -> str:
    if position == 0:
        return "<s>"
    if position == plan.n_tokens - 1:
        return ":\n"
    return f" {plan.word}town{n}" if position == 3 else f"{plan.word} w{position}"


def _lens(
    ids: list[str], layer: int, position: int, output: str, plan: Plan, rng: np.random.Generator
) -> dict[str, Any]:
    """Ten tokens of a vocabulary of 3,000, as different from sample to sample as a model's are."""
    n = len(ids)
    top = np.sort(rng.integers(0, 3000, (n, 10)), axis=1).astype(np.int32)
    top[:, 0] = 5
    p = np.full((n, 10), 0.02)
    p[:, 0] = 0.5 + 0.4 * layer / plan.final_layer
    flat = pa.array(top.ravel())
    offsets = pa.array(np.arange(0, 10 * n + 1, 10, dtype=np.int32))

    def lists(values: Any) -> Any:
        return pa.ListArray.from_arrays(offsets, values)

    return {
        "sample_id": ids,
        "output": [output] * n,
        "layer": np.full(n, layer, dtype=np.int32),
        "position": np.full(n, position, dtype=np.int32),
        "position_name": [output.split(":")[1]] * n,
        "entropy": (np.linspace(1, 2, n) + layer / 10).astype(np.float32),
        "logsumexp": np.ones(n, dtype=np.float32),
        "top_ids": lists(flat),
        "top_tokens": lists(pa.array([f" {plan.word}t{number}" for number in top.ravel()])),
        "top_logprobs": lists(pa.array(np.log(p).astype(np.float32).ravel())),
        "target_id": np.full(n, 5, dtype=np.int32),
        "target_logprob": np.log(p[:, 0]).astype(np.float32),
        "target_rank": np.zeros(n, dtype=np.int32),
        "kl_to_final": np.zeros(n, dtype=np.float32),
        "js_to_final": np.zeros(n, dtype=np.float32),
        "agrees_with_final": [True] * n,
    }


def _rows(run: Run, plan: Plan, data: str) -> None:
    frame = pl.DataFrame(
        {
            "row": range(plan.n),
            "sample_id": [sample_id(row, plan) for row in range(plan.n)],
            f"{plan.word}size": [CLASSES[row % 2] for row in range(plan.n)],
            f"{plan.word}age": [row / 2 for row in range(plan.n)],
            "wanted": [f"{plan.word}reference {row}" for row in range(plan.n)],
        }
    )
    labels = [Label(f"{plan.word}size", "category"), Label(f"{plan.word}age", "number")]
    put_rows(run, frame, data=plan.word + data, source="towns.csv", labels=labels, reference=["wanted"])


def _results(run: Run, plan: Plan, data: str, model: int) -> dict[str, tuple[list[Any], list[Any]]]:
    """Probes are best at layer 2; every third row's class is taken wrong, the wronger the later; ages are off by row / 10."""
    place = {"run": run.id, "data": plan.word + data}
    probe = {**place, "analysis": "probe", "condition": "clean", "site": "resid", "pooling": "last@prompt"}
    numbers: list[Any] = []
    scores: list[Any] = []
    size, age = f"{plan.word}size", f"{plan.word}age"
    for layer in plan.layers:
        value = 0.9 - 0.1 * abs(layer - 2)
        numbers += [{**probe, "layer": layer, "label": size, "metric": "balanced_accuracy", "value": value}]
        numbers += [{**probe, "layer": layer, "label": age, "metric": "r2", "value": value}]
        for row in range(plan.n):
            one = {**probe, "layer": layer, "row": row, "sample_id": sample_id(row, plan)}
            right = row % 3 != 2
            said = CLASSES[(row + (not right)) % 2]
            p = 0.5 + row / (2.5 * plan.n) + model / 100
            scores.append({**one, "label": size, "metric": "predicted", "value": p, "text": said})
            scores.append({**one, "label": size, "metric": "correct", "value": float(right)})
            scores.append({**one, "label": age, "metric": "prediction", "value": row / 2 + row / 10})
            scores.append({**one, "label": age, "metric": "error", "value": row / 10})
    return {"probe": (numbers, scores), "delta_p": _pathways(plan, place)}


def _pathways(plan: Plan, place: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    own = {**place, "analysis": "delta_p", "site": "resid", "pooling": "last@prompt", "label": "right"}
    numbers = [{**own, "condition": "clean", "layer": 2, "metric": "auc", "value": 0.8}]
    scores = []
    for row in range(plan.n):
        one = {**own, "row": row, "sample_id": sample_id(row, plan)}
        for layer in plan.layers:
            clean = p_correct(row, layer, "clean")
            for condition in ("clean", *CHANGES):
                p = p_correct(row, layer, condition)
                here = {**one, "condition": condition, "layer": layer}
                scores.append({**here, "metric": "p_correct", "value": p})
                if condition != "clean":
                    lost = 100 * (p - clean) * (1 if clean > 0.5 else -1)
                    scores.append({**here, "metric": "delta_p", "value": lost})
                if condition == CHANGES[1] and layer == 2:
                    flips = (p > 0.5) != (clean > 0.5)
                    scores.append({**here, "metric": "anchored", "value": float(flips), "text": "question_anchored"})
    return numbers, scores
