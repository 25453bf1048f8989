"""A store in a bucket reads as the same store on the disk does, and no more of it is fetched than is read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import store_builder as build
from served import Server

import layercache
from layercache.errors import QueryError, StoreError
from layercache.store import files, mirror, repair, scores, sql, verify
from layercache.store.merge import merge
from layercache.store.publish import remove
from layercache.store.remote import ranged
from layercache.store.remote.blocks import Cache
from layercache.store.results import Outcome, save
from layercache.store.writer import Shard, open_run

OUTPUTS: build.Outputs = {build.MEAN: build.LAYERS, build.LAST: [1, 2], build.LENS: build.LAYERS, "tokens": None}


def local_store(path: Path) -> Path:
    """Several shards that overlap, two conditions, two runs."""
    run = build.make_run(path)
    build.put_shard(run, range(12), OUTPUTS)
    build.put_shard(run, range(8, 20), {build.MEAN: [1, 2], build.LENS: [1]}, salt=1)
    build.put_shard(run, range(5), {build.MEAN: build.LAYERS}, condition="knockout-question")
    build.put_shard(build.make_run(path, "org/other", weights="v"), range(3), OUTPUTS)
    return path


@pytest.fixture
def both(tmp_path: Path, url: str, server: Server) -> tuple[Path, str]:
    """The same store on the disk and in a bucket, the bucket's known to another machine only."""
    local = local_store(tmp_path / "local")
    merge(local, mirror.attach(url))
    return local, url


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on this is another machine: its cache is empty."""
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "elsewhere"))


def test_it_holds_the_same_whoever_reads_it(
    both: tuple[Path, str], elsewhere: None, server: Server, tmp_path: Path
) -> None:
    local, url = both
    opened = layercache.open(url)
    assert build.content(opened.path) == build.content(local)
    assert repr(opened).startswith(f"Store('{url}'): ")
    server.requests.clear()
    assert build.content(opened.path) == build.content(local)
    assert [one.method for one in server.requests if "list-type" not in one.query] == []
    back = tmp_path / "back"
    merge(opened.path, back)
    assert build.content(back) == build.content(local)
    assert verify.verify(back, deep=True) == []


def test_opening_makes_one_listing_and_copies_small_files_only(
    both: tuple[Path, str], elsewhere: None, server: Server
) -> None:
    local, url = both
    server.requests.clear()
    opened = layercache.open(url)
    assert [one for one in server.requests if "list-type" in one.query] == server.requests[:1]
    assert {one.path.rpartition("/")[2] for one in server.requests[1:]} == {"run.json", "manifest.json"}
    small = [path for path in local.rglob("*.json") if ".tmp" not in path.parts]
    assert sum(one.bytes for one in server.requests[1:]) == sum(path.stat().st_size for path in small)
    for path in local.rglob("*.parquet"):
        copy = opened.path / path.relative_to(local)
        assert copy.stat().st_size == path.stat().st_size
        assert copy.read_bytes().strip(b"\0") == b""
        with files.open_binary(copy) as file:
            assert file.read() == path.read_bytes()
    server.requests.clear()
    layercache.open(url)
    assert len(server.requests) == 1


def wide_store(store: Path, *, shards: int, samples: int, width: int, layers: int) -> None:
    """States large enough that footers are little beside them."""
    everything = list(range(layers))
    run = open_run(
        store,
        {"weights": "wide"},
        model="org/wide",
        layers=[(layer, f"layer {layer}") for layer in everything],
        width=width,
        final_layer=layers - 1,
    )
    rng = np.random.default_rng(0)
    for number in range(shards):
        ids = [build.sample_id(number * samples + one) for one in range(samples)]
        shard = Shard(run, {build.MEAN: everything}, provenance={})
        build.add_samples(shard, ids)
        for layer in everything:
            columns = {"sample_id": ids, "site": ["resid"] * samples, "layer": [layer] * samples}
            vectors = rng.standard_normal((samples, width), dtype=np.float32)
            shard.add("hidden", {**columns, "pooling": ["mean@prompt"] * samples, "vector": vectors})
        shard.publish()


def layer_bytes(store: Path, layer: int) -> int:
    """Bytes that a layer's row groups take in the files of a store on the disk, whole columns and all."""
    total = 0
    for path in store.rglob("hidden.parquet"):
        with files.open_parquet(path) as file:
            for index in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(index)
                columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
                statistics = columns["layer"].statistics
                if statistics.min == statistics.max == layer:
                    total += sum(column.total_compressed_size for column in columns.values())
    return total


