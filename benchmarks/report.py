"""How large a report is, and how long it takes to build and to open: 1,000 samples of a model with 32 layers.

    python benchmarks/report.py            1,000 samples × 32 layers, two models
    python benchmarks/report.py --quick    the same in a fifth of the samples

The store is made up: lens rows of every sample and layer, and numbers as probe, probe_depth, entropy, text and quality leave
them. `opened` is the time from the browser's start of the page to its first chart, median of three, in Chromium without a
window; it is left out where Playwright or Chromium are missing.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import _options
import numpy as np
import polars as pl
import pyarrow as pa

from layercache import report
from layercache.recipe import Label, ReportSpec
from layercache.store import reader, results
from layercache.store.schema import RESULTS, SAMPLE_SCORES, arrow_schema
from layercache.store.writer import Shard, open_run, put_rows

LAYERS, TOP, DATA = 32, 10, "cards"
POSITION = "last@prompt"
OUTPUT = f"lens:{POSITION}:top{TOP}"
POOLINGS = ("mean@prompt", "last@prompt")
MODELS = ("made-up-8b", "made-up-8b-base")
PROBED = ("balanced_accuracy", "accuracy", "macro_f1", "auc")
STATES = (
    "dataset_entropy_normalized",
    "dataset_effective_rank",
    "intrinsic_dimension",
    "dataset_mean_cosine",
    "infonce",
)
TEXT = ("token_f1", "rouge_l", "bleu", "chrf", "exact_match")


def main() -> None:
    parser = _options.parser(__doc__, "a fifth of the samples")
    asked = parser.parse_args()
    samples = 200 if asked.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(Path(folder) / "store", samples)
        numbers = store.sql("SELECT count(*) FROM results").column(0)[0].as_py()
        start = time.perf_counter()
        page = report.build(store, Path(folder) / "report.html", ReportSpec(), "benchmark")
        figures = {
            "samples": samples,
            "layers": LAYERS,
            "models": len(MODELS),
            "numbers": numbers,
            "build_seconds": round(time.perf_counter() - start, 2),
            "megabytes": round(page.stat().st_size / 1e6, 2),
        }
        if (opened := open_times(page)) is not None:
            figures["opened_seconds"] = round(statistics.median(opened), 2)
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):16}{value:>12,}")
    if "opened_seconds" not in figures:
        print("opened: Playwright or Chromium is not installed")
    if asked.json:
        print(json.dumps(figures))


def made_up(path: Path, samples: int) -> reader.Store:
    """Write a store of made-up lens rows and numbers."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    runs = [_run(path, model, samples, generator) for model in MODELS]
    for run in runs:
        rows += _numbers(run, samples, generator)
        for number in range(samples):
            score = {"run": run, "data": DATA, "analysis": "probe", "condition": "clean", "row": number, "group": None}
            score |= {"sample_id": f"{number:024x}", "site": "resid", "pooling": POOLINGS[1], "layer": LAYERS // 2}
            scores.append({**score, "label": "topic", "metric": "predicted", "text": f"topic {number % 8}"})
    for kind in sorted({row["analysis"] for row in rows}):
        own = pa.Table.from_pylist([row for row in rows if row["analysis"] == kind], schema=arrow_schema(RESULTS))
        kept = scores if kind == "probe" else []
        tables = results.Outcome(own, pa.Table.from_pylist(kept, schema=arrow_schema(SAMPLE_SCORES)))
        spec = {"kind": kind, **({"reference": None} if kind == "text" else {})}
        assert results.save(path, kind, spec, ["made up"], tables) is not None
    return reader.open(path)


def _run(path: Path, model: str, samples: int, generator: np.random.Generator) -> str:
    layers = [(layer, f"model.layers.{layer - 1}" if layer else "embeddings") for layer in range(LAYERS + 1)]
    run = open_run(path, {"weights": model}, model=model, layers=layers, width=4096, final_layer=LAYERS)
    ids = [f"{number:024x}" for number in range(samples)]
    shard = Shard(run, {OUTPUT: list(range(LAYERS + 1))}, provenance={"created": "2026-01-01T00:00:00"})
    prompts = [f"Card {number}: " + "a made-up sentence about nothing in particular. " * 4 for number in range(samples)]
    columns = {"sample_id": ids, "prompt": prompts, "n_tokens": [40] * samples, "n_special": [1] * samples}
    spans = [[{"name": "prompt", "start": 1, "end": 40}]] * samples
    shard.add("samples", {**columns, "n_truncated": [0] * samples, "spans": spans, "absent": [[]] * samples})
    for layer in range(LAYERS + 1):
        tops = generator.integers(0, 32000, (samples, TOP))
        logprobs = -np.sort(generator.exponential(2, (samples, TOP)), axis=1)
        lens = {"sample_id": ids, "output": [OUTPUT] * samples, "layer": [layer] * samples, "position": [39] * samples}
        lens |= {"position_name": [POSITION] * samples, "entropy": generator.uniform(0, 10, samples).tolist()}
        lens |= {"logsumexp": [10.0] * samples, "top_ids": tops.tolist(), "top_logprobs": logprobs.tolist()}
        lens |= {"top_tokens": [[f" t{one}" for one in row] for row in tops], "kl_to_final": [1.0] * samples}
        lens |= {"js_to_final": [0.1] * samples, "agrees_with_final": [layer == LAYERS] * samples}
        shard.add("lens", lens)
    shard.publish()
    cells = {
        "row": list(range(samples)),
        "sample_id": ids,
        "topic": [f"topic {number % 8}" for number in range(samples)],
    }
    put_rows(run, pl.DataFrame(cells), data=DATA, source="made up", labels=[Label("topic", "category")])
    return run.id


def _numbers(run: str, samples: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Return a run's rows of `results`."""
    found: list[dict[str, Any]] = []

    def say(analysis: str, metric: str, **place: Any) -> None:
        value = float(generator.uniform(0.2, 0.9))
        ends = {"low": value - 0.05, "high": value + 0.05, "n": samples}
        place = {"condition": "clean", **place}
        found.append(
            {"run": run, "data": DATA, "analysis": analysis, "metric": metric, "value": value, **ends, **place}
        )

    for layer in range(LAYERS + 1):
        for pooling in POOLINGS:
            at = {"layer": layer, "pooling": pooling, "site": "resid"}
            for metric in PROBED:
                say("probe", metric, label="topic", **at)
            say("probe_depth", "selectivity", label="topic", group="shuffled", **at)
            for metric in STATES:
                say("quality", metric, **at)
            for other in range(layer):
                say("quality", "cka", other_layer=other, **at)
        for other in range(LAYERS + 1):
            at = {"layer": layer, "other_layer": other, "pooling": POOLINGS[1], "site": "resid"}
            say("probe_depth", "balanced_accuracy", label="topic", group="transfer", **at)
        for metric in ("entropy", "kl_to_final", "agrees_with_final", *(f"entropy_q{q}" for q in (10, 25, 50, 75, 90))):
            say("entropy", metric, layer=layer, position=POSITION)
        for metric in TEXT:
            say("text", metric, layer=layer, label="topic", group="generation:0123abcd")
    return found


def open_times(page: Path) -> list[float] | None:
    """Return the seconds from the start of the page to its first drawn chart; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    found = []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            tab.goto(page.as_uri())
            tab.locator(".chart.drawn").first.wait_for(state="attached")
            found.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
