"""Reading: what was written comes back, what is held twice counts once, and nothing else is read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builder import (
    LAST,
    LAYERS,
    LENS,
    MEAN,
    WIDTH,
    Outputs,
    add_hidden,
    add_samples,
    make_run,
    put_shard,
    sample_id,
    state,
)

from layercache.errors import StoreError
from layercache.store import reader, samples, shards, states
from layercache.store.holdings import SAMPLES, Exclusion
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.stored import StoredFeature, StoredLens
from layercache.store.writer import Shard, open_run


def expected(numbers: list[int], layer: int, pooling: str = "mean@prompt", salt: int = 0) -> np.ndarray:
    return np.array([state(sample_id(number), "resid", pooling, layer, salt) for number in sorted(numbers)])


def ids(numbers: range | list[int]) -> list[str]:
    return [sample_id(number) for number in numbers]


def rewrite_manifest(store: Path, change: dict[str, Any]) -> Path:
    """Change fields of the only shard's manifest, as a careless or hostile writer would."""
    (path,) = store.glob("run=*/condition=*/shard=*/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    return path


def test_a_matrix_is_contiguous_and_sorted_over_shards(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, [9, 4, 6], {MEAN: LAYERS, LAST: [3]})
    put_shard(run, [1, 8], {MEAN: LAYERS})
    store = reader.open(tmp_path)
    for layer in LAYERS:
        matrix = store.matrix(run, layer)
        assert matrix.sample_ids.tolist() == ids([1, 4, 6, 8, 9])
        assert matrix.values.dtype == np.float32
        assert matrix.values.flags.c_contiguous
        np.testing.assert_array_equal(matrix.values, expected([1, 4, 6, 8, 9], layer))
    np.testing.assert_array_equal(store.matrix("org/tiny", 3, "last").values, expected([4, 6, 9], 3, "last@prompt"))


def test_a_sample_without_a_value_is_not_in_the_matrix(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shard = Shard(run, {MEAN: [0], LAST: [0]}, provenance={})
    add_samples(shard, ids([0, 1, 2]), {sample_id(1): [(MEAN, "empty span"), (LAST, "empty span")]})
    add_hidden(shard, ids([0, 2]), MEAN, [0])
    shard.publish()
    store = reader.open(tmp_path)
    assert store.matrix(run, 0).sample_ids.tolist() == ids([0, 2])
    last = store.matrix(run, 0, "last")
    assert (last.values.shape, last.sample_ids.tolist()) == ((0, WIDTH), [])
    assert store.held(run).missing(ids([1]), {MEAN: [0], LAST: [0]}) == []
    assert store.samples(run)["absent"].to_list()[1][0] == {"output": MEAN, "reason": "empty span"}


def test_conditions_are_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(3), condition="knockout-question")
    put_shard(run, range(3), salt=1)
    (run.path / "condition=empty").mkdir()
    store = reader.open(tmp_path)
    assert store.conditions(run) == ["clean", "knockout-question"]
    np.testing.assert_array_equal(store.matrix(run, 1).values, expected([0, 1, 2], 1, salt=1))
    np.testing.assert_array_equal(
        store.matrix(run, 1, condition="knockout-question").values, expected([0, 1, 2], 1, salt=0)
    )
    assert store.overlaps(run) == []


def overlapping(run: Run) -> tuple[str, str]:
    """Two shards that share samples 2 and 3 and the output MEAN at layers 1 and 2; names in order."""
    names = [put_shard(run, range(4), {MEAN: [0, 1, 2], "tokens": None}, salt=1)]
    names.append(put_shard(run, range(2, 6), {MEAN: [1, 2, 3], LAST: [0]}, salt=2))
    low, high = sorted(names)
    return low, high


def test_what_two_shards_hold_counts_once_from_the_smaller_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    low, high = overlapping(run)
    store = reader.open(tmp_path)
    salts = {
        name: (1 if store.shards(run)[i].outputs.get("tokens", 0) is None else 2) for i, name in enumerate((low, high))
    }
    assert store.overlaps(run) == [Exclusion(high, {SAMPLES: None, MEAN: [1, 2]}, ids([2, 3]))]
    for layer in (1, 2):
        matrix = store.matrix(run, layer)
        assert matrix.sample_ids.tolist() == ids(range(6))
        owner = {
            **dict.fromkeys(range(2), 1),
            **dict.fromkeys(range(2, 4), salts[low]),
            **dict.fromkeys(range(4, 6), 2),
        }
        wanted = np.concatenate([expected([number], layer, salt=salt) for number, salt in owner.items()])
        np.testing.assert_array_equal(matrix.values, wanted)
    assert store.matrix(run, 0).sample_ids.tolist() == ids(range(4))
    np.testing.assert_array_equal(store.matrix(run, 3).values, expected([2, 3, 4, 5], 3, salt=2))
    assert store.samples(run)["sample_id"].to_list() == ids(range(6))


def test_three_shards_exclude_by_output_layer_and_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    contents = [({MEAN: [0]}, range(4)), ({MEAN: [1]}, range(4)), ({MEAN: [0, 1], LENS: [0]}, range(3))]
    for outputs, numbers in contents:
        put_shard(run, numbers, outputs)
    store = reader.open(tmp_path)
    counted: dict[tuple[str, int | None, str], int] = {}
    excluded = store.overlaps(run)
    for shard in store.shards(run):
        held = store._known.sample_ids([shard])[0].to_pylist()
        for output, layers in shard.outputs.items():
            for layer in layers or []:
                out = {
                    name
                    for e in excluded
                    if e.shard == shard.name and layer in (e.outputs.get(output) or [])
                    for name in e.sample_ids
                }
                for name in set(held) - out:
                    counted[output, layer, name] = counted.get((output, layer, name), 0) + 1
    assert set(counted.values()) == {1}
    assert len(counted) == 4 + 4 + 3
    for layer in (0, 1):
        np.testing.assert_array_equal(store.matrix(run, layer).values, expected(list(range(4)), layer))


def test_samples_say_what_is_absent_from_any_shard(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for output in (MEAN, LAST):
        shard = Shard(run, {output: [0]}, provenance={})
        add_samples(shard, ids([0]), {sample_id(0): [(output, "empty span")]})
        shard.publish()
    (row,) = reader.open(tmp_path).samples(run).to_dicts()
    assert sorted(entry["output"] for entry in row["absent"]) == sorted([MEAN, LAST])


def test_samples_of_an_empty_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    store = reader.open(tmp_path)
    frame = store.samples(run)
    assert frame.shape == (0, 9)
    assert store.held(run).missing(["a"], {MEAN: [0]}) == [({MEAN: [0]}, ["a"])]
    assert store.features(run) == store.lens_outputs(run) == store.conditions(run) == store.data(run) == []


def test_replaced_shards_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    old = put_shard(run, range(2), salt=1)
    new = put_shard(run, range(4), salt=2)
    path = run.path / "condition=clean" / f"shard={new}" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "replaces": [old]}))
    store = reader.open(tmp_path)
    assert [shard.name for shard in store.shards(run)] == [new]
    assert store.overlaps(run) == []
    np.testing.assert_array_equal(store.matrix(run, 0).values, expected([0, 1, 2, 3], 0, salt=2))


