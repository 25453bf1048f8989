"""What came after the first stores: a column that old files lack, a row a token, absence at some layers only."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import store_builder as build

from layercache.store import encode, reader, sql, verify
from layercache.store.layout import Run
from layercache.store.writer import Shard

FROZEN = Path(__file__).parents[2] / "store"
SINKS, TOKEN, STATS = "hidden:resid:mean-sinks@prompt", "hidden:resid:token@prompt", "stats:norm"


def ask(store: Path, query: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = sql.query(reader.open(store), query).to_pylist()
    return rows


def put_sinks(run: Run, numbers: range, excluded: list[int]) -> None:
    ids = [build.sample_id(number) for number in numbers]
    shard = Shard(run, {SINKS: [1]}, provenance={})
    build.add_samples(shard, ids)
    n = len(ids)
    columns = {"sample_id": ids, "site": ["resid"] * n, "layer": [1] * n, "pooling": ["mean-sinks@prompt"] * n}
    vectors = np.ones((n, run.width), dtype=np.float32)
    shard.add("hidden", {**columns, "n_excluded": excluded, "vector": vectors})
    assert shard.publish() is not None


def test_a_store_from_before_the_column_reads_with_null() -> None:
    path = next(FROZEN.glob("run=*/condition=*/shard=*/hidden.parquet"))
    assert "n_excluded" not in pq.read_schema(path).names
    (found,) = ask(FROZEN, "SELECT count(*) AS n, count(n_excluded) AS known FROM hidden")
    assert found["n"] > 0  # type: ignore[operator]
    assert found["known"] == 0
    assert verify.verify(FROZEN, deep=True) == []


def test_old_and_new_shards_of_one_run_read_together(tmp_path: Path) -> None:
    shutil.copytree(FROZEN, tmp_path / "s")
    (tmp_path / "s" / "FROZEN").unlink()
    run = reader.open(tmp_path / "s").runs()[0]
    before = ask(tmp_path / "s", "SELECT count(*) AS n FROM hidden")[0]["n"]
    put_sinks(run, range(3), [0, 2, 1])
    query = "SELECT sample_id, n_excluded FROM hidden WHERE n_excluded IS NOT NULL ORDER BY ALL"
    assert [row["n_excluded"] for row in ask(tmp_path / "s", query)] == [0, 2, 1]
    assert ask(tmp_path / "s", "SELECT count(*) AS n FROM hidden")[0]["n"] == before + 3  # type: ignore[operator]
    assert verify.verify(tmp_path / "s", deep=True) == []


def test_what_is_held_twice_counts_once_with_the_column_too(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)
    put_sinks(run, range(3), [5, 5, 5])
    put_sinks(run, range(1, 4), [5, 5, 5])
    assert ask(tmp_path, "SELECT count(*) AS n, sum(n_excluded) AS total FROM hidden") == [{"n": 4, "total": 20}]


def put_tokens(run: Run, numbers: range, salt: float = 0.0) -> None:
    """Number n has n + 1 tokens, from position n on, in falling order of positions."""
    shard = Shard(run, {TOKEN: [0, 1]}, provenance={})
    build.add_samples(shard, [build.sample_id(number) for number in numbers])
    for layer in (0, 1):
        rows = [(build.sample_id(n), n + k) for n in numbers for k in reversed(range(n + 1))]
        columns = {
            "sample_id": [one for one, _ in rows],
            "position": [position for _, position in rows],
            "site": ["resid"] * len(rows),
            "layer": [layer] * len(rows),
            "pooling": ["token@prompt"] * len(rows),
        }
        vectors = np.array([[int(one, 16), position, layer, salt] * 2 for one, position in rows], dtype=np.float32)
        shard.add("hidden", {**columns, "vector": vectors})
    assert shard.publish() is not None


@pytest.mark.parametrize("group_bytes", [2**26, 400])
def test_a_matrix_of_single_tokens(tmp_path: Path, group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ROW_GROUP_BYTES", group_bytes)
    run = build.make_run(tmp_path)
    put_tokens(run, range(5))
    put_tokens(run, range(3, 7))
    files = list(tmp_path.glob("run=*/condition=*/shard=*/hidden.parquet"))
    assert (pq.ParquetFile(files[0]).num_row_groups > 2) == (group_bytes == 400)
    matrix = reader.open(tmp_path).matrix(run, 1, "token")
    expected = [(n, n + k) for n in range(7) for k in range(n + 1)]
    assert matrix.sample_ids.tolist() == [build.sample_id(n) for n, _ in expected]
    assert matrix.positions is not None
    assert matrix.positions.dtype == np.int32
    assert matrix.positions.tolist() == [position for _, position in expected]
    np.testing.assert_array_equal(matrix.values[:, :3], [(n, position, 1) for n, position in expected])
    assert verify.verify(tmp_path, deep=True) == []


def test_absent_at_some_layers_only(tmp_path: Path) -> None:
    run = build.make_run(tmp_path)

    def put(number: int, said: list[int], there: dict[int, list[int]]) -> list[str]:
        ids = [build.sample_id(10 * number + one) for one in range(3)]
        shard = Shard(run, {STATS: [0, 1]}, provenance={})
        build.add_samples(shard, ids, {ids[one]: [(STATS, "why")] for one in said})
        rows = [(ids[one], layer) for layer, ones in there.items() for one in ones]
        columns = {"sample_id": [one for one, _ in rows], "layer": [layer for _, layer in rows]}
        shard.add("token_stats", {**columns, "metric": ["norm"] * len(rows), "value": [1.0] * len(rows)})
        name = shard.publish()
        return [one.what for one in verify.verify(tmp_path, deep=True) if f"shard={name}" in str(one.path)]

    assert put(0, [2], {0: [0, 1, 2], 1: [0, 1]}) == []
    assert put(1, [2], {0: [0, 1], 1: [0, 1]}) == []
    assert put(2, [], {0: [0, 1, 2], 1: [0, 1]}) == [f"{STATS} at layer 1 has rows of 2 samples, 3 expected (0 absent)"]
    assert put(3, [2], {0: [0, 1, 2], 1: [0, 1, 2]}) == [
        f"{STATS} has every row of 1 samples that are said to be absent"
    ]
    assert put(4, [2], {0: [0, 1, 2], 1: [0, 2]}) == [
        f"{STATS} at layer 1 has rows of 1 samples, 2 expected (1 absent)",
        f"{STATS} has every row of 1 samples that are said to be absent",
    ]
