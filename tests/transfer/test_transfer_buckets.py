"""Push to and pull from a bucket: `file://` is written and read as a bucket is."""

from pathlib import Path

import full_store
import pytest
from full_store import check_layers, files, wide_store
from store_builder import content

from layercache import transfer
from layercache.store import mirror, reader
from layercache.store.selection import Selection
from layercache.store.verify import verify


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "cache"))
    for name in ("films", "films-part"):
        (tmp_path / "bucket" / name).mkdir(parents=True)
    return f"file://{tmp_path / 'bucket'}/films"


def test_a_store_goes_to_a_bucket_and_back(tmp_path: Path, bucket: str) -> None:
    run = full_store.make(tmp_path / "source")
    assert transfer.push(run.store, bucket).shards == 7
    assert files(tmp_path / "bucket" / "films") == files(run.store)
    assert transfer.push(run.store, bucket).bytes == 0
    transfer.pull(bucket, tmp_path / "back")
    assert files(tmp_path / "back") == files(run.store)
    asked = Selection(outputs=("mean@prompt",), layers=(1, 3))
    done = transfer.pull(bucket, tmp_path / "part", asked)
    assert done.source == bucket
    assert verify(tmp_path / "part", deep=True) == []
    check_layers(run.store, tmp_path / "part", run, [1, 3])
    # And a part the other way, into a bucket of its own.
    transfer.push(run.store, f"{bucket}-part", asked)
    assert content(mirror.attach(f"{bucket}-part")) == content(tmp_path / "part")


def test_two_layers_of_a_bucket_are_read_alone(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = wide_store(tmp_path / "wide", layers=12, samples=600, width=256)
    transfer.push(run.store, bucket)
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "another"))
    transfer.pull(bucket, tmp_path / "part", Selection(layers=(3, 9)))
    (table,) = run.store.rglob("hidden.parquet")
    cached = sum(path.stat().st_blocks * 512 for path in (tmp_path / "another").rglob("*") if path.is_file())
    assert table.stat().st_size * 2 / 12 < cached < table.stat().st_size * 2.6 / 12
    for layer in (3, 9):
        mine, theirs = (reader.open(store).matrix(run.id, layer) for store in (run.store, tmp_path / "part"))
        assert mine.values.tobytes() == theirs.values.tobytes()