def test_one_layer_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(50), {MEAN: LAYERS, LAST: LAYERS})
    read: list[tuple[int, tuple[str, ...]]] = []
    original = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, group: int, columns: list[str], **options: object) -> object:
        read.append((group, tuple(columns)))
        return original(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    reader.open(tmp_path).matrix(run, 2, "last")
    assert read == [(2, ("sample_id",)), (2, ("vector",))]


def test_one_layer_reads_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, width, n = 20, 512, 200
    run = open_run(tmp_path, {}, model="m", layers=[(k, str(k)) for k in range(layers)], width=width, final_layer=19)
    shard = Shard(run, {MEAN: list(range(layers))}, provenance={})
    add_samples(shard, ids(range(n)))
    for layer in range(layers):
        columns = {
            "sample_id": ids(range(n)),
            "site": ["resid"] * n,
            "layer": [layer] * n,
            "pooling": ["mean@prompt"] * n,
        }
        shard.add("hidden", {**columns, "vector": np.random.default_rng(layer).random((n, width), dtype=np.float32)})
    shard.publish()
    (file,) = run.path.glob("condition=clean/shard=*/hidden.parquet")
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read
            data = super().read(size) or b""
            read += len(data)
            return data

    monkeypatch.setattr(states, "open_parquet", lambda path: pq.ParquetFile(Counting(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetFile, "__exit__", lambda self, *args: self.close(force=True))
        assert reader.open(tmp_path).matrix(run, 1).values.shape == (n, width)
    # One of twenty row groups, and the file's end twice (pyarrow reads 64 KiB of it for the footer).
    assert read < file.stat().st_size / 20 + 3 * 65536 < file.stat().st_size / 10


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    """No statistics, one row group for everything, other row order, variable-size lists."""
    run = make_run(tmp_path)
    put_shard(run, range(5), {MEAN: LAYERS, LAST: [0]})
    (file,) = run.path.glob("condition=clean/shard=*/hidden.parquet")
    table = pq.read_table(file, partitioning=None).take(np.random.default_rng(0).permutation(25))
    plain = table.set_column(5, "vector", table["vector"].combine_chunks().cast(pa.list_(pa.float32())))
    pq.write_table(plain, file, write_statistics=False)
    rewrite_manifest(tmp_path, {"files": _files_as_they_are(file.parent)})
    store = reader.open(tmp_path)
    for layer in LAYERS:
        np.testing.assert_array_equal(store.matrix(run, layer).values, expected([0, 1, 2, 3, 4], layer))
    np.testing.assert_array_equal(store.matrix(run, 0, "last").values, expected([0, 1, 2, 3, 4], 0, "last@prompt"))


def _files_as_they_are(folder: Path) -> dict[str, Any]:
    return {
        path.name: {"bytes": path.stat().st_size, "rows": pq.read_metadata(path).num_rows, "sha256": "0" * 64}
        for path in folder.glob("*.parquet")
    }


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(5), {MEAN: [0]})
    (file,) = run.path.glob("condition=clean/shard=*/hidden.parquet")
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.set_column(5, "vector", pa.array([[1.0]] * 5, pa.list_(pa.float32()))), file)
    rewrite_manifest(tmp_path, {"files": _files_as_they_are(file.parent)})
    with pytest.raises(StoreError, match="vectors that are not 8 wide"):
        reader.open(tmp_path).matrix(run, 0)


def test_opening_many_shards_reads_manifests_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    for number in range(20):
        put_shard(run, [number], {MEAN: [0]})

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(samples, "open_parquet", fail)
    monkeypatch.setattr(states, "open_parquet", fail)
    monkeypatch.setattr(shards, "read_ids", fail)
    store = reader.open(tmp_path)
    assert len(store.shards(run)) == 20
    assert store.features(run) == [StoredFeature("resid", "mean@prompt", [0])]


def test_a_manifest_is_read_once_and_new_shards_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2))
    store = reader.open(tmp_path)
    store.shards(run)
    put_shard(run, range(2, 4))
    assert len(store.shards(run)) == 2
    monkeypatch.setattr("layercache.store.manifest.read", None)
    assert store.matrix(run, 0).sample_ids.tolist() == ids(range(4))


