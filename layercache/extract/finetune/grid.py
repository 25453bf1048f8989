"""The cells of a grid of adapters, what they are called, and which of them are finished.

    <out>/<model>-<data>-<hash8>/        everything that all cells share is in the hash
        base/record.json                 what the model knows before training
        r8-a16-lr0.0001-s0/              a cell: PEFT's two files and its record; appears by one rename
        results.csv, results.parquet     a line a cell

A cell that is there is finished; what a killed run leaves is in `.tmp` and is taken away by the next.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercache.errors import ModelError
from layercache.recipe import FinetuneSpec
from layercache.store.layout import TEMPORARY, digest, read_json
from layercache.store.publish import is_being_written, one_line_errors, publish_folder, staging, sync, write_file

BASE = "base"
RECORD = "record.json"
FORMAT = 1
"""The format of a cell's record."""
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Cell:
    """One adapter: rank, alpha, the modules it is on, the highest learning rate and the seed."""

    r: int
    alpha: float
    targets: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder, and of the adapter in the store."""
        where = "" if self.targets == ALL_LINEAR else f"-{self.targets}"
        return f"r{self.r}-a{self.alpha:.12g}-lr{self.learning_rate:.12g}{where}-s{self.seed}"

    @property
    def is_base(self) -> bool:
        """Whether it leaves the model as it is: what an adapter adds is multiplied by alpha / r."""
        return self.alpha == 0


def cells(spec: FinetuneSpec) -> list[Cell]:
    """List the cells of a grid, each once, seeds outermost: a run that is stopped then has whole grids."""
    every = itertools.product(spec.seeds, spec.targets, spec.learning_rate, spec.alpha, spec.r)
    found = [Cell(r, float(alpha), targets, float(rate), seed) for seed, targets, rate, alpha, r in every]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Grid:
    """Where a grid is, and what all of its cells share.

    Attributes:
        folder: of this model and data.
        shared: the settings, weights and rows that all cells share; JSON values.
    """

    folder: Path
    shared: dict[str, Any]

    def path(self, name: str) -> Path:
        """Return the folder of a cell, or of the base."""
        return self.folder / name

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished cell, or of the base; None where there is none yet.

        Raises:
            ModelError: there is one, and it is not of this grid.
        """
        path = self.path(name) / RECORD
        if not path.is_file():
            return None
        record = read_json(path)
        if record.get("shared") != self.shared:
            raise ModelError(f"{path.parent} is not of this grid: move it away, or give another finetune.out")
        return record

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give an empty folder to make a cell in."""
        with one_line_errors(self.folder), staging(self.folder) as folder:
            yield folder

    def publish(self, staged: Path, name: str, record: dict[str, Any]) -> None:
        """Add the record to what is in a staged folder, and put it in its place at once."""
        content = {"format": FORMAT, **record, "shared": self.shared}
        write_file(staged / RECORD, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
        for path in staged.iterdir():
            sync(path)
        publish_folder(staged, self.path(name))

    def sweep(self) -> None:
        """Take away what killed runs have left."""
        for path in sorted((self.folder / TEMPORARY).glob("*")):
            if not is_being_written(path):
                shutil.rmtree(path, ignore_errors=True)


def open_grid(out: Path, model: str, data: str, shared: dict[str, Any]) -> Grid:
    """Return the grid of a model and data set: another one for anything else that is shared."""
    return Grid(out / f"{model}-{data}-{digest(shared)[:8]}", json.loads(json.dumps(shared)))
