"""Reads what text analysis works on: the text that every layer wrote for a row, beside the row's references."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.analyze import select
from layercache.errors import AnalysisError
from layercache.progress import Progress
from layercache.recipe import TextSpec
from layercache.store import captured
from layercache.store.layout import RowsInfo, Run
from layercache.store.reader import Store

GENERATION = "generation:"


class Written(NamedTuple):
    """A text and what it is compared with: the unit of scoring. Equal ones are scored once."""

    text: str
    tokens: tuple[int, ...]
    references: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing but white space."""
        return not self.text.strip()


class Texts(NamedTuple):
    """The rows of a data set that have text at every stored layer of an output, and a reference where one is needed.

    Attributes:
        label: the columns that the references are from; None where nothing is compared.
        layers: the layers that wrote, ascending.
        rows, sample_ids: [n] each, in the order of rows.
        written: for each layer, n texts.
        left_out: rows of the data set that are not among these.
    """

    run: Run
    data: str
    output: str
    label: str | None
    layers: list[int]
    rows: npt.NDArray[np.int64]
    sample_ids: npt.NDArray[np.str_]
    written: dict[int, list[Written]]
    left_out: int


def read_all(store: Store, spec: TextSpec, compared: bool, progress: Progress) -> list[Texts]:
    """Read the texts of every run, data set and output asked for.

    Args:
        store: the store.
        spec: which ones, and which columns hold the references.
        compared: whether a score that needs references is asked for.
        progress: told what is left out.

    Raises:
        AnalysisError: no text is stored, no data set names references, or a name is not known.
    """
    chosen = select.runs(store, spec)
    pairs = select.data(store, chosen, spec)
    outputs = {run.id: _outputs(store, run) for run in chosen}
    if not any(outputs.values()):
        raise AnalysisError("no run holds generated text: run `layercache extract --generate-layers all` first")
    asked = _asked(spec, sorted({name for own in outputs.values() for name in own}))
    found, lacking = [], []
    for run, info in pairs:
        columns = spec.reference or list(info.reference)
        if compared and not columns:
            lacking.append((run, info))
            continue
        for output, layers in outputs[run.id].items():
            if output in asked:
                found.append(_read(store, run, info, output, layers, columns, progress))
    if lacking and not found:
        run, info = lacking[0]
        names = ", ".join(store.rows(run, info.name).columns[3:])
        raise AnalysisError(
            f"data set {info.name} names no reference to compare with: name its column with --answer (it has {names})"
        )
    for name in dict.fromkeys(info.name for _, info in lacking):
        progress.note(f"{name}: no reference to compare with, left out (--answer COLUMN names one)")
    return [texts for texts in found if len(texts.rows)]


def _outputs(store: Store, run: Run) -> dict[str, list[int]]:
    """Return the generated outputs of a run and the layers held of each; answers, which are part of the samples, are none."""
    if "answer" in run.spec:
        return {}
    found: dict[str, set[int]] = {}
    for shard in store.shards(run):
        for name, layers in shard.outputs.items():
            if name.startswith(GENERATION):
                found.setdefault(name, set()).update(layers or [])
    return {name: sorted(layers) for name, layers in sorted(found.items())}


def _asked(spec: TextSpec, stored: list[str]) -> list[str]:
    for start in spec.outputs or ():
        if not any(name.startswith(start) for name in stored):
            raise AnalysisError(f"no generated output {start!r}: {select.hint(start, stored)}")
    return [name for name in stored if spec.outputs is None or any(name.startswith(start) for start in spec.outputs)]


def _read(
    store: Store, run: Run, info: RowsInfo, output: str, layers: list[int], columns: list[str], progress: Progress
) -> Texts:
    """Read one output of one data set; rows without text at every layer, or without reference, are left out."""
    rows = store.rows(run, info.name)
    for name in columns:
        if name not in rows.columns:
            raise AnalysisError(f"data set {info.name} has no column {name!r}: {select.hint(name, rows.columns[3:])}")
    lines = captured.texts(store, run, output)
    whole = lines.filter(pl.len().over("sample_id") == len(layers))
    known = set(whole["sample_id"].to_list())
    where = f"{run.id}, {info.name}"
    rows = rows.sort("row")
    written = rows.filter(pl.col("sample_id").is_in(list(known)))
    _note_left_out(f"{where}, {output}", len(rows) - len(written), len(rows), "text at every layer", progress)
    references = [_references(values) for values in written.select(columns).iter_rows()] if columns else []
    if columns:
        keep = [bool(own) for own in references]
        _note_left_out(where, keep.count(False), len(rows), "a reference", progress)
        written, references = written.filter(pl.Series(keep, dtype=pl.Boolean)), [own for own in references if own]
    else:
        references = [()] * len(written)
    ids = written["sample_id"].to_list()
    by_layer = {}
    for layer in layers:
        here = whole.filter(layer=layer).select("sample_id", "text", "token_ids").iter_rows()
        said = {name: (text, tuple(tokens)) for name, text, tokens in here}
        by_layer[layer] = [Written(*said[name], own) for name, own in zip(ids, references)]
    return Texts(
        run=run,
        data=info.name,
        output=output,
        label=", ".join(columns) or None,
        layers=layers,
        rows=written["row"].to_numpy(),
        sample_ids=np.array(ids, dtype=np.str_),
        written=by_layer,
        left_out=len(rows) - len(written),
    )


def _references(values: tuple[object, ...]) -> tuple[str, ...]:
    """Return the distinct texts of a row's cells, in their order."""
    cells = (item for value in values for item in (value if isinstance(value, list) else [value]))
    texts = (str(item).strip() for item in cells if item is not None)
    return tuple(dict.fromkeys(text for text in texts if text))


def _note_left_out(where: str, gone: int, total: int, what: str, progress: Progress) -> None:
    if gone:
        progress.note(f"{where}: {gone:,} of {total:,} rows left out, without {what}")
