"""Parts of stores: what counts in the source counts in the target, and only what is asked for is read."""

import shutil
from pathlib import Path

import full_store
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_store import check_layers, files, wide_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builder import LAST, LAYERS, MEAN, content, fix_manifest, make_run, put_shard

from layercache import transfer
from layercache.errors import StoreError
from layercache.store import compact, outstanding, reader
from layercache.store import files as store_files
from layercache.store.selection import Selection
from layercache.store.verify import verify


def test_a_part_reads_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_store(tmp_path / "s", layers=16, samples=1000, width=256)
    read = []

    class Counting:
        def __init__(self, path: Path) -> None:
            self._file = path.open("rb")
            self.closed = False

        def read(self, n: int = -1) -> bytes:
            data = self._file.read(n)
            read.append(len(data))
            return data

        def seek(self, *where: int) -> int:
            return self._file.seek(*where)

        def tell(self) -> int:
            return self._file.tell()

        def close(self) -> None:
            self.closed = True
            self._file.close()

        def __del__(self) -> None:
            self._file.close()

    real = pq.ParquetFile

    def counted(path: object, **options: object) -> object:
        inside = isinstance(path, Path) and path.name == "hidden.parquet" and (tmp_path / "s") in path.parents
        return real(Counting(path) if inside else path, **options)

    monkeypatch.setattr(store_files.pq, "ParquetFile", counted)
    transfer.pull(str(tmp_path / "s"), tmp_path / "t", Selection(layers=(3, 9)))
    whole = (shard_file := next((tmp_path / "s").rglob("hidden.parquet"))).stat().st_size
    assert shard_file.parent.name.startswith("shard=")
    assert whole / 16 * 2 * 0.9 < sum(read) < whole / 16 * 2 * 1.4


def test_what_replaces_others_does_not_take_them_along(tmp_path: Path) -> None:
    """Of a compacted source one shard may be wanted whole; in the target it must not replace what has more layers."""
    run = make_run(tmp_path / "source")
    put_shard(run, range(3), {MEAN: [0, 1]})
    put_shard(run, range(3, 6), {MEAN: [0]})
    target = tmp_path / "target"
    transfer.pull(str(run.store), target)
    opened = reader.open(run.store)
    compact.compact(opened, run, "clean")
    transfer.pull(str(run.store), target, Selection(layers=(0,)))
    assert content(target) == content(run.store)
    transfer.pull(str(run.store), target)
    assert content(target) == content(run.store)
    assert verify(target, deep=True) == []


def test_what_this_version_does_not_know_is_not_dropped_from_a_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "source")
    name = put_shard(run, range(3))
    file = run.path / "condition=clean" / f"shard={name}" / "hidden.parquet"
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.append_column("norm", pa.array(np.ones(len(table)))), file)
    fix_manifest(file.parent)
    with pytest.raises(StoreError, match=r"has a column norm that this version does not know: install a newer one"):
        transfer.pull(str(run.store), tmp_path / "part", Selection(layers=(1,)))
    transfer.pull(str(run.store), tmp_path / "whole")
    assert files(tmp_path / "whole") == files(run.store)


def test_shards_that_are_not_whole_parts_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large group of shards that share samples, new shards of about a size are made."""
    run = make_run(tmp_path / "source")
    put_shard(run, range(40), {MEAN: [0, 1]}, salt=1)
    put_shard(run, range(20, 60), {MEAN: [1, 2], LAST: [0]}, salt=2)
    monkeypatch.setattr(outstanding, "SHARD_BYTES", 2000)
    target = tmp_path / "target"
    transfer.pull(str(run.store), target, Selection(outputs=("mean",), layers=(1,)))
    shards = reader.open(target).shards(run.id)
    assert len(shards) > 3
    assert sum(shard.n_samples for shard in shards) == 60
    assert verify(target, deep=True) == []
    check_layers(run.store, target, run, [1])


OUTPUTS = st.dictionaries(
    st.sampled_from([MEAN, LAST]), st.sets(st.sampled_from(LAYERS), min_size=1).map(sorted), min_size=1
)
PLANS = st.lists(st.tuples(st.sets(st.integers(0, 7), min_size=1, max_size=6), OUTPUTS), min_size=1, max_size=4)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLANS, st.lists(st.sets(st.sampled_from(LAYERS), min_size=1), min_size=2, max_size=2))
def test_any_layers_of_any_shards_are_what_they_are_in_the_source(
    tmp_path: Path, plans: list[tuple[set[int], dict[str, list[int]]]], layers: list[set[int]]
) -> None:
    for name in ("any", "part"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    run = make_run(tmp_path / "any")
    for salt, (numbers, outputs) in enumerate(plans):
        put_shard(run, sorted(numbers), dict(outputs), salt=salt)
    there = {layer for _, outputs in plans for numbers in outputs.values() for layer in numbers}
    source, target, asked = reader.open(run.store), tmp_path / "part", set[int]()
    for some in layers:
        if not some & there:
            continue
        asked |= some & there
        transfer.pull(str(run.store), target, Selection(layers=tuple(sorted(some & there))))
        assert verify(target, deep=True) == []
        poolings = ["mean@prompt", "last@prompt"]
        mine = full_store.hidden(source, run.id, sorted(asked), poolings)
        assert full_store.hidden(reader.open(target), run.id, LAYERS, poolings) == mine
        again = transfer.pull(str(run.store), target, Selection(layers=tuple(sorted(some & there))))
        assert (again.shards, again.bytes) == (0, 0)
    transfer.pull(str(run.store), target)
    assert content(target) == content(run.store)