def test_features_and_lenses_are_united_over_shards(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2), {MEAN: [0, 1], LENS: [0, 1], "tokens": None})
    put_shard(run, range(2), {MEAN: [3], "hidden:attn_out:max@prompt": [2]})
    store = reader.open(tmp_path)
    assert store.features(run) == [
        StoredFeature("attn_out", "max@prompt", [2]),
        StoredFeature("resid", "mean@prompt", [0, 1, 3]),
    ]
    assert store.lens_outputs(run) == [StoredLens(LENS, "last@prompt", [0, 1])]
    with pytest.raises(
        StoreError,
        match=r"no resid states max@prompt at layer 2 .*it holds attn_out max@prompt at layers 2; resid mean@prompt at layers 0–1, 3$",
    ):
        store.matrix(run, 2, "max")


def brute_force(
    held: list[tuple[Outputs, set[int]]], wanted: list[int], outputs: Outputs
) -> dict[int, set[tuple[str, int | None]]]:
    """What each sample lacks, computed one (output, layer, sample) at a time."""
    lacking = {}
    for number in wanted:
        lacks = set()
        for name, layers in outputs.items():
            for layer in layers if layers is not None else [None]:
                if not any(
                    number in numbers and name in has and layer in (has[name] or [None]) for has, numbers in held
                ):
                    lacks.add((name, layer))
        if lacks:
            lacking[number] = lacks
    return lacking


