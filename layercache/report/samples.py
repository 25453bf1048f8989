"""A few samples as figures: which, their most probable tokens at several layers, and the lens at every token."""

from typing import NamedTuple

import polars as pl

from layercache import queries
from layercache.frame import from_arrow
from layercache.outputs import one_row_a_token
from layercache.report.frames import model_names
from layercache.report.text import token
from layercache.store.layout import CLEAN, Run
from layercache.store.reader import Store
from layercache.store.stored import StoredLens

STOPS, FEW, N_TOKENS = 5, 4, 10
"""Layers, samples and tokens of each layer that a figure shows."""
MAX_TOKENS = 24
"""Tokens of a prompt that a grid shows, the last ones."""


class Sample(NamedTuple):
    """A row that is shown.

    Attributes:
        prompt: as the first run saw it.
        position: where `tokens` are read; empty without a lens of one token a sample.
        tokens: as `sample_charts.bars` takes them.
        grid: as `sample_charts.heat` takes it, of the runs that hold the lens at every token.
    """

    data: str
    row: int
    prompt: str
    position: str
    tokens: pl.DataFrame
    grid: pl.DataFrame


def choose(store: Store, how_many: int = FEW, n_tokens: int = N_TOKENS) -> list[Sample]:
    """Choose rows by how sure the first run is in the end, evenly from the surest to the least sure.

    Nobody picks them, and the choice is the same every time. Several data sets share the number.
    """
    names = model_names(store)
    sets: dict[str, list[Run]] = {}
    for run in sorted(store.runs(), key=lambda run: names[run.id]):
        for info in store.data(run) if store.lens_outputs(run) else []:
            sets.setdefault(info.name, []).append(run)
    shares = [how_many // len(sets) + (number < how_many % len(sets)) for number in range(len(sets))]
    found = []
    for (data, runs), share in zip(sorted(sets.items()), shares):
        found += _of_data(store, data, runs, share, n_tokens)
    return found


def _of_data(store: Store, data: str, runs: list[Run], how_many: int, n_tokens: int) -> list[Sample]:
    first = runs[0]
    lens = preferred(store, first)
    rows = store.rows(first, data).select("row", "sample_id").drop_nulls()
    if lens is None:
        ordered = rows.join(store.samples(first).select("sample_id", "prompt"), on="sample_id").sort("row")
    else:
        sure = query(store, "report_final_entropy", run=first.id, output=lens.output, layer=lens.layers[-1])
        ordered = rows.join(sure, on="sample_id").sort("entropy", "row")
    ordered = ordered.unique("sample_id", keep="first", maintain_order=True)
    last = len(ordered) - 1
    picked = sorted({round(last * n / max(how_many - 1, 1)) for n in range(how_many)} if last >= 0 else set())
    found = []
    for number in picked:
        row, prompt = ordered.select("row", "prompt").row(number)
        tokens = pl.concat([_tokens(store, run, data, row, n_tokens) for run in runs])
        cells = pl.concat([_grid(store, run, data, row) for run in runs])
        found.append(Sample(data, row, prompt, lens.position_name if lens else "", tokens, cells))
    return found


def lenses(store: Store, run: Run) -> list[StoredLens]:
    """List a run's lenses of one token a sample."""
    return [lens for lens in store.lens_outputs(run) if not one_row_a_token(lens.position_name)]


def grids(store: Store, run: Run) -> list[StoredLens]:
    """List a run's lenses of every token."""
    return [lens for lens in store.lens_outputs(run) if one_row_a_token(lens.position_name)]


def preferred(store: Store, run: Run) -> StoredLens | None:
    """Return the lens to show: that of the prompt's last position, the widest, where there is one."""
    return max(lenses(store, run), key=preference, default=None)


def preference(lens: StoredLens) -> tuple[bool, int, bool, str]:
    """Order lenses; where one position is held with and without the scores of answers, without them."""
    return lens.position_name == "last@prompt", len(lens.layers), ":choices-" not in lens.output, lens.output


def _tokens(store: Store, run: Run, data: str, row: int, n_tokens: int) -> pl.DataFrame:
    """Return model, layer, entropy, rank, token, probability and role of one row's sample in one run."""
    lens = preferred(store, run)
    layers = stops(lens.layers) if lens else []
    output = lens.output if lens else ""
    found = query(store, "report_top_tokens", run=run.id, output=output, sample=_sample_id(store, run, data, row))
    found = found.filter(pl.col("layer").is_in(layers), pl.col("rank") < n_tokens).sort("layer", "rank")
    final = found.filter((pl.col("layer") == max(layers, default=0)) & (pl.col("rank") == 0))["token_id"]
    chosen = pl.col("token_id").is_in(final.implode()) if len(final) else pl.lit(False)
    role = pl.when(chosen).then(pl.lit("final")).when("is_target").then(pl.lit("target")).otherwise(pl.lit("other"))
    return found.select(
        pl.lit(model_names(store)[run.id]).alias("model"),
        "layer",
        "entropy",
        "rank",
        pl.Series("token", [token(text) for text in found["token"]], pl.String),
        pl.col("logprob").exp().alias("probability"),
        role.alias("role"),
    )


def _grid(store: Store, run: Run, data: str, row: int) -> pl.DataFrame:
    """Return model, position, token, layer, top_token, probability and entropy of one row's sample in one run."""
    output = max((lens.output for lens in grids(store, run) if lens.position_name == "token@prompt"), default="")
    found = query(store, "report_lens_grid", run=run.id, output=output, sample=_sample_id(store, run, data, row))
    last = found["position"].max()
    shown = found.filter(pl.col("position") > (last or 0) - MAX_TOKENS) if len(found) else found  # type: ignore[operator]
    return shown.with_columns(
        pl.lit(model_names(store)[run.id]).alias("model"),
        *(pl.Series(name, [token(text or "") for text in shown[name]], pl.String) for name in ("token", "top_token")),
    )


def _sample_id(store: Store, run: Run, data: str, row: int) -> str:
    ids = store.rows(run, data).filter(row=row)["sample_id"].drop_nulls()
    return str(ids[0]) if len(ids) else ""


def stops(layers: list[int]) -> list[int]:
    """Return the first layer, the last, and those a quarter, half and three quarters of the way."""
    last = len(layers) - 1
    return [layers[number] for number in sorted({round(last * n / (STOPS - 1)) for n in range(STOPS)})]


def query(store: Store, name: str, **values: object) -> pl.DataFrame:
    """Run a query of the report's own, under the clean condition where it has one."""
    return from_arrow(store.sql(queries.load_query(name).sql, {"condition": CLEAN, **values}))
