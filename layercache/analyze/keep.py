"""Probes kept beside a result: tensors in safetensors, everything else in JSON of the same name.

Tensors of layer k, float64: `layer.k.coef` [t, d], `layer.k.intercept` [t], `layer.k.mean` [d],
`layer.k.scale` [d]; scores are ((x - mean) / scale) @ coef' + intercept. A number has one score, its
prediction; two classes have one, the logit of the second; more have a logit each.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load as load_bytes
from safetensors.numpy import save

from layercache.analyze.fitting import Fitted
from layercache.analyze.problem import Problem
from layercache.analyze.scaling import Linear
from layercache.errors import AnalysisError
from layercache.store.files import open_binary

FORMAT = 1
"""The format of kept probes that this version writes, and the newest that it reads."""


class Kept(NamedTuple):
    """Probes read back: a linear model a layer, and what their JSON file says."""

    models: dict[int, Linear]
    info: dict[str, Any]


def files(
    problem: Problem, site: str, pooling: str, fitted: list[Fitted], metrics: Mapping[int, Mapping[str, float]]
) -> tuple[str, bytes, bytes]:
    """Return the file name without suffix, the tensors and the JSON of the probes of one label and pooling.

    Args:
        problem: what is predicted.
        site: where the states were taken.
        pooling: how they were pooled.
        fitted: the probes of every layer, each with a model.
        metrics: held-out metrics by layer.
    """
    models = {one.layer: one.model for one in fitted if one.model is not None}
    tensors = {
        f"layer.{layer}.{name}": value for layer, model in models.items() for name, value in model._asdict().items()
    }
    info = {
        "format": FORMAT,
        "run": problem.run.id,
        "run_hash": problem.run.hash,
        "data": problem.data,
        "label": problem.label.name,
        "kind": problem.label.kind,
        "site": site,
        "pooling": pooling,
        "classes": problem.classes,
        "rows": len(problem.rows),
        "layers": {
            str(one.layer): {"penalty": one.penalty, "metrics": dict(metrics[one.layer])}
            for one in fitted
            if one.model is not None
        },
    }
    parts = (problem.data, problem.label.name, site, pooling)
    name = "-".join(["probe", _plain(problem.run.id, 73), *(_plain(part, 28) for part in parts)])
    text = json.dumps(info, indent=1, ensure_ascii=False, sort_keys=True)
    return name, save({key: value.copy(order="C") for key, value in tensors.items()}), text.encode() + b"\n"


def load(path: Path) -> Kept:
    """Read kept probes: the `.safetensors` file, with the `.json` beside it.

    Raises:
        AnalysisError: either is missing or not what this version writes.
    """
    try:
        info = json.loads(path.with_name(path.name.removesuffix(".safetensors") + ".json").read_bytes())
        with open_binary(path) as file:
            tensors = load_bytes(file.read())
        if info["format"] > FORMAT:
            raise AnalysisError(f"{path} is in probe format {info['format']}: install a newer layercache")
        models = {
            int(layer): Linear(*(tensors[f"layer.{layer}.{name}"] for name in Linear._fields))
            for layer in info["layers"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"{path} does not hold kept probes ({error}): run the probe again") from error
    return Kept(models, info)


def _plain(text: str, longest: int) -> str:
    """Return text as part of a file name; where that changes it, six digits of its hash keep it distinct."""
    plain = re.sub(r"[^A-Za-z0-9_.@-]+", "_", text)
    if plain == text and len(text) <= longest:
        return text
    return f"{plain[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
