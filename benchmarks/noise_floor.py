"""What the figure of ΔP by outcome shows of noise, and what the difference from the control shows, on made-up states.

    python benchmarks/noise_floor.py [--quick] [--json]

States of one layer say along one direction whether an answer is right; the probe is right nine times in ten. In the world
`noise` both the knockout and its control add the same amount of noise to the states and know of nothing. In the world
`planted` the knockout also takes away the signal of half the samples, chosen blindly. Each is analysed as any store is. The
table shows ΔP, in percentage points, of the samples that flip, of those that do not, the same of the simulated floor, and
over all samples the knockout's minus the control's with its 95 % interval; the last line counts, over further worlds of
noise, how often that interval holds 0.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import _options
import numpy as np
import polars as pl

from layercache.analyze import analyze
from layercache.progress import Progress
from layercache.recipe import DeltaPSpec, Label
from layercache.store import reader, writer

WIDTH, POOLING, SIGNAL, NOISE = 16, "last@answer", 1.3, 1.3
KNOCKOUT, CONTROL = "knockout-subject", "control-subject"


def states(n: int, planted: bool, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return which answers are right [n], and states [n, width] by condition."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < 0.5
    signal = np.zeros((n, WIDTH))
    signal[:, 0] = SIGNAL * np.where(right, 1, -1)
    clean = signal + rng.standard_normal((n, WIDTH))
    found = {"clean": clean}
    for name in (KNOCKOUT, CONTROL):
        found[name] = clean + NOISE * rng.standard_normal((n, WIDTH))
    if planted:
        found[KNOCKOUT] -= signal * (rng.random(n) < 0.5)[:, None]
    return right, found


def analysed(right: np.ndarray, found: dict[str, np.ndarray], spec: DeltaPSpec) -> pl.DataFrame:
    """Put a world into a store of its own and analyse it."""
    ids = [f"{number:024x}" for number in range(len(right))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        run = writer.open_run(path, {}, model="made", layers=[(1, "block")], width=WIDTH, final_layer=1)
        rows = pl.DataFrame({"row": range(len(ids)), "sample_id": ids, "correct": right})
        writer.put_rows(run, rows, data="made", source="made", labels=[Label("correct", "boolean")])
        for condition, x in found.items():
            shard = writer.Shard(run, {f"hidden:resid:{POOLING}": [1]}, condition=condition, provenance={})
            zero, none = [0] * len(ids), [[] for _ in ids]
            counts = {"n_tokens": zero, "n_special": zero, "n_truncated": zero, "spans": none, "absent": none}
            shard.add("samples", {"sample_id": ids, "prompt": ids, **counts})
            place = {"site": ["resid"] * len(ids), "layer": [1] * len(ids), "pooling": [POOLING] * len(ids)}
            shard.add("hidden", {"sample_id": ids, **place, "vector": x.astype(np.float32)})
            shard.publish()
        frame = pl.from_arrow(analyze(reader.open(path), spec, Progress()).results)
    assert isinstance(frame, pl.DataFrame)
    return frame


def numbers(frame: pl.DataFrame) -> dict[str, float]:
    """Return the numbers of a line."""

    def one(metric: str, end: str = "value", **where: Any) -> float:
        found = frame.filter(metric=metric, **where)
        assert len(found) == 1
        return float(found[end][0])

    groups = ("question_anchored", "answer_anchored", "noise_question_anchored", "noise_answer_anchored")
    found = {name: one("delta_p", condition=KNOCKOUT, group=name) for name in groups}
    ends = {"minus_control": "value", "low": "low", "high": "high"}
    found |= {name: one("delta_p_minus_control", end) for name, end in ends.items()}
    return {"accuracy": one("accuracy"), "flip_rate": one("flip_rate", condition=KNOCKOUT, group="all"), **found}


def main() -> None:
    options = _options.parser(__doc__, "fewer rows and worlds").parse_args()
    n, worlds = (600, 20) if options.quick else (2000, 100)
    spec = DeltaPSpec(repeats=0)
    found = {name: numbers(analysed(*states(n, name == "planted", 0), spec)) for name in ("noise", "planted")}
    heads = ("probe", "flips", "flipped", "unflipped", "floor", "floor", "minus control [95 % interval]")
    print(f"{'world':8}" + "".join(f"{head:>11}" for head in heads[:-1]) + f"  {heads[-1]}")
    for name, one in found.items():
        shares = "".join(f"{one[key]:11.3f}" for key in ("accuracy", "flip_rate"))
        groups = ("question_anchored", "answer_anchored", "noise_question_anchored", "noise_answer_anchored")
        values = "".join(f"{one[key]:11.1f}" for key in groups)
        print(f"{name:8}{shares}{values}  {one['minus_control']:.1f} [{one['low']:.1f}, {one['high']:.1f}]")
    small = DeltaPSpec(repeats=0, noise=0, bootstrap=400)
    others = (numbers_of_difference(analysed(*states(600, False, 1 + seed), small)) for seed in range(worlds))
    held = sum(low <= 0 <= high for low, high in others) / worlds
    print(f"the interval of the difference holds 0 in {held:.0%} of {worlds} worlds of noise")
    if options.json:
        figures = {f"{name}_{key}": round(value, 3) for name, one in found.items() for key, value in one.items()}
        print(json.dumps({"interval_holds_0": held, **figures}))


def numbers_of_difference(frame: pl.DataFrame) -> tuple[float, float]:
    """Return the interval of the difference from the control."""
    found = frame.filter(metric="delta_p_minus_control")
    return float(found["low"][0]), float(found["high"][0])


if __name__ == "__main__":
    main()
