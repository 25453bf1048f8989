"""The rows that the sample browser lists: prompts, samples and labels of a data set, over the runs that have it."""

from typing import Any, NamedTuple

import polars as pl

from layercache.report.browser import encode
from layercache.report.frames import model_names
from layercache.report.text import plain
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store

LABEL_TEXT = 120
"""Characters shown of a label."""
_BOUNDARY = " \n\t"


class DataSet(NamedTuple):
    """A data set's rows, in order; everything else about them is aligned with `rows`.

    Attributes:
        runs: those that have it, by name.
        infos: what the rows file of each says.
        rows: row, prompt (as the first run that has the row saw it), and `sample_<n>`, `text_<n>`: ids in the n-th run, of
            the row's sample and of the sample whose generated texts are the row's (NULL where it has none).
        own: of each run its rows file, as it is.
    """

    name: str
    runs: list[Run]
    infos: list[RowsInfo]
    rows: pl.DataFrame
    own: list[pl.DataFrame]

    def samples(self, run: int) -> list[str | None]:
        """Return every row's sample in a run."""
        return self.rows[f"sample_{run}"].to_list()

    def sample_places(self, run: int) -> dict[str, int]:
        """Return the distinct samples in a run, each with its place in the order of the rows."""
        known = (sample for sample in dict.fromkeys(self.samples(run)) if sample is not None)
        return {sample: place for place, sample in enumerate(known)}

    def take(self, places: list[int]) -> "DataSet":
        """Return the data set with these of its rows."""
        return self._replace(rows=self.rows[places])


def read(store: Store) -> list[DataSet]:
    """Return the data sets of a store with the rows that have a sample, by name."""
    names = model_names(store)
    runs = sorted(store.runs(), key=lambda run: names[run.id])
    prompts = {run.id: store.samples(run).select("sample_id", "prompt") for run in runs}
    infos = {run.id: {info.name: info for info in store.data(run)} for run in runs}
    found = []
    for name in sorted({data for held in infos.values() for data in held}):
        having = [run for run in runs if name in infos[run.id]]
        own = [store.rows(run, name) for run in having]
        rows = _united(own, [prompts[run.id] for run in having])
        if len(rows):
            found.append(DataSet(name, having, [infos[run.id][name] for run in having], rows, own))
    return found


def _united(own: list[pl.DataFrame], prompts: list[pl.DataFrame]) -> pl.DataFrame:
    numbers = pl.concat([frame.filter(pl.col("sample_id").is_not_null()).select("row") for frame in own])
    rows = numbers.unique().sort("row")
    for number, (frame, known) in enumerate(zip(own, prompts, strict=True)):
        # What a model wrote for a prompt is kept with the prompt's sample, where the row's is prompt and answer.
        texts = "prompt_sample_id" if "prompt_sample_id" in frame.columns else "sample_id"
        part = frame.select("row", pl.col("sample_id").alias(f"sample_{number}"), pl.col(texts).alias(f"text_{number}"))
        part = part.join(known, left_on=f"sample_{number}", right_on="sample_id", how="left").rename(
            {"prompt": f"prompt_{number}"}
        )
        rows = rows.join(part, on="row", how="left", maintain_order="left")
    spoken = [f"prompt_{number}" for number in range(len(own))]
    return rows.with_columns(prompt=pl.coalesce(spoken).fill_null("")).drop(spoken)


def shared(prompts: list[str]) -> str:
    """Return what all prompts begin with, up to the end of a word: a list shows what follows it."""
    # What the first and the last in alphabetical order share, all share.
    first, last = min(prompts), max(prompts)
    differ = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    common = first[: next(differ, min(len(first), len(last)))] if first != last else ""
    return common[: 1 + max((common.rfind(sign) for sign in _BOUNDARY), default=-1)]


def longest(prompts: list[str], most_bytes: int) -> int:
    """Return how many characters of each prompt fit into so many bytes together."""
    if sum(map(encode.size, prompts)) <= most_bytes:
        return max(map(len, prompts), default=0)
    low, high = 1, max(map(len, prompts))
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(encode.size(encode.cut(prompt, middle)) for prompt in prompts) <= most_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def labels(store: Store, data: DataSet, run: int) -> list[dict[str, Any]]:
    """Return a run's labels as columns: name, kind, and a value a row.

    Categories and booleans have `classes`, and values are places among them; numbers have four digits.
    """
    long = store.labels(data.runs[run], data.name)
    found = []
    for label in data.infos[run].labels:
        own = data.rows.select("row").join(
            long.filter(name=label.name).select("row", "number", "text"), on="row", how="left", maintain_order="left"
        )
        column: dict[str, Any] = {"name": plain(label.name), "kind": label.kind}
        if label.kind == "number":
            column["values"] = encode.significant(own["number"].to_list())
        elif label.kind == "boolean":
            column |= {"classes": ["false", "true"], "values": own["number"].cast(pl.Int8).to_list()}
        else:
            column |= classes(own["text"].to_list())
        found.append(column)
    return found


def classes(values: list[str | None]) -> dict[str, list[Any]]:
    """Return texts as `classes`, in alphabetical order, and `values`, each one's place among them."""
    shown = [None if value is None else plain(encode.cut(value, LABEL_TEXT)) for value in values]
    names = sorted({value for value in shown if value is not None})
    places = {name: place for place, name in enumerate(names)}
    return {"classes": names, "values": [None if value is None else places[value] for value in shown]}
