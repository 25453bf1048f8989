"""The parts of the page about the store itself: what it holds, how to ask it, how to make it again."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from layercache import listing, queries, resources
from layercache.quantities import in_words
from layercache.report import page
from layercache.report.frames import model_names
from layercache.report.page import Section
from layercache.store import recipes
from layercache.store.layout import CLEAN, Run, ShardInfo
from layercache.store.reader import Store

_LIBRARIES = ("layercache", "torch", "transformers", "tokenizers", "python")
# No `$`, backslash or double quote: they stand between double quotes of a shell.
_QUESTIONS = (
    (
        "The ten best probes by balanced accuracy",
        "SELECT run, label, layer, value, low, high FROM results WHERE metric = 'balanced_accuracy' AND layer IS NOT NULL"
        " ORDER BY value DESC LIMIT 10",
    ),
    (
        "Samples whose last layer is least sure",
        "SELECT run, sample_id, max(entropy) AS nats FROM lens GROUP BY ALL ORDER BY nats DESC LIMIT 10",
    ),
)


_COST_NOTE = (
    "A forward pass is one sample under one condition; tokens are those of these samples, special ones included, without padding."
    " Generating text, answers among it, costs more passes, which are not counted."
)


_NO_LENS = "No logit lens is stored: the model has no next-token head (an encoder), or the lens was not asked for (`--lens last`)."


def overview(store: Store) -> Section:
    """Return what the store holds: runs, data sets, sizes, machines and versions."""
    names = model_names(store)
    runs = sorted(store.runs(), key=lambda run: names[run.id])
    shards = {run.id: [one for name in store.conditions(run) for one in store.shards(run, name)] for run in runs}
    samples = {run.id: _samples(store, run) for run in runs}
    total = sum(_bytes(own) for own in shards.values())
    spent = [_cost(store, run) for run in runs]
    lines = [_run_line(store, run, names[run.id], shards[run.id], samples[run.id]) for run in runs]
    parts: list[page.Part] = [
        page.definitions(
            [
                ("runs", f"{len(runs):,}"),
                ("models", f"{len({run.model for run in runs}):,}"),
                ("data sets", f"{len({info.name for run in runs for info in store.data(run)}):,}"),
                ("samples", f"{sum(map(len, samples.values())):,}"),
                ("forward passes", f"{sum(one['forward passes'] for one in spent):,}"),
                ("tokens read", f"{sum(one['tokens read'] for one in spent):,}"),
                ("captured", in_words(total)),
            ]
        ),
        page.table(pl.DataFrame(lines, infer_schema_length=None), sortable=False),
    ]
    data = [line for run in runs for line in _data_lines(store, run)]
    if data:
        frame = pl.DataFrame(data, infer_schema_length=None).unique(maintain_order=True)
        parts.append(page.table(frame, sortable=False))
    costs = [{"run": run.id, **own, "size": in_words(_bytes(shards[run.id]))} for run, own in zip(runs, spent)]
    parts.append(
        page.folded(
            "what it cost", page.paragraph(_COST_NOTE, "faint"), page.table(pl.DataFrame(costs), sortable=False)
        )
    )
    templates = [{"run": run.id, "template": str(run.spec.get("template") or "–")} for run in runs]
    parts.append(page.folded("templates", page.table(pl.DataFrame(templates), sortable=False)))
    parts.append(page.folded("devices and versions", page.table(_versions(runs, shards), sortable=False)))
    return Section("overview", "What was run", parts)


def questions(store: Store, not_analysed: Sequence[tuple[str, str]]) -> Section:
    """Return commands that ask the store more.

    Args:
        store: the store.
        not_analysed: what no analysis has looked at yet, and the command that does.
    """
    where = place(store.path)
    lines = [(query.title, f"layercache sql --query {query.name} --store {where}") for query in queries.list_queries()]
    lines += [(title, f'layercache sql "{query}" --store {where}') for title, query in _QUESTIONS]
    said = "No model is needed for these; `layercache sql --list` says more of every named query and its parameters."
    parts: list[page.Part] = [page.paragraph(said), page.commands(lines)]
    if not_analysed:
        parts += [page.heading("Not analysed yet"), page.commands(not_analysed)]
    if not any(store.lens_outputs(run) for run in store.runs()):
        parts.append(page.paragraph(_NO_LENS, "faint"))
    return Section("ask", "Ask it yourself", parts)


def reproduction(store: Store, out: Path) -> Section:
    """Return the commands that make this page again, and the recipes kept in the store."""
    where = place(store.path)
    kept = recipes.load_all(store.path)
    versions = [one.provenance.get("layercache") for run in store.runs() for one in store.shards(run)]
    version = next((value for value in versions if isinstance(value, str)), None)
    lines = [f"pip install 'layercache[extract]=={version}'"] if version and re.fullmatch(r"[\w.+-]+", version) else []
    lines += [f"layercache run {shlex.quote(_recipe_name(recipe))} --store {where}" for recipe in kept]
    lines += [f"layercache analyze --store {where}", f"layercache report --store {where} -o {shlex.quote(out.name)}"]
    parts: list[page.Part] = [page.code("\n".join(lines))]
    if not kept:
        parts.insert(0, page.paragraph("No recipe is kept in the store; what was extracted is under “What was run”."))
    parts += [page.folded(f"recipe {recipe['name']}, as it was read", page.code(_pretty(recipe))) for recipe in kept]
    return Section("reproduce", "Make it again", parts)


def _samples(store: Store, run: Run) -> pl.DataFrame:
    """Return the clean samples of a run; of prompts that were answered, those with the answer."""
    prompts = listing.answered_prompts(store, run) or set()
    return store.samples(run).filter(~pl.col("sample_id").is_in(list(prompts)))


def _run_line(store: Store, run: Run, name: str, shards: list[ShardInfo], samples: pl.DataFrame) -> dict[str, Any]:
    spec = run.spec
    return {
        "model": name,
        "run": run.id,
        "layers": f"0–{run.layers[-1].layer}",
        "width": run.width,
        "dtype": str(spec.get("dtype") or "–"),
        "samples": len(samples),
        "tokens": int(samples["n_tokens"].sum()),
        "truncated": int((samples["n_truncated"] > 0).sum()),
        "states": _joined(
            f"{one.pooling}" if one.site == "resid" else f"{one.site} {one.pooling}" for one in store.features(run)
        ),
        "lens": _joined(one.position_name for one in store.lens_outputs(run)),
        "size": in_words(_bytes(shards)),
    }


def _cost(store: Store, run: Run) -> dict[str, Any]:
    """Return what a run's shards hold: conditions, forward passes, tokens that the model read, when they were made."""
    shards = {name: store.shards(run, name) for name in store.conditions(run)}
    made = sorted(_when(one) for own in shards.values() for one in own if "created" in one.provenance)
    tokens = {name: int(store.samples(run, name)["n_tokens"].sum()) for name in shards}
    return {
        "conditions": len(shards),
        "shards": sum(map(len, shards.values())),
        "forward passes": sum(listing.forward_passes(store, run).values()),
        "tokens read": sum((tokens | {CLEAN: int(_samples(store, run)["n_tokens"].sum())}).values()),
        "first shard": made[0] if made else "–",
        "last shard": made[-1] if made else "–",
    }