layer_lists = st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3, unique=True)
some_outputs = st.fixed_dictionaries({}, optional={MEAN: layer_lists, LAST: layer_lists, "tokens": st.none()})
some_numbers = st.sets(st.integers(0, 7), min_size=1)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    held=st.lists(st.tuples(some_outputs, some_numbers), max_size=4),
    wanted=st.lists(st.integers(0, 9)),
    outputs=some_outputs,
)
def test_what_is_missing_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory, held: list[tuple[Outputs, set[int]]], wanted: list[int], outputs: Outputs
) -> None:
    run = make_run(tmp_path_factory.mktemp("store"))
    for has, numbers in held:
        put_shard(run, sorted(numbers), has)
    store = reader.open(run.store)
    groups = store.held(run).missing(ids(wanted), outputs)
    found = {
        name: {(o, layer) for o, layers in lacks.items() for layer in (layers if layers is not None else [None])}
        for lacks, names in groups
        for name in names
    }
    assert found == {sample_id(n): lacks for n, lacks in brute_force(held, wanted, outputs).items()}
    assert sum(len(names) for _, names in groups) == len(found)
    order = list(dict.fromkeys(ids(wanted)))
    assert all(names == sorted(names, key=order.index) for _, names in groups)
    for layer in LAYERS:
        numbers = sorted({n for has, ns in held if layer in (has.get(MEAN) or []) for n in ns})
        if numbers:
            matrix = store.matrix(run, layer)
            assert matrix.sample_ids.tolist() == ids(numbers)
            np.testing.assert_array_equal(matrix.values, expected(numbers, layer))


def test_runs_are_found_by_id_prefix_and_model(tmp_path: Path) -> None:
    one, two, three = (
        make_run(tmp_path, "org/tiny"),
        make_run(tmp_path, "org/tiny", chat=True),
        make_run(tmp_path, "big", chat=1),
    )
    store = reader.open(tmp_path)
    assert [run.id for run in store.runs()] == sorted([one.id, two.id, three.id])
    assert store.run(one.id) == one
    assert store.run(two.id[:-2]) == two
    assert store.run("big") == three
    assert store.run("b") == three
    for name in ("org/tiny", "tiny"):
        with pytest.raises(StoreError, match=rf"{name}' could be any of {min(one.id, two.id)}, {max(one.id, two.id)}"):
            store.run(name)
    with pytest.raises(StoreError, match=r"no run 'org/tony' in .*: did you mean 'org/tiny'\?"):
        store.run("org/tony")
    with pytest.raises(StoreError, match=rf"no run 'zzzz' in .*: it holds {three.id}, "):
        store.run("zzzz")
    assert repr(store).startswith(f"Store({str(tmp_path)!r}): big-")


def test_what_is_not_a_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no store at .*missing: run `layercache extract` first, or name another store$"
    ):
        reader.open(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file, not a store"):
        reader.open(tmp_path / "file")
    with pytest.raises(StoreError, match="no store at"):
        reader.open(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="is not a store"):
        reader.open(tmp_path)
    (tmp_path / "empty").mkdir()
    store = reader.open(str(tmp_path / "empty"))
    assert (store.runs(), store.frozen, repr(store)) == ([], False, f"Store({str(tmp_path / 'empty')!r}): empty")
    with pytest.raises(StoreError, match=r"no run 'x' in .*: it holds none"):
        store.run("x")


def test_a_newer_format_is_refused_and_says_what_reads_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2))
    rewrite_manifest(tmp_path, {"format": 2, "reader": "0.9.1"})
    with pytest.raises(
        StoreError, match=r"is in store format 2, this version reads 1: install layercache 0\.9\.1 or newer"
    ):
        reader.open(tmp_path).shards(run)
    text = json.loads((run.path / "run.json").read_bytes())
    (run.path / "run.json").write_text(json.dumps({**text, "format": 3, "reader": None}))
    for action in (reader.open, make_run):
        with pytest.raises(StoreError, match="store format 3, this version reads 1: install a newer layercache"):
            action(tmp_path)