def test_one_layers_matrix_fetches_little_more_than_that_layer(
    url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "local"
    wide_store(local, shards=3, samples=600, width=256, layers=6)
    merge(local, mirror.attach(url))
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "elsewhere"))
    opened = layercache.open(url)
    server.requests.clear()
    matrix = opened.matrix("org/wide", 4)
    expected = layercache.open(local).matrix("org/wide", 4)
    assert (matrix.sample_ids == expected.sample_ids).all()
    assert (matrix.values == expected.values).all()
    # The ids of all samples, by which is known what counts, are part of the 1.2; the other layers are not.
    assert server.fetched <= 1.2 * layer_bytes(local, 4)
    assert server.fetched < 0.25 * sum(path.stat().st_size for path in local.rglob("hidden.parquet"))
    assert len(server.of("GET")) <= 3 * 4
    fetched = server.fetched
    opened.matrix("org/wide", 4)
    assert server.fetched == fetched


QUERY = "SELECT layer, count(*) AS n, avg(entropy) AS entropy FROM lens GROUP BY layer ORDER BY layer"
STATES = "SELECT run, layer, sum(norm(vector)) AS total FROM hidden WHERE layer = 2 GROUP BY ALL ORDER BY ALL"


@pytest.mark.parametrize("query", [QUERY, STATES])
def test_a_fenced_query_answers_the_same(both: tuple[Path, str], elsewhere: None, query: str) -> None:
    local, url = both
    assert sql.run_query(mirror.attach(url), query).to_pylist() == sql.run_query(local, query).to_pylist()


