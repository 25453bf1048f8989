"""What analyses say of every single row: columns of the browser's list, each with the order of its extremes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from layercache.report import frames, samples, texts
from layercache.report.browser import encode
from layercache.report.browser.by_layer import delta_p_places
from layercache.report.browser.listing import DataSet, classes
from layercache.report.measures import measure
from layercache.report.text import plain
from layercache.store.reader import Store

_PREDICTED = ("prediction", "error", "predicted", "correct")


class Score(NamedTuple):
    """A number (or class) of every row.

    Attributes:
        run: its place among the data set's runs.
        kind: `class` (what a probe takes the row for), `number` (what it predicts), `choice` (the answer that the lens
            prefers), `loss` (ΔP), `entropy` or `text`.
        name: what is scored: a label, a condition, a metric.
        place: where it was read.
        columns: what the page holds, aligned with the rows.
        order: places of rows, the most extreme first; rows without a value are not in it.
        extreme: how the first of the order are called.
        n_extreme: how many are called so: of classes the wrong ones, of ΔP those that lose.
    """

    run: int
    kind: str
    name: str
    place: str
    columns: dict[str, list[Any]]
    order: list[int]
    extreme: str
    n_extreme: int

    @property
    def extremes(self) -> list[int]:
        """The places of the order's first rows, as far as they are extreme."""
        return self.order[: self.n_extreme]

    def take(self, kept: dict[int, int]) -> "Score":
        """Return the score of some rows only, old place → new place."""
        places = sorted(kept, key=kept.__getitem__)
        columns = {
            name: values if name == "classes" else [values[place] for place in places]
            for name, values in self.columns.items()
        }
        order, extreme = ([kept[place] for place in own if place in kept] for own in (self.order, self.extremes))
        return self._replace(columns=columns, order=order, n_extreme=len(extreme))

    def json(self) -> dict[str, Any]:
        """Return it as the page holds it."""
        said = {"kind": self.kind, "name": plain(self.name), "place": self.place, "extreme": self.extreme}
        return {**said, **self.columns, "order": self.order}


def of_rows(store: Store, numbers: pl.DataFrame, data: DataSet) -> list[Score]:
    """Return every score of a data set's rows, by run."""
    found = [*_probes(store, numbers, data), *_choices(store, numbers, data), *_losses(store, numbers, data)]
    found += [*_entropies(store, data), *_texts(store, numbers, data)]
    return sorted(found, key=lambda score: score.run)


def _probes(store: Store, numbers: pl.DataFrame, data: DataSet) -> Iterator[Score]:
    """Yield the held-out predictions of each label at each run's best layer."""
    for task in frames.tasks(numbers):
        if task.data != data.name:
            continue
        for at in task.best().iter_rows(named=True):
            run = _number(data, at["run"])
            where = {name: at[name] for name in ("run", "site", "layer", "pooling", "group")}
            where |= {"data": data.name, "label": task.label, "analysis": "probe"}
            scored, _ = frames.sample_scores(store, where)
            if run is not None and len(scored):
                yield _predicted(data, run, task.label, f"layer {at['layer']}, {at['panel']}", scored, "class")


def _choices(store: Store, numbers: pl.DataFrame, data: DataSet) -> Iterator[Score]:
    """Yield the answers that the lens prefers at the last layer."""
    own = numbers.filter(analysis="choices", data=data.name, condition="clean").drop_nulls(["layer", "label"])
    for (run, label, group), part in own.group_by("run", "label", "group", maintain_order=True):
        number, layer = _number(data, str(run)), max(part["layer"].to_list())
        where = {"run": run, "data": data.name, "analysis": "choices", "label": label, "group": group, "layer": layer}
        scored, _ = frames.sample_scores(store, where)
        if number is not None and len(scored):
            place = f"layer {layer}, answers as {plain(str(group))}"
            yield _predicted(data, number, str(label), place, scored, "choice")


