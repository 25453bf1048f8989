"""Builds stores with lens rows and results of analyses, small and with any names, for the tests of the report."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from layercache.recipe import Label
from layercache.store import reader, recipes, results
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.schema import RESULTS, SAMPLE_SCORES, arrow_schema
from layercache.store.writer import Shard, open_run, put_rows

POOLINGS = ("last@prompt", "mean@prompt")
POSITION = "last@prompt"
OUTPUT = f"lens:{POSITION}:top3"
GRID = "lens:token@prompt:top3"
WRITTEN = "generation:0123abcd"
STATISTIC = "prompt_entropy"
CLASSES = ("U", "PG", "15")
CHANGED = ("answer-only", "knockout-sub|ject", "control-sub|ject")
LAYERS = range(7)
GROUPS = {"question_anchored": -60.0, "answer_anchored": -2.0}
DEEP = ("transfer", "run_transfer", "concept_depth", "checkpoints")
"""Plots that these stores have no numbers for; `test_report_depth` draws them."""


@dataclass
class Plan:
    """What a store is to hold."""

    models: tuple[str, ...] = ("demo", "demo:early")
    data: str = "films"
    category: str = "certificate"
    number: str = "rating"
    final_layer: int = 6
    prompts: list[str] = field(default_factory=lambda: [f"Title: Film {n}\nCertificate:" for n in range(24)])
    tokens: tuple[str, str, str] = (" U", "\n", " PG")
    lens: bool = True
    grid: bool = True
    """The lens at every token, too."""
    probes: bool = True
    entropy: bool = True
    text: bool = True
    pathways: bool = True
    quality: bool = True
    adapted: bool = True
    """Answers are scored, and the models after the first are its adapters."""
    module: str = "model.layers"
    """How the names of layers begin."""
    answer: str = "<i>an answer</i>"
    """How every generated text begins."""
    intervals: bool = True
    layers: list[int] | None = None
    """Layers that are probed; all when not given."""


def build(path: Path, plan: Plan | None = None) -> Store:
    """Write a store; `value` says what its numbers are."""
    plan = plan or Plan()
    runs = [_run(path, plan, number) for number in range(len(plan.models))]
    store = reader.open(path)
    recipes.save(path, {"name": "films", "title": "Films", "models": [{"model": one} for one in plan.models]})
    if plan.probes:
        rows = [row for run in runs for row in _probe_rows(run, plan)]
        scores = [row for run in runs for row in _predictions(run, plan)]
        _save(path, "probe", {"kind": "probe", "min_class": 1}, rows, scores)
    if plan.entropy and plan.lens:
        rows = [row for run in runs for row in _entropy_rows(run, plan)]
        scores = [row for run in runs for row in _depths(run, plan)]
        _save(path, "entropy", {"kind": "entropy"}, rows, scores)
    if plan.text:
        rows = [row for run in runs for row in _text_rows(run, runs[-1], plan)]
        scores = [row for run in runs for row in _text_scores(run, plan)]
        _save(path, "text", {"kind": "text", "reference": None}, rows, scores)
    if plan.pathways:
        rows = [row for number, run in enumerate(runs) for row in pathway_rows(run.id, number, plan.data)]
        _save(path, "delta_p", {"kind": "delta_p"}, rows, [])
    if plan.quality:
        rows = [row for run in runs for row in _quality_rows(run, runs[-1], plan)]
        _save(path, "quality", {"kind": "quality"}, rows, [])
    if plan.adapted and plan.lens:
        rows = [row for run in runs for row in _answer_rows(run, plan)]
        _save(path, "choices", {"kind": "choices"}, rows, [])
        rows = [row for run in runs for row in _adapted_rows(run, runs[0], plan)]
        _save(path, "compare", {"kind": "compare", "labels": None}, rows, [])
    return store


def value(layer: int, model: int, pooling: str = POOLINGS[0]) -> float:
    """The scores that the stores hold: they rise up to layer 4, then fall; the first pooling of model 0 is best."""
    return 0.5 + 0.3 / (1 + 0.2 * (layer - 4) ** 2) - 0.1 * model - 0.05 * POOLINGS.index(pooling)


def peaks(layer: int) -> tuple[float, float]:
    """The two values that half of the samples each have of the statistic over tokens at a layer."""
    return 1.0 + 0.1 * layer, 2.0 - 0.1 * layer


def _save(path: Path, kind: str, spec: dict[str, Any], rows: list[Any], scores: list[Any]) -> None:
    tables = (
        pa.Table.from_pylist(rows, schema=arrow_schema(RESULTS)),
        pa.Table.from_pylist(scores, schema=arrow_schema(SAMPLE_SCORES)),
    )
    assert results.save(path, kind, spec, ["test"], results.Outcome(*tables)) is not None


def sample_id(number: int) -> str:
    return f"{number:024x}"


def _run(path: Path, plan: Plan, number: int) -> Run:
    layers = [(0, "embeddings"), *((k, f"{plan.module}.{k - 1}") for k in range(1, plan.final_layer + 1))]
    layers.append((plan.final_layer + 1, "model.norm"))
    spec = {"weights": f"w{number}", "dtype": "float32", "template": "Title: {title}\nCertificate:"}
    run = open_run(path, spec, model=plan.models[number], layers=layers, width=4, final_layer=plan.final_layer)
    n = len(plan.prompts)
    ids = [sample_id(k) for k in range(n)]
    outputs: dict[str, list[int] | None] = (
        {OUTPUT: list(range(plan.final_layer + 1))} if plan.lens else {"tokens": None}
    )
    if plan.grid:
        outputs |= {GRID: list(range(plan.final_layer + 1)), "tokens": None}
    if plan.text:
        outputs[WRITTEN] = list(range(plan.final_layer + 1))
    if plan.quality:
        outputs[f"stats:{STATISTIC}"] = list(range(plan.final_layer + 1))
    shard = Shard(
        run,
        outputs,
        provenance={"layercache": "0.1.0", "created": "2026-01-02T03:04:05", "device": "cpu", "host": "secret-host"},
    )
    samples = {"sample_id": ids, "prompt": plan.prompts, "n_tokens": [5] * n, "n_special": [1] * n}
    spans = [[{"name": "prompt", "start": 1, "end": 5}]] * n
    shard.add("samples", {**samples, "n_truncated": [0] * n, "spans": spans, "absent": [[]] * n})
    if plan.lens:
        for layer in range(plan.final_layer + 1):
            shard.add("lens", _lens(plan, ids, layer))
    for layer in range(plan.final_layer + 1) if plan.grid else ():
        for position in range(1, 5):
            here = {"position": [position] * n, "output": [GRID] * n, "position_name": ["token@prompt"] * n}
            shard.add("lens", _lens(plan, ids, layer) | here)
    if plan.grid:
        for position in range(5):
            text = ["<s>", plan.tokens[0], "\n", " is", plan.tokens[1]][position]
            words = {"position": [position] * n, "token_id": [position] * n, "text": [text] * n, "spans": [[]] * n}
            shard.add("tokens", {"sample_id": ids, **words})
    for layer in range(plan.final_layer + 1) if plan.text else ():
        texts = [f"{plan.answer} {k} of layer {layer}" if layer else " " for k in range(n)]
        columns = {
            "sample_id": ids,
            "output": [WRITTEN] * n,
            "layer": [layer] * n,
            "text": texts,
            "token_ids": [[1]] * n,
        }
        numbers = {"token_logprobs": [[-0.5]] * n, "token_entropies": [[1.0]] * n, "finish_reason": ["eos"] * n}
        shard.add("generations", {**columns, **numbers})
    for layer in range(plan.final_layer + 1) if plan.quality else ():
        values = [peaks(layer)[k % 2] for k in range(n)]
        shard.add("token_stats", {"sample_id": ids, "layer": [layer] * n, "metric": [STATISTIC] * n, "value": values})
    shard.publish()
    frame = pl.DataFrame(
        {
            "row": range(n),
            "sample_id": ids,
            plan.category: [CLASSES[k % 3] for k in range(n)],
            plan.number: [float(k) for k in range(n)],
        }
    )
    labels = [Label(plan.category, "category"), Label(plan.number, "number")]
    put_rows(run, frame, data=plan.data, source="/home/someone/films.csv", labels=labels, reference=[plan.category])
    return run


def _lens(plan: Plan, ids: list[str], layer: int) -> dict[str, Any]:
    n = len(ids)
    certain = (layer + 1) / (plan.final_layer + 2)
    order = [0, 1, 2] if layer > plan.final_layer // 2 else [1, 0, 2]
    return {
        "sample_id": ids,
        "output": [OUTPUT] * n,
        "layer": np.full(n, layer, dtype=np.int32),
        "position": [4] * n,
        "position_name": [POSITION] * n,
        "entropy": (np.linspace(2, 3, n) * (1 - certain)).astype(np.float32),
        "logsumexp": [1.0] * n,
        "top_ids": [order] * n,
        "top_tokens": [[plan.tokens[k] for k in order]] * n,
        "top_logprobs": [[math.log(certain), math.log((1 - certain) / 2), math.log((1 - certain) / 3)]] * n,
        "target_id": [2] * n,
        "target_logprob": [-1.0] * n,
        "target_rank": [2] * n,
        "kl_to_final": [1 - certain] * n,
        "js_to_final": [0.1] * n,
        "agrees_with_final": [order[0] == 0] * n,
    }


def _probe_rows(run: Run, plan: Plan) -> list[dict[str, Any]]:
    number = plan.models.index(run.model)
    rows = []
    for label, metrics in ((plan.category, ("accuracy", "balanced_accuracy")), (plan.number, ("mse", "r2"))):
        key = {"run": run.id, "data": plan.data, "analysis": "probe", "condition": "clean", "label": label, "n": 24}
        for metric in metrics:
            for group, score in (("majority" if label == plan.category else "mean", 0.3), ("tf-idf", 0.4)):
                rows.append({**key, "group": group, "metric": metric, **_scored(score, plan)})
        for pooling in POOLINGS:
            place = {**key, "site": "resid", "pooling": pooling}
            for layer in plan.layers or range(plan.final_layer + 2):
                score = value(layer, number, pooling)
                rows += [{**place, "layer": layer, "metric": one, **_scored(score, plan)} for one in metrics]
                shuffled = {**place, "layer": layer, "group": "shuffled"}
                rows += [{**shuffled, "metric": one, **_scored(0.33, plan)} for one in metrics]
                rows.append(
                    {**place, "layer": layer, "metric": "best_layer_share", "value": 0.5 if layer == 4 else 0.1}
                )
            rows.append({**place, "metric": "left_out", "value": 0.0})
    return rows


def _scored(score: float, plan: Plan) -> dict[str, float | None]:
    spread = 0.03 if plan.intervals else None
    return {
        "value": score,
        "low": None if spread is None else score - spread,
        "high": None if spread is None else score + spread,
    }


def _predictions(run: Run, plan: Plan) -> list[dict[str, Any]]:
    """At layer 4 every third class is taken for the next one, and numbers are off by one."""
    rows = []
    n = len(plan.prompts)
    place = {"run": run.id, "data": plan.data, "analysis": "probe", "condition": "clean", "site": "resid"}
    for layer in plan.layers or (4,):
        key = {**place, "layer": layer, "pooling": POOLINGS[0]}
        for k in range(n):
            one = {**key, "row": k, "sample_id": sample_id(k)}
            guess = CLASSES[(k + (k % 3 == 2)) % 3]
            rows.append({**one, "label": plan.category, "metric": "predicted", "value": 0.9, "text": guess})
            rows.append({**one, "label": plan.number, "metric": "prediction", "value": k + 1.0, "text": None})
    return rows


def _entropy_rows(run: Run, plan: Plan) -> list[dict[str, Any]]:
    key = {"run": run.id, "data": plan.data, "analysis": "entropy", "condition": "clean", "position": POSITION, "n": 24}
    rows: list[dict[str, Any]] = []
    for layer in range(plan.final_layer + 1):
        middle = 3.0 - 0.4 * layer
        here = {**key, "layer": layer}
        for q, off in ((10, -0.5), (25, -0.2), (50, 0.0), (75, 0.2), (90, 0.5)):
            rows.append({**here, "metric": f"entropy_q{q}", "value": middle + off})
        rows.append({**here, "metric": "entropy", **_scored(middle + 0.05, plan)})
        share = 1.0 if layer > plan.final_layer // 2 else 0.0
        for metric, number in (("agrees_with_final", share), ("kl_to_final", 1.0), ("target_logprob", -1.0 - layer)):
            rows.append({**here, "metric": metric, **_scored(number, plan)})
    rows.append({**key, "metric": "prediction_depth", "value": 3.5})
    return rows


def _depths(run: Run, plan: Plan) -> list[dict[str, Any]]:
    key = {"run": run.id, "data": plan.data, "analysis": "entropy", "condition": "clean", "position": POSITION}
    return [
        {**key, "metric": "prediction_depth", "row": k, "sample_id": sample_id(k), "value": float(k % 4)}
        for k in range(len(plan.prompts))
    ]


def _text_rows(run: Run, other: Run, plan: Plan) -> list[dict[str, Any]]:
    """Scores that rise with the layer; the first model stands for a quantised one, a tenth worse than the last."""
    number = plan.models.index(run.model)
    key = {"run": run.id, "data": plan.data, "analysis": "text", "condition": "clean", "label": plan.category, "n": 24}
    key["group"] = WRITTEN
    rows: list[dict[str, Any]] = []
    for layer in range(plan.final_layer + 1):
        here = {**key, "layer": layer}
        for metric, whole in (("token_f1", 1), ("rouge_l", 1), ("bleu", 100), ("exact_match", 1), ("empty", 1)):
            rows.append({**here, "metric": metric, **_scored(whole * (0.1 * layer + 0.1 * number), plan)})
            if run != other and metric == "token_f1":
                place = {**here, "other_run": other.id, "other_layer": layer}
                rows.append({**place, "metric": f"{metric}_minus_other", **_scored(-0.1, plan)})
        for metric in ("auc_entropy", "auc_agrees_with_final"):
            rows.append({**here, "position": POSITION, "metric": metric, **_scored(0.5 + 0.05 * layer, plan)})
    return rows


def _text_scores(run: Run, plan: Plan) -> list[dict[str, Any]]:
    key = {"run": run.id, "data": plan.data, "analysis": "text", "condition": "clean", "label": plan.category}
    key |= {"group": WRITTEN, "layer": plan.final_layer, "metric": "token_f1"}
    return [{**key, "row": k, "sample_id": sample_id(k), "value": 1 - k / 24} for k in range(len(plan.prompts))]


def lost(layer: int, model: int, group: str) -> float:
    """ΔP that the stores hold, percentage points."""
    return (GROUPS.get(group.removeprefix("noise_"), -20.0) - layer) / (1 + model)


def pathway_rows(run: str, model: int, data: str) -> list[dict[str, Any]]:
    """Numbers of ΔP as `analyze delta_p` writes them: a knockout with its control, and an answer alone."""
    place = {"run": run, "data": data, "analysis": "delta_p", "label": "correct", "site": "resid"}
    place |= {"pooling": "last@exact_answer"}
    found = []
    for layer in LAYERS:
        for condition in CHANGED:
            for group in ("all", *GROUPS, "noise", *(f"noise_{one}" for one in GROUPS)):
                number = lost(layer, model, group)
                own = {**place, "condition": condition, "layer": layer, "group": group, "metric": "delta_p"}
                made = None if group == "all" else 3
                found.append(
                    {**own, "value": number, "low": number - 4, "high": number + 4, "n": 50, "other_layer": made}
                )
        knocked = {**place, "condition": CHANGED[1], "layer": layer, "group": "all", "n": 50}
        found.append({**knocked, "metric": "flip_rate", "value": 0.05 * layer, "low": 0.0, "high": 0.5})
        for metric, number in (("flip_rate_minus_control", 0.04 * layer), ("delta_p_minus_control", -3.0 * layer)):
            found.append({**knocked, "metric": metric, "value": number, "low": number - 0.1, "high": number + 0.1})
        found.append(
            {**knocked, "condition": "clean", "group": None, "metric": "auc", "value": 0.8, "low": 0.7, "high": 0.9}
        )
    system = {**place, "condition": "clean", "layer": 3, "group": "probe", "n": 50, "other_layer": 3}
    return [*found, {**system, "metric": "detection_auc", "value": 0.81, "low": 0.75, "high": 0.9}]


def _quality_rows(run: Run, other: Run, plan: Plan) -> list[dict[str, Any]]:
    """Entropies fall, CKA falls with the distance of two layers, and random tokens add to the entropy."""
    key = {"run": run.id, "data": plan.data, "analysis": "quality", "condition": "clean", "site": "resid", "n": 24}
    place = {**key, "pooling": POOLINGS[1]}
    layers = range(plan.final_layer + 2)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        for metric in ("dataset_entropy_normalized", "intrinsic_dimension", "dataset_copies"):
            rows.append({**place, "layer": layer, "metric": metric, **_scored(0.9 - 0.1 * layer, plan)})
        for group, score in ((None, 0.5), ("shuffled", 3.2), ("chance", math.log(24))):
            row = {**place, "condition": "augment", "layer": layer, "group": group, "metric": "infonce"}
            rows.append({**row, **_scored(score, plan)})
        for condition, more in (("clean", 0.0), ("random-0.25", 0.1), ("random-0.5", 0.2), ("truncate-4", -0.1)):
            row = {**key, "condition": condition, "layer": layer, "metric": "prompt_entropy_over_ln_min"}
            rows.append({**row, **_scored(0.5 + more, plan)})
        for metric in ("cka", "mutual_knn"):
            for end in layers[layer + 1 :]:
                row = {**place, "layer": layer, "other_layer": end, "metric": metric}
                rows.append({**row, **_scored(1 / (1 + end - layer), plan)})
            for end in layers if run != other else ():
                row = {**place, "layer": layer, "other_layer": end, "other_run": other.id, "metric": metric}
                rows.append({**row, **_scored(0.5 / (1 + abs(end - layer)), plan)})
    rows.append({**place, "group": "chance", "metric": "mutual_knn", "value": 10 / 23})
    return rows


def _answer_rows(run: Run, plan: Plan) -> list[dict[str, Any]]:
    number = plan.models.index(run.model)
    key = {
        "run": run.id,
        "data": plan.data,
        "analysis": "choices",
        "condition": "clean",
        "label": plan.category,
        "n": 24,
    }
    key |= {"position": POSITION, "group": "whole"}
    return [
        {**key, "layer": layer, "metric": metric, **_scored(value(layer, number), plan)}
        for layer in range(plan.final_layer + 1)
        for metric in ("accuracy", "choice_ece", "choice_brier", "choice_mass")
    ]


def _adapted_rows(run: Run, base: Run, plan: Plan) -> list[dict[str, Any]]:
    """The base answers half the rows right, its adapter 60 %; of its grid, rank and alpha, alpha matters."""
    key = {
        "run": run.id,
        "data": plan.data,
        "analysis": "compare",
        "condition": "clean",
        "label": plan.category,
        "n": 24,
    }
    model = {**key, "group": "model", "layer": plan.final_layer}
    if run == base:
        rows = [{**model, "metric": "accuracy", **_scored(0.5, plan)}]
        rows.append({**key, "group": "majority", "metric": "accuracy", **_scored(0.3, plan)})
        against = {**key, "group": "majority", "other_run": base.id}
        rows.append({**against, "metric": "accuracy_minus_base", **_scored(-0.2, plan)})
        rows.append({**against, "metric": "mcnemar_p", "value": 0.0004})
        for i, r in enumerate((1, 16)):
            for j, alpha in enumerate((1, 256)):
                cell = {**key, "group": f"r={r} alpha={alpha}", "metric": "cell_accuracy", "n": 3}
                rows.append({**cell, **_scored(0.5 + 0.01 * i + 0.1 * j, plan)})
        for factor, effect, share, p in (("r", 0.01, 0.1, 0.4), ("alpha", 0.1, 0.8, 0.001), ("interaction", 0, 0, 0.9)):
            rows.append({**key, "group": factor, "metric": "effect", **_scored(effect, plan), "n": 3})
            rows.append({**key, "group": factor, "metric": "variance_share", "value": share})
            rows.append({**key, "group": factor, "metric": "anova_p", "value": p})
        return [*rows, {**key, "group": "seed", "metric": "variance_share", "value": 0.1}]
    model |= {"other_run": base.id}
    rows = [{**model, "other_run": None, "metric": "accuracy", **_scored(0.6, plan)}]
    rows.append({**model, "metric": "accuracy_minus_base", **_scored(0.1, plan)})
    rows.append({**model, "metric": "mcnemar_p", "value": 0.02})
    for layer in range(plan.final_layer + 1):
        here = {**key, "other_run": base.id, "layer": layer}
        gain = {"metric": "choice_accuracy_minus_base", "position": POSITION, "group": "choices"}
        rows.append({**here, **gain, **_scored(0.1 if layer > 3 else 0.0, plan)})
        rows.append({**here, **gain, "metric": "entropy_minus_base", "group": "lens", **_scored(-0.1, plan)})
        place = {"site": "resid", "pooling": POOLINGS[0]}
        rows.append({**here, **place, "group": "probe", "metric": "probe_accuracy_minus_base", **_scored(0.05, plan)})
        cka = {**here, **place, "label": None, "group": "states", "metric": "cka_with_base"}
        rows.append({**cka, **_scored(1 - layer / 20, plan)})
    return rows