def test_the_fence_sees_no_credentials_and_no_other_file(
    both: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = mirror.attach(both[1])
    seen: dict[str, str] = {}
    started = sql.subprocess.Popen

    def remembered(*arguments: object, **options: object) -> object:
        assert isinstance(options["env"], dict)
        seen.update(options["env"])
        return started(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(sql.subprocess, "Popen", remembered)
    sql.run_query(root, QUERY)
    assert seen
    assert "secret-of-tests" not in seen.values()
    assert not [name for name in seen if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]
    secret = tmp_path / "secret.parquet"
    secret.write_bytes(b"secret")
    read = sql._reader_of(root)
    inside = next(root.rglob("hidden.parquet"))
    assert read(str(inside), 0, 4) == b"PAR1"
    for path in (secret, f"{root}/../../../secret.parquet", root / ".bucket", f"{inside}/../../../../../{secret}"):
        with pytest.raises(QueryError, match="is no file of this store"):
            read(str(path), 0, 4)
    for text in ("SELECT * FROM read_text('bucket:///etc/passwd')", f"FROM '{inside}'", f"FROM 'bucket://{inside}'"):
        with pytest.raises(QueryError):
            sql.run_query(root, text)


def test_polars_scans_only_what_a_filter_needs(both: tuple[Path, str], elsewhere: None) -> None:
    local, url = both
    frames = [
        layercache.open(where)
        .scan("hidden", "org/tiny", "clean")
        .filter(layer=2)
        .collect()
        .sort("sample_id", "pooling")
        for where in (local, url)
    ]
    assert len(frames[0]) > 20
    assert frames[0].equals(frames[1])


def test_what_another_machine_does_is_seen_at_the_next_opening(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, there = str(tmp_path / "cache"), str(tmp_path / "there")
    build.put_shard(build.make_run(mirror.attach(url)), range(4))
    monkeypatch.setenv("LAYERCACHE_CACHE", there)
    opened = layercache.open(url)
    assert opened.count_samples("org/tiny") == 4
    build.put_shard(opened.runs()[0], range(4, 9))
    monkeypatch.setenv("LAYERCACHE_CACHE", here)
    opened = layercache.open(url)
    assert opened.count_samples("org/tiny") == 9
    run = opened.runs()[0]
    gone = next(shard for shard in opened.shards(run) if shard.n_samples == 4)
    monkeypatch.setenv("LAYERCACHE_CACHE", there)
    remove(mirror.attach(url), [mirror.attach(url) / gone.path.relative_to(opened.path)])
    monkeypatch.setenv("LAYERCACHE_CACHE", here)
    assert layercache.open(url).count_samples("org/tiny") == 5
    assert not gone.path.exists()


def test_results_recipes_rows_and_heads_come_along(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import polars as pl
    import pyarrow as pa

    from layercache.recipe import Label
    from layercache.store import head, recipes, results
    from layercache.store.rows import put_rows

    root = mirror.attach(url)
    run = build.make_run(root)
    build.put_shard(run, range(3))
    frame = pl.DataFrame({"row": [0, 1], "sample_id": [build.sample_id(0), None], "how good": [1.5, 2.5]})
    put_rows(run, frame, data="films & more", source="a test", labels=[Label("how good", "number")])
    recipes.save(root, {"name": "mine", "analyze": []})
    kept = build.make_head()
    head.write(run, kept)
    line = {"run": run.id, "data": "films", "analysis": "probe", "metric": "accuracy", "value": 0.5}
    scores_line = {**line, "row": 0, "sample_id": build.sample_id(0)}
    outcome = Outcome(pa.Table.from_pylist([line]), pa.Table.from_pylist([scores_line]), {"w.safetensors": b"12345678"})
    save(root, "probe", {"a": 1}, ["x"], outcome)
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "elsewhere"))
    opened = layercache.open(url)
    run = opened.runs()[0]
    assert opened.rows(run, "films & more")["how good"].to_list() == [1.5, 2.5]
    assert opened.labels(run, "films & more")["number"].to_list() == [1.5]
    assert recipes.load_all(opened.path) == [{"name": "mine", "analyze": []}]
    read = head.read(run)
    assert (read.unembedding.weight == kept.unembedding.weight).all()
    assert read.texts.equals(kept.texts)
    assert [info.analysis for info in results.listing(opened.path)] == ["probe"]
    assert scores.newest(opened.path, "probe", "accuracy")["value"].to_list() == [0.5]
    assert opened.sql("SELECT value FROM results").to_pylist() == [{"value": 0.5}]
    weights = results.listing(opened.path)[0].path / "w.safetensors"
    with files.open_on_disk(weights) as file:
        assert file.read() == b"12345678"
    assert verify.verify(opened.path, deep=True) == []


def test_an_object_that_changed_while_the_store_was_open_is_not_read(both: tuple[Path, str], server: Server) -> None:
    opened = layercache.open(both[1])
    run = opened.run("org/other")
    path = next(path for path in run.path.rglob("hidden.parquet"))
    bucket = mirror.of(path)
    assert bucket is not None
    with files.open_binary(path) as file:
        data = file.read()
    bucket.client.put(bucket.key(path), data[:-1] + b"x")
    Cache(ranged.cache().folder, 0).sweep()
    with pytest.raises(StoreError, match=r"has changed since the store was opened|run the same command again"):
        opened.matrix(run, 1)


def test_an_altered_or_truncated_object_is_found(both: tuple[Path, str], server: Server) -> None:
    opened = layercache.open(both[1])
    run = opened.run("org/other")
    path = next(path for path in run.path.rglob("hidden.parquet"))
    bucket = mirror.of(path)
    assert bucket is not None
    with files.open_binary(path) as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    bucket.client.put(bucket.key(path), bytes(data))
    assert any("sha256" in problem.what for problem in verify.verify(opened.path, deep=True))
    bucket.client.put(bucket.key(path), bytes(data[:-100]))
    with pytest.raises(StoreError, match=r"is damaged \(\d+ bytes, not \d+\)"):
        layercache.open(both[1]).matrix("org/other", 1)
    # Mending moves the shard aside in the bucket, too: another machine finds it gone.
    assert len(repair.repair(opened.path, verify.verify(opened.path))) == 1
    assert verify.verify(opened.path, deep=True) == []
    assert [one.key for chunk in bucket.client.objects(".quarantine") for one in chunk]
    assert layercache.open(both[1]).conditions("org/other") == []


def test_the_paths_of_a_mirror_are_told_as_urls(both: tuple[Path, str]) -> None:
    root = mirror.attach(both[1])
    assert mirror.told(f"cannot read {root}/run=x: no") == f"cannot read {both[1]}/run=x: no"
    assert mirror.name(root / "run=x" / "run.json") == f"{both[1]}/run=x/run.json"
    assert mirror.name("store") == "store"
    assert mirror.of(Path(sys.executable)) is None