def _when(shard: ShardInfo) -> str:
    """Return when a shard was made, to the minute."""
    return str(shard.provenance.get("created") or "–")[:16].replace("T", " ")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "–"


def _data_lines(store: Store, run: Run) -> list[dict[str, Any]]:
    lines = []
    for info in store.data(run):
        rows = store.rows(run, info.name)
        lines.append(
            {
                "data": info.name,
                "rows": len(rows),
                "without a sample": rows["sample_id"].null_count(),
                "labels": ", ".join(map(str, info.labels)) or "–",
                "split": info.split or "–",
                "folds grouped by": info.group_by or "prompt",
                "target": info.target or "–",
                "references": ", ".join(info.reference) or "–",
                # The folder of somebody's machine is nobody's business.
                "source": Path(info.source).name,
            }
        )
    return lines


def _versions(runs: list[Run], shards: dict[str, list[ShardInfo]]) -> pl.DataFrame:
    """Return what made each run; a shard that says of samples why they were left out was made by no device."""
    lines = [
        {
            "run": run.id,
            "when": _when(one),
            "device": str(one.provenance.get("device") or "–"),
            **{library: str(one.provenance.get(library) or "–") for library in _LIBRARIES},
        }
        for run in runs
        for one in [own for own in shards[run.id] if "device" in own.provenance] or shards[run.id][:1]
    ]
    frame = pl.DataFrame(lines, schema=dict.fromkeys(["run", "when", "device", *_LIBRARIES], pl.String))
    return frame.unique(["run", "device", *_LIBRARIES], keep="first", maintain_order=True)


def _bytes(shards: list[ShardInfo]) -> int:
    return sum(file.bytes for shard in shards for file in shard.files.values())


def _recipe_name(recipe: dict[str, Any]) -> str:
    name = str(recipe["name"])
    return name if resources.find("pipelines", name) else f"{name}.toml"


def _pretty(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe, indent=2, ensure_ascii=False)


def place(path: Path) -> str:
    """Return the store as a command would name it: relative where that can be, else by its last part alone."""
    if path.is_absolute():
        here = Path.cwd()
        path = path.relative_to(here) if path.is_relative_to(here) and path != here else Path(path.name)
    return shlex.quote(str(path))
