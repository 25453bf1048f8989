"""From a dataset repository into a store: only what is asked for, and only under names that the format knows.

What is small (`run.json`, manifests) is fetched into a copy of the repository beside the store's unfinished work; of the
tables that copy has files of the right size without content. Read as a store, it says what there is to bring, and
the bytes of a shard, or of some row groups of it, come when it is their turn.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layercache.errors import StoreError
from layercache.hub.client import Remote
from layercache.store import known_paths, reader, sparse
from layercache.store.layout import MANIFEST, RECIPES, RESULTS, ROWS, RUN, RUN_FILE, table_of
from layercache.store.outstanding import Plan, Step
from layercache.store.publish import one_line_errors
from layercache.store.selection import Selection, chosen

_LARGEST = 64 * 2**20
"""Bytes a JSON file of a store may have here: it is read into memory."""


class Copy:
    """A repository as a store directory in which most files have no content yet.

    Attributes:
        path: the directory.
    """

    def __init__(self, remote: Remote, path: Path) -> None:
        self._remote = remote
        self.path = path
        self._files = {name: file for name, file in remote.files.items() if known_paths.is_known(name)}
        self._footers: dict[Path, int] = {}

    def prepare(self, asked: Selection) -> None:
        """Fetch what a plan needs to know.

        Raises:
            StoreError: the repository holds no store, or not the runs asked for, or cannot be read.
        """
        runs = self._those(lambda parts: parts[-1] == RUN_FILE and len(parts) == 2)
        if not runs:
            raise StoreError(f"{self._remote.address} holds no store: push one with `layercache push`")
        self._small(runs)
        opened = reader.open(self.path)
        wanted = {f"{RUN}{opened.run(name).id}" for name in asked.runs} or {name.partition("/")[0] for name in runs}
        inside = [name for name in self._files if name.partition("/")[0] in {*wanted, RECIPES, RESULTS}]
        self._small([name for name in inside if name.endswith(f"/{MANIFEST}")])
        for name in inside:
            if not (self.path / name).exists():
                sparse.make(self.path / name, self._files[name].size)
        if asked.data:
            self._whole([name for name in inside if name.split("/")[1] == ROWS])
        if asked.shards and not asked.whole_shards:
            self._tables(asked)

    def _tables(self, asked: Selection) -> None:
        """Fetch the samples and the footers of the tables that are asked for."""
        opened = reader.open(self.path)
        samples, footers = [], []
        for run in opened.runs():
            if asked.runs and run.id not in {opened.run(name).id for name in asked.runs}:
                continue
            for condition in chosen(asked.conditions, opened.conditions(run)):
                for shard in opened.shards(run, condition):
                    samples.append(self._name(shard.path / "samples.parquet"))
                    wanted = {table for output in asked.of(shard.outputs) if (table := table_of(output))}
                    footers += [self._name(path) for table in wanted if (path := shard.file(table)) is not None]
        self._whole(samples)
        self._remote.fetch([self._tail(name) for name in footers])
        longer = []
        for name in footers:
            path, size = self.path / name, self._files[name].size
            with path.open("rb") as file:
                file.seek(max(0, size - sparse.TAIL))
                tail = file.read()
            try:
                self._footers[path] = start = sparse.footer(tail, size)
            except ValueError as error:
                raise StoreError(f"{self._remote.address}: {name}: {error}: push it again") from error
            if start < size - len(tail):
                longer.append((name, path, start, size - len(tail)))
        self._remote.fetch(longer)

    def _tail(self, name: str) -> tuple[str, Path, int, int]:
        size = self._files[name].size
        return name, self.path / name, max(0, size - sparse.TAIL), size

    def files(self, plan: Plan, moved: Callable[[int], None]) -> None:
        """Fetch what a plan brings outside shards."""
        results = [path for info in plan.results for path in info.path.iterdir() if path.name != MANIFEST]
        self._whole([self._name(path) for path in (*plan.files, *results)], moved)

    @contextmanager
    def ready(self, step: Step, moved: Callable[[int], None]) -> Iterator[None]:
        """Fetch what a step reads, and let go of it afterwards.

        Raises:
            StoreError: it cannot be fetched.
        """
        filled: list[Path] = []
        wanted = []
        for shard, table, outputs in step.tables():
            path = shard.path / f"{table}.parquet"
            name, size = self._name(path), self._files[self._name(path)].size
            if table == "samples" and step.piece is not None:
                continue  # It is there: the plan was made from it.
            filled.append(path)
            parts = [(0, size)] if outputs is None else sparse.needed(path, table, outputs)
            wanted += [(name, path, start, stop) for start, stop in parts]
        with one_line_errors(self.path):
            self._remote.fetch(wanted, moved)
            yield
            for path in filled:
                sparse.forget(path, self._footers.get(path, path.stat().st_size))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _those(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        return [name for name in sorted(self._files) if wanted(name.split("/"))]

    def _small(self, wanted: list[str]) -> None:
        """Fetch JSON files."""
        for name in wanted:
            if self._files[name].size > _LARGEST:
                raise StoreError(f"{self._remote.address}: {name} is too large to be what its name says")
        for name, content in self._remote.read_all(wanted).items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def _whole(self, wanted: list[str], moved: Callable[[int], None] = lambda nbytes: None) -> None:
        self._remote.fetch([(name, self.path / name, 0, self._files[name].size) for name in wanted], moved)
