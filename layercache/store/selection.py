"""What of a store is asked for: runs, conditions, data sets, tables, outputs, layers. Nothing said means all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from layercache.errors import StoreError
from layercache.nearest import hint, listing, nearest
from layercache.store.holdings import Outputs, Pair
from layercache.store.layout import Run, table_of
from layercache.store.reader import Store
from layercache.store.schema import TABLES

BESIDE = ("rows", "heads", "recipes", "results")
"""What a store holds beside the tables of its shards."""


@dataclass(frozen=True)
class Selection:
    """What is asked for; an empty field asks for everything."""

    runs: tuple[str, ...] = ()
    """Runs, by id, a prefix of it, or model name."""
    conditions: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    """Data sets: their rows, and of shards only the samples that their newest rows have."""
    tables: tuple[str, ...] = ()
    """Tables of shards, and `rows`, `heads`, `recipes`, `results`. `samples` come with every table of a shard."""
    outputs: tuple[str, ...] = ()
    """Outputs, by name, a part of it (`mean@prompt`, `lens`) or a pattern (`lens:*`)."""
    layers: tuple[int, ...] = ()

    @property
    def whole_shards(self) -> bool:
        """Whether every shard of the runs and conditions is wanted as it is."""
        every = not self.tables or set(TABLES) <= set(self.tables)
        return every and not (self.data or self.outputs or self.layers)

    @property
    def shards(self) -> bool:
        """Whether anything of shards is wanted."""
        return not self.tables or bool(set(TABLES) & set(self.tables))

    def beside(self, kind: str) -> bool:
        """Tell whether what is beside the shards is wanted: one of `BESIDE`."""
        return not self.tables or kind in self.tables

    def wants(self, pair: Pair) -> bool:
        """Tell whether an output at a layer (None: of one without layers) is wanted."""
        output, layer = pair
        table = table_of(output)
        # Of an output of a later version nobody knows which rows are its.
        if table is None or (self.tables and table not in self.tables):
            return False
        if self.outputs and not any(matches(output, word) for word in self.outputs):
            return False
        return not self.layers or layer is None or layer in self.layers

    def of(self, outputs: Outputs) -> Outputs:
        """Return what is wanted of outputs."""
        found: Outputs = {}
        for output, layers in outputs.items():
            if layers is None:
                if self.wants((output, None)):
                    found[output] = None
            elif kept := [layer for layer in layers if self.wants((output, layer))]:
                found[output] = kept
        return found


EVERYTHING = Selection()


def matches(output: str, word: str) -> bool:
    """Tell whether a word means an output: its name, a pattern, or a part of its name; `mean` is `mean@prompt`."""
    parts = output.split(":")
    return word in (output, *parts) or f"{word}@prompt" in parts or fnmatchcase(output, word)


def find_runs(store: Store, selection: Selection) -> list[Run]:
    """Find the runs that are asked for, after a look whether the store holds anything of what is.

    Raises:
        StoreError: there is no such run, condition, data set, table, output or layer; names what is near.
    """
    known = (*TABLES, *BESIDE)
    for table in selection.tables:
        if table not in known:
            raise StoreError(f"no table {table!r}: {hint(table, known)}")
    runs = [store.run(name) for name in selection.runs] or store.runs()
    runs = list({run.id: run for run in runs}.values())
    conditions = {run.id: store.conditions(run) for run in runs}
    _check("condition", selection.conditions, [name for names in conditions.values() for name in names])
    if selection.data:
        _check("data set", selection.data, [info.name for run in runs for info in store.data(run)])
    if selection.outputs or selection.layers:
        _check_outputs(store, selection, [(run, chosen(selection.conditions, conditions[run.id])) for run in runs])
    return runs


def chosen(asked: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the names that are asked for; all where none is."""
    return [name for name in names if not asked or name in asked]


def samples_of(store: Store, run: Run, selection: Selection) -> frozenset[str] | None:
    """Return the samples that the data sets asked for have in a run; None where none are named."""
    if not selection.data:
        return None
    names = [info.name for info in store.data(run) if info.name in selection.data]
    found: set[str] = set()
    for name in names:
        rows = store.rows(run, name)
        for column in {"sample_id", "prompt_sample_id"} & set(rows.columns):
            found.update(rows[column].drop_nulls().to_list())
    return frozenset(found)


def _check(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise StoreError(f"no {what} {name!r}: {hint(name, known)}")


def _check_outputs(store: Store, selection: Selection, conditions: list[tuple[Run, list[str]]]) -> None:
    held: dict[str, set[int]] = {}
    for run, names in conditions:
        for name in names:
            for shard in store.shards(run, name):
                for output, layers in shard.outputs.items():
                    held.setdefault(output, set()).update(layers or [])
    for word in selection.outputs:
        if not any(matches(output, word) for output in held):
            parts = [part for output in held for part in (output, *output.split(":"))]
            close = nearest(word, parts)
            there = f"did you mean {close[0]!r}?" if close else f"there are {listing(sorted(held))}"
            raise StoreError(f"no output {word!r}: {there}")
    wanted = Selection(tables=selection.tables, outputs=selection.outputs).of(
        {name: sorted(layers) or None for name, layers in held.items()}
    )
    layers = sorted({layer for numbers in wanted.values() for layer in numbers or []})
    for layer in selection.layers:
        if layer not in layers:
            there = f"layers {', '.join(map(str, layers))}" if layers else "none"
            raise StoreError(f"no layer {layer} in what is asked for: it has {there}")