def _predicted(data: DataSet, run: int, label: str, place: str, scored: pl.DataFrame, kind: str) -> Score:
    """Return predictions: a class, its probability and whether it is right; or a number and its error."""
    values = {name: aligned(data, scored.filter(metric=name), "value") for name in _PREDICTED}
    if np.isfinite(values["prediction"]).any():
        columns = {"value": encode.significant(values["prediction"]), "error": encode.significant(values["error"])}
        order = descending(np.abs(values["error"]))
        return Score(run, "number", label, place, columns, order, f"{plain(label)}: most wrong", len(order))
    said = scored.filter(metric="predicted").select("row", "text")
    names = data.rows.select("row").join(said, on="row", how="left", maintain_order="left")["text"].to_list()
    p, right = values["predicted"], values["correct"]
    columns = {**classes(names), "p": encode.probabilities(p), "right": encode.integers(right)}
    who = "answer" if kind == "choice" else plain(label)
    order = descending(np.where(right == 1, -p, p + 0 * right))
    return Score(run, kind, label, place, columns, order, f"{who}: surest and wrong", int((right == 0).sum()))


def _losses(store: Store, numbers: pl.DataFrame, data: DataSet) -> Iterator[Score]:
    """Yield ΔP of each change at the layer whose flips made the groups."""
    for number, run in enumerate(data.runs):
        for label, site, pooling in delta_p_places(numbers, data, number):
            place = {"run": run.id, "data": data.name, "label": label, "site": site, "pooling": pooling}
            anchored, _ = frames.sample_scores(store, {**place, "analysis": "delta_p", "metric": "anchored"})
            for (condition, layer), flips in anchored.group_by("condition", "layer", maintain_order=True):
                at = {**place, "analysis": "delta_p", "metric": "delta_p", "condition": condition, "layer": layer}
                lost = aligned(data, frames.sample_scores(store, at)[0], "value")
                columns = {"value": encode.hundredths(lost), "flip": encode.integers(aligned(data, flips, "value"))}
                where = f"layer {layer}, {plain(pooling)}, {plain(label)}"
                extreme = f"{plain(str(condition))}: most lost"
                order, lose = descending(-lost), int((lost < 0).sum())
                yield Score(number, "loss", str(condition), where, columns, order, extreme, lose)


def _entropies(store: Store, data: DataSet) -> Iterator[Score]:
    """Yield the entropy of the lens at its last layer."""
    for number, run in enumerate(data.runs):
        lens = samples.preferred(store, run)
        if lens is not None:
            sure = samples.query(store, "report_final_entropy", run=run.id, output=lens.output, layer=lens.layers[-1])
            rows = data.rows.select("row", sample_id=f"sample_{number}").join(sure, on="sample_id")
            values = aligned(data, rows, "entropy")
            place = f"layer {lens.layers[-1]}, {plain(lens.position_name)}"
            columns = {"value": encode.hundredths(values)}
            order, extreme = descending(values), "lens: least sure at the end"
            yield Score(number, "entropy", "entropy", place, columns, order, extreme, len(order))


def _texts(store: Store, numbers: pl.DataFrame, data: DataSet) -> Iterator[Score]:
    """Yield the score of the last layer's text, by the metric that the text's findings quote."""
    for task in texts.tasks(numbers):
        for run_id in task.scores["run"].unique(maintain_order=True) if task.data == data.name else ():
            number, layer = _number(data, run_id), max(task.scores.filter(run=run_id)["layer"].to_list())
            where = {"run": run_id, "data": data.name, "analysis": "text", "label": task.label, "group": task.output}
            scored, _ = frames.sample_scores(store, {**where, "metric": task.metric, "layer": layer})
            if number is not None and len(scored):
                values, shown = aligned(data, scored, "value"), measure(task.metric)
                columns = {"value": encode.significant(values)}
                bad = -values if shown.rising else values
                # Where all are as good as the best, none is the worst.
                worse = int((bad > np.nanmin(bad)).sum()) if np.isfinite(bad).any() else 0
                place, extreme = f"layer {layer}", f"text: worst by {shown.name}"
                yield Score(number, "text", shown.name, place, columns, descending(bad), extreme, worse)


def aligned(data: DataSet, scored: pl.DataFrame, column: str) -> encode.Floats:
    """Return a value for each row of a data set, float64 [rows], NaN where there is none."""
    own = scored.select("row", pl.col(column).cast(pl.Float64).alias("value")).unique("row", keep="first")
    values = data.rows.select("row").join(own, on="row", how="left", maintain_order="left")["value"]
    return values.fill_null(float("nan")).to_numpy()


def descending(values: encode.Floats) -> list[int]:
    """Return the places of values [n] from the largest on; of equal ones the first; those that are not finite left out."""
    order = np.argsort(-values, kind="stable")
    return [int(place) for place in order if np.isfinite(values[place])]


def _number(data: DataSet, run: str) -> int | None:
    return next((number for number, one in enumerate(data.runs) if one.id == run), None)
