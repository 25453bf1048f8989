"""Reads a store. Files are found through manifests, never by a wildcard; what is held twice counts once."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import polars as pl
import pyarrow as pa

from layercache import nearest
from layercache.errors import StoreError
from layercache.outputs import one_row_a_token
from layercache.store import labels, mirror, rows, samples, sequence, shards, stored
from layercache.store.holdings import Exclusion, Holdings, holdings
from layercache.store.layout import (
    CLEAN,
    ROWS,
    RowsInfo,
    Run,
    ShardInfo,
    frozen_hint,
    read_run,
    run_paths,
)
from layercache.store.states import LabelledMatrix, Matrix, Source, read_states, with_labels
from layercache.store.stored import StoredFeature, StoredLens

if TYPE_CHECKING:
    import duckdb


def open(path: str | Path) -> "Store":
    """Open a store for reading; an empty directory is an empty store.

    Args:
        path: its directory, or the URL of a place in a bucket: `s3://bucket/prefix`, `gs://…`, `az://…`. Its small
            files are then copied into the user's cache folder, and of the large ones fetched what is read.

    Raises:
        StoreError: nothing is there, it is not a store, or it is in a newer format; or the bucket cannot be read.
    """
    if not isinstance(path, str | Path):
        raise StoreError(f"{path!r} is no store: give its directory, or the URL of a place in a bucket")
    store = Store(mirror.located(path))
    mirror.check_store(store.path)
    store.runs()
    return store


@lru_cache(maxsize=8)
def _open_again(name: str) -> "Store":
    """Open a store that was pickled, by its path or URL, once in this process."""
    return Store(mirror.located(name))


class Store:
    """A store that is open for reading. Wherever a run is asked for, its name will do (see `run`).

    A published shard never changes, so what was read of one is remembered; new runs, shards and rows are
    seen at the next call, of a store in a bucket those of other machines when it is opened again. Pickled it is its path
    or URL, and what it remembers stays behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = shards.KnownShards()

    def __reduce__(self) -> "tuple[Callable[[str], Store], tuple[str]]":
        return _open_again, (mirror.name(self.path),)

    def __repr__(self) -> str:
        return f"Store({mirror.name(self.path)!r}): {', '.join(run.id for run in self.runs()) or 'empty'}"

    def _repr_html_(self) -> str:
        """Show the runs as a table in a notebook; text of the store is escaped."""
        from layercache import listing, table

        return f"<p>Store <code>{table.html_text(mirror.name(self.path))}</code></p>{table.html(listing.runs(self))}"

    @property
    def frozen(self) -> bool:
        """Whether writers refuse the store."""
        return frozen_hint(self.path) is not None

    def runs(self) -> list[Run]:
        """List the runs, sorted by id.

        Raises:
            StoreError: a `run.json` is malformed or in a newer format.
        """
        return [read_run(path) for path in run_paths(self.path)]

    def run(self, name: str) -> Run:
        """Find a run by its id, a prefix of it, or its model's name, where that is unique.

        Raises:
            StoreError: there is none, or more than one.
        """
        if not isinstance(name, str):
            raise StoreError(f"{name!r} names no run: give its id, a prefix of it, or its model's name")
        runs = self.runs()
        for matches in (
            [run for run in runs if run.id == name],
            [run for run in runs if run.model == name],
            [run for run in runs if run.id.startswith(name)],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise StoreError(f"{name!r} could be any of {', '.join(run.id for run in matches)}: give one of them")
        known = [*(run.id for run in runs), *(run.model for run in runs)]
        raise StoreError(f"no run {name!r} in {mirror.name(self.path)}: {nearest.hint(name, known, 'it holds')}")

    def data(self, run: Run | str) -> list[RowsInfo]:
        """List the data sets whose rows are stored for a run, by name, the newest rows file of each."""
        return [rows.read_info(file.path) for _, file in sorted(sequence.newest_rows(self._run(run).path).items())]

    def rows(self, run: Run | str, data: str) -> pl.DataFrame:
        """Return a data set's newest rows: `row`, `sample_id`, `split`, the user's own columns.

        Raises:
            StoreError: the run has no rows of that data set.
        """
        return rows.read_frame(self._rows_path(run, data))

    def labels(self, run: Run | str, data: str) -> pl.DataFrame:
        """Return a data set's labels in long form: the columns of `schema.LABELS`, a line a value."""
        return labels.read(rows.read_info(self._rows_path(run, data)))

    def _rows_path(self, run: Run | str, data: str) -> Path:
        files = sequence.newest_rows(self._run(run).path)
        if data not in files:
            said = nearest.hint(str(data), sorted(files), "it has")
            raise StoreError(f"run {self._run(run).id} has no rows of data set {data!r}: {said}")
        return files[data].path

    def _run(self, run: Run | str) -> Run:
        return run if isinstance(run, Run) else self.run(run)

    def conditions(self, run: Run | str) -> list[str]:
        """List the conditions under which something is stored, `clean` first."""
        return shards.conditions(self._run(run))

    def shards(self, run: Run | str, condition: str = CLEAN) -> list[ShardInfo]:
        """List the shards that count, sorted by name; those that another one replaces are left out.

        Raises:
            StoreError: a manifest is malformed, or a file is missing or not of the size it states.
        """
        return self._known.counting(self._run(run), condition)

    def held(self, run: Run | str, condition: str = CLEAN, shards: Sequence[ShardInfo] | None = None) -> Holdings:
        """Return which samples hold which outputs and layers.

        Args:
            run: a run, or its name.
            condition: how the forward pass was run.
            shards: what `shards` gave a moment ago: what it gives now may differ.
        """
        shards = self.shards(run, condition) if shards is None else shards
        return holdings(shards, [ids.to_pylist() for ids in self._known.sample_ids(shards)])

    def overlaps(
        self, run: Run | str, condition: str = CLEAN, shards: Sequence[ShardInfo] | None = None
    ) -> list[Exclusion]:
        """List the rows that do not count because a shard with a smaller name holds them.

        Costs a read of every shard's sample ids where there is more than one shard; nothing more unless a
        sample is in two of them. Arguments as of `held`.
        """
        return self._known.overlaps(self.shards(run, condition) if shards is None else shards)

    def count_samples(self, run: Run | str, condition: str = CLEAN) -> int:
        """Count the distinct samples of a run under one condition."""
        ids = self._known.sample_ids(self.shards(run, condition))
        return len(pa.chunked_array(ids, pa.string()).unique())

    def features(self, run: Run | str, condition: str = CLEAN) -> list[StoredFeature]:
        """List the hidden states that are stored: site, pooling and layers."""
        return stored.features(self.shards(run, condition))

    def lens_outputs(self, run: Run | str, condition: str = CLEAN) -> list[StoredLens]:
        """List the logit lenses that are stored: output, position name and layers."""
        return stored.lenses(self.shards(run, condition))

    @overload
    def matrix(
        self, run: Run | str, layer: int, pooling: str = ..., *, site: str = ..., condition: str = ...
    ) -> Matrix: ...

    @overload
    def matrix(
        self,
        run: Run | str,
        layer: int,
        pooling: str = ...,
        *,
        label: str,
        data: str | None = ...,
        site: str = ...,
        condition: str = ...,
    ) -> LabelledMatrix: ...

    def matrix(
        self,
        run: Run | str,
        layer: int,
        pooling: str = "mean@prompt",
        *,
        label: str | None = None,
        data: str | None = None,
        site: str = "resid",
        condition: str = CLEAN,
    ) -> Matrix:
        """Read the states of one feature at one layer; no other layer is read.

        Args:
            run: a run, or its name.
            layer: 0 = embedding output, k = after block k.
            pooling: `mean@prompt`, `last@question`, `token@prompt`; a bare `mean` is over the prompt.
            label: a label to put beside the states; then a line is a row of the data set, not a sample.
            data: the data set the label is of, where several have one of that name.
            site: `resid`, `attn_out`, `mlp_out`.
            condition: how the forward pass was run.

        Returns:
            Sample ids, sorted, and float32 [n, d] values; a sample without a value (an empty span) is not in it.
            Of a `token` pooling a row a token, with its position in `positions`.
            With a label a `LabelledMatrix`, in row order.

        Raises:
            StoreError: nothing of the kind is stored, there is no such label, or a file is damaged.
        """
        run = self._run(run)
        for what, name in (("pooling", pooling), ("label", label), ("site", site), ("condition", condition)):
            if not isinstance(name, str) and (name is not None or what != "label"):
                raise StoreError(f"{what}={name!r} is no name: give one as text")
        lines = None if label is None else labels.find(run, self.data(run), label, data)
        pooling = pooling if "@" in pooling else f"{pooling}@prompt"
        if label is not None and one_row_a_token(pooling):
            raise StoreError(f"{pooling} has a row a token, and labels are of rows: leave out the label")
        output = f"hidden:{site}:{pooling}"
        counting = self.shards(run, condition)
        holding = [shard for shard in counting if layer in (shard.outputs.get(output) or [])]
        if not holding:
            raise StoreError(
                f"run {run.id} holds no {site} states {pooling} at layer {layer} under condition {condition}:"
                f" it holds {stored.in_words(stored.features(counting))}"
            )
        without = shards.excluded(self.overlaps(run, condition, counting), output, layer)
        files = [(shard.file("hidden"), without.get(shard.name, frozenset())) for shard in holding]
        sources = [Source(path, ids) for path, ids in files if path is not None]
        where = {"site": site, "pooling": pooling, "layer": layer}
        states = read_states(sources, where, run.width, tokens=one_row_a_token(pooling))
        return states if lines is None else with_labels(states, lines)

    def lens(
        self,
        run: Run | str,
        layers: int | Sequence[int] | Literal["all"] = "all",
        pooling: str = "last@prompt",
        *,
        top_k: int = 10,
        targets: Sequence[int | str] | None = None,
        sample_ids: Sequence[str] | None = None,
        condition: str = CLEAN,
    ) -> pa.Table:
        """Read the logit lens of stored states, with the head kept beside the run; needs no model and no torch.

        Args:
            run: a run that was extracted with `--save-head`, or its name.
            layers: one, several, or all that are stored up to L. L + 1 is not normed again.
            pooling: the state of one token: `last@prompt`, `first@question`, `token`; no mean has a lens.
            top_k: tokens kept of every distribution.
            targets: tokens to follow, by id, text (` Paris`) or the tokenizer's writing (`ĠParis`); when not
                given, the prompt's own next token, or the declared target at its end, as in extraction.
            sample_ids: the samples; all when not given.
            condition: how the forward pass was run.

        Returns:
            A line a layer, sample, position and target: `run`, `condition`, the columns of the table `lens` but
            `choices`, and `target_token`. The columns that compare with the final distribution are NULL where
            neither layer L nor L + 1 is stored of that pooling.

        Raises:
            StoreError: the run is not known or has no head, or the store is damaged.
            AnalysisError: a pooling that has no lens, a layer or sample that is not stored, an unknown token.
        """
        from layercache.analyze.lens import lens

        return lens(
            self,
            self._run(run),
            layers,
            pooling,
            top_k=top_k,
            targets=targets,
            sample_ids=sample_ids,
            condition=condition,
        )

    def scan(self, table: str, run: Run | str | None = None, condition: str | None = None) -> pl.LazyFrame:
        """Return a table of the store's shards (`hidden`, `lens`, `tokens`, …) as a Polars LazyFrame.

        Args:
            table: the table; its columns are those of the SQL view of that name.
            run: a run, or its name; only its files are opened. All runs when not given.
            condition: likewise.

        Returns:
            A frame of which a filter on `layer` and `pooling` reads only their row groups; what two shards
            hold counts once.

        Raises:
            StoreError: there is no such table or run, or a manifest is damaged.
        """
        from layercache.store import scan

        return scan.scan(self, table, None if run is None else self._run(run), condition)

    def samples(self, run: Run | str, condition: str = CLEAN) -> pl.DataFrame:
        """Return the samples, sorted by id: the columns of the table `samples`.

        A sample in several shards is one row: the one of the shard with the smallest name, with what is
        absent from any of them.
        """
        return samples.read(self.shards(run, condition))

    def input_names(
        self, run: Run | str, data: Iterable[str] | None = None, conditions: Iterable[str] = (CLEAN,)
    ) -> list[str]:
        """Name everything that an analysis of a run reads, for `results.save`.

        Returns:
            `<run>/<condition>/<shard>` of every shard that counts, and `<run>/rows/<file>` of the newest
            rows of every data set of `data` (all when not given), sorted.
        """
        run = self._run(run)
        shards = [f"{run.id}/{shard.condition}/{shard.name}" for name in conditions for shard in self.shards(run, name)]
        wanted = None if data is None else set(data)
        files = [
            file.path.name for name, file in sequence.newest_rows(run.path).items() if wanted is None or name in wanted
        ]
        return sorted([*shards, *(f"{run.id}/{ROWS}/{name}" for name in files)])

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """Return a new in-memory DuckDB connection with every view of the store (a trusted one: no fence)."""
        from layercache.store import sql

        return sql.connect(self)

    def sql(self, query: str, params: Sequence[Any] | dict[str, Any] | None = None) -> pa.Table:
        """Run a query of your own over the store's views; for one from elsewhere use `sql.run_query`.

        Args:
            query: one SELECT.
            params: values for its `?` or `$name` parameters.

        Raises:
            QueryError: the query fails; the message is one line.
        """
        from layercache.store import sql

        return sql.query(self, query, params)