SHA = "0" * 64
FILE = {"bytes": 1, "rows": 1, "sha256": SHA}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"samples.parquet": FILE, "../../../secret.parquet": FILE}},
        {"files": {"samples.parquet": FILE, "/etc/secret.parquet": FILE}},
        {"files": {"samples.parquet": FILE, "a/b.parquet": FILE}},
        {"files": {"samples.parquet": FILE, "..parquet": FILE}},
        {"files": {"samples.parquet": FILE, "passwd": FILE}},
        {"files": {"samples.parquet": FILE, "a\n.parquet": FILE}},
        {"files": {"samples.parquet": FILE, "http://x/y.parquet": FILE}},
        {"files": {}},
        {"files": {"samples.parquet": {"bytes": -1, "rows": 1, "sha256": SHA}}},
        {"files": {"samples.parquet": {"bytes": "1", "rows": 1, "sha256": SHA}}},
        {"files": None},
        {"outputs": {MEAN: ["0"]}},
        {"outputs": [MEAN]},
        {"samples": 3},
        {"condition": "other"},
        {"sha256": "x"},
    ],
)
def test_manifests_that_cannot_be_believed_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2))
    path = rewrite_manifest(tmp_path, change)
    with pytest.raises(StoreError, match=r"is malformed .*run `layercache verify`") as failure:
        reader.open(tmp_path).shards(run)
    assert str(path) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


def test_other_broken_json_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2))
    path = rewrite_manifest(tmp_path, {"run": SHA})
    with pytest.raises(StoreError, match="belongs to another run than tiny-"):
        reader.open(tmp_path).shards(run)
    for text, words in (
        (b"{", "cannot be read"),
        (b"[]", "not a file of a layercache store"),
        (b"\xff\xfe", "cannot be read"),
    ):
        path.write_bytes(text)
        with pytest.raises(StoreError, match=words) as failure:
            reader.open(tmp_path).shards(run)
        assert len(str(failure.value).splitlines()) == 1
    run_file = run.path / "run.json"
    good = json.loads(run_file.read_bytes())
    for change, words in (({"layers": None}, "is malformed"), ({"spec": {}}, "the hash is not that of the spec")):
        run_file.write_text(json.dumps({**good, **change}))
        with pytest.raises(StoreError, match=words):
            reader.open(tmp_path)


def test_a_missing_or_cut_file_is_found_before_it_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(20))
    (file,) = run.path.glob("condition=clean/shard=*/hidden.parquet")
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(
        StoreError, match=rf"damaged \({len(data) - 1} bytes, not {len(data)}\): `layercache verify --repair`"
    ):
        reader.open(tmp_path).matrix(run, 0)
    file.unlink()
    with pytest.raises(StoreError, match="is missing: `layercache verify --repair` moves the shard aside"):
        reader.open(tmp_path).matrix(run, 0)


def test_a_flipped_byte_is_not_read_as_a_number(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(200), {MEAN: [0]})
    (file,) = run.path.glob("condition=clean/shard=*/hidden.parquet")
    column = pq.read_metadata(file).row_group(0).column(5)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"hidden.parquet cannot be read .*run `layercache verify --deep`") as failure:
        reader.open(tmp_path).matrix(run, 0)
    assert len(str(failure.value).splitlines()) == 1


def test_unfinished_directories_are_not_shards_or_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    put_shard(run, range(2))
    (run.path / "condition=clean" / "shard=s0000000000000000").mkdir()
    (tmp_path / "run=half").mkdir()
    store = reader.open(tmp_path)
    assert len(store.shards(run)) == len(store.runs()) == 1


def test_inputs_name_shards_and_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    clean, other = put_shard(run, range(2)), put_shard(run, range(2), condition="patch-x")
    store = Store(tmp_path)
    assert store.input_names(run) == [f"{run.id}/clean/{clean}"]
    assert store.input_names(run, conditions=["patch-x"]) == [f"{run.id}/patch-x/{other}"]
