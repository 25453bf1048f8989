"""What the page holds of a row by layer: predictions of probes, and the probability of a right answer by condition."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from layercache.report import frames
from layercache.report.browser import encode
from layercache.report.browser.encode import Tables
from layercache.report.browser.listing import LABEL_TEXT, DataSet
from layercache.report.text import plain
from layercache.store.layout import CLEAN
from layercache.store.reader import Store

_PLACE = ["analysis", "label", "site", "pooling", "position", "group"]


class Curves(NamedTuple):
    """A quantity of every row by layer.

    Attributes:
        about: what the page says once of it: kind, label, place and layers.
        values: [rows, lines, layers], NaN where there is none; the lines are conditions, or value and truth of it.
        names: of classes the class predicted, [rows, layers]; None for numbers.
    """

    about: dict[str, Any]
    values: encode.Floats
    names: Any = None


def predictions(store: Store, numbers: pl.DataFrame, data: DataSet, run: int) -> list[Curves]:
    """Return the held-out predictions of every probe, and the answers that the lens prefers, by layer.

    Lines of a class are its probability and whether it is right; of a number there is one line, the prediction.
    """
    own = numbers.filter(
        pl.col("analysis").is_in(["probe", "choices"]),
        pl.col("layer").is_not_null(),
        pl.col("label").is_not_null(),
        pl.col("group").is_null() | (pl.col("analysis") == "choices"),
        run=data.runs[run].id,
        data=data.name,
    )
    found = []
    for key in (
        own.select(_PLACE).unique(maintain_order=True).sort("analysis", "label", descending=[True, False]).rows()
    ):
        where = {"run": data.runs[run].id, "data": data.name, **dict(zip(_PLACE, key, strict=True))}
        scored, _ = frames.sample_scores(store, where)
        scored = scored.drop_nulls("layer")
        if len(scored):
            found.append(_predicted(data, key, scored))
    return found


def _predicted(data: DataSet, key: tuple[Any, ...], scored: pl.DataFrame) -> Curves:
    analysis, label, site, pooling, position, group = key
    where = [None if site == "resid" else site, pooling, position, None if analysis == "probe" else group]
    layers = sorted(set(scored["layer"].to_list()))
    about = {
        "analysis": analysis,
        "label": plain(label),
        "place": plain(" ".join(part for part in where if part)),
        "layers": layers,
    }
    if "prediction" in scored["metric"].unique().to_list():
        return Curves({**about, "kind": "number"}, _matrix(data, scored, ["prediction"], layers))
    said = scored.filter(metric="predicted")
    names = np.full((len(data.rows), len(layers)), None, dtype=object)
    down, across, inside = _places(data, said, layers)
    names[down, across] = said.filter(inside)["text"].to_list()
    return Curves({**about, "kind": "class"}, _matrix(data, scored, ["predicted", "correct"], layers), names)


def pathways(store: Store, numbers: pl.DataFrame, data: DataSet, run: int) -> list[Curves]:
    """Return the probability of a right answer by condition and layer, a line a condition, the clean pass first."""
    found = []
    for label, site, pooling in delta_p_places(numbers, data, run):
        place = {"run": data.runs[run].id, "data": data.name, "label": label, "site": site, "pooling": pooling}
        scored, _ = frames.sample_scores(store, {**place, "analysis": "delta_p", "metric": "p_correct"})
        conditions = sorted(set(scored["condition"].to_list()), key=lambda name: (name != CLEAN, name))
        layers = sorted(set(scored["layer"].to_list()))
        about = {
            "label": plain(label),
            "place": plain(pooling if site == "resid" else f"{site} {pooling}"),
            "layers": layers,
            "conditions": list(map(plain, conditions)),
        }
        if conditions:
            # The lines of `_matrix` are metrics; here conditions take their place.
            found.append(Curves(about, _matrix(data, scored.with_columns(metric="condition"), conditions, layers)))
    return found


def delta_p_places(numbers: pl.DataFrame, data: DataSet, run: int) -> list[tuple[str, str, str]]:
    """List where ΔP of a run was measured: label, site, pooling."""
    own = numbers.filter(analysis="delta_p", run=data.runs[run].id, data=data.name)
    return own.select("label", "site", "pooling").drop_nulls().unique().sort(pl.all()).rows()


def row_json(curves: Curves, place: int, tables: Tables) -> list[Any] | None:
    """Return one row of a quantity as the page holds it; None where the row has none of it.

    Of a class [classes (places in the table of texts), probabilities, right]; of a number [predictions]; of pathways
    a list of probabilities a condition.
    """
    values = curves.values[place]
    if not np.isfinite(values).any():
        return None
    if curves.names is not None:
        said = [tables.text(name, LABEL_TEXT) for name in curves.names[place]]
        return [said, encode.probabilities(values[0]), encode.integers(values[1])]
    if curves.about.get("kind") == "number":
        return [encode.significant(values[0])]
    return encode.probabilities(values)


def _matrix(data: DataSet, scored: pl.DataFrame, lines: Sequence[str], layers: list[int]) -> encode.Floats:
    found = np.full((len(data.rows), len(lines), len(layers)), np.nan)
    for number, line in enumerate(lines):
        own = scored.filter(metric=line)
        down, across, inside = _places(data, own, layers)
        found[down, number, across] = own.filter(inside)["value"].fill_null(float("nan")).to_numpy()
    return found


def _places(data: DataSet, scored: pl.DataFrame, layers: list[int]) -> tuple[Any, Any, pl.Series]:
    """Return the place of each score among rows and layers, and which scores are of rows that are there."""
    rows, wanted = data.rows["row"].to_numpy(), scored["row"].to_numpy()
    down = np.searchsorted(rows, wanted)
    inside = rows[np.minimum(down, len(rows) - 1)] == wanted
    across = np.searchsorted(np.array(layers), scored["layer"].to_numpy())
    return down[inside], across[inside], pl.Series(inside, dtype=pl.Boolean)
