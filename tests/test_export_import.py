"""Out and in again: the same numbers, whatever the files; and states of other tools as a run like any other."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from command import Call
from query_store import CERTIFICATES, IDS, LAYERS, PROMPTS, RATINGS, SPLITS, WIDTH, Held, N, build

from layercache.exchange import importing, tensors
from layercache.store import reader
from layercache.store.layout import digest
from layercache.store.verify import verify

ARRAYS = [f"resid.mean@prompt.layer{layer}" for layer in range(LAYERS)]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return build(tmp_path_factory.mktemp("exchange") / "store")


def exported(call: Call, held: Held, form: str, *arguments: object) -> Path:
    called = call("export", "toy", "--store", held.path, "--format", form, "-o", "out", *arguments)
    assert called.code == 0, called
    assert called.out == ""
    assert called.err.startswith(f"out: {N} rows, ")
    assert len(called.err.splitlines()) == 1
    return Path("out")


def refused(call: Call, *arguments: object) -> str:
    called = call(*arguments)
    assert (called.code, called.out) == (2, ""), called
    assert len(called.err.splitlines()) == 1, called.err
    return called.err


def test_npz(call: Call, held: Held) -> None:
    out = exported(call, held, "npz")
    with np.load(out / "states.npz", allow_pickle=False) as found:
        for layer, name in enumerate(ARRAYS):
            np.testing.assert_array_equal(found[name], held.states[layer])
            assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found["label.rating"], RATINGS)
        assert found["label.certificate"].tolist() == [value or "" for value in CERTIFICATES]
        assert found["sample_id"].tolist() == IDS
    rows = pl.read_parquet(out / "rows.parquet")
    assert rows.columns[:4] == ["row", "sample_id", "split", "prompt"]
    assert rows["prompt"].to_list() == PROMPTS
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "rows.parquet", "states.npz"]


def test_npy_of_chosen_layers(call: Call, held: Held) -> None:
    out = exported(call, held, "npy", "--layers", "0,2", "--pooling", "mean")
    assert sorted(path.name for path in out.glob("*.npy")) == [f"{ARRAYS[0]}.npy", f"{ARRAYS[2]}.npy"]
    np.testing.assert_array_equal(np.load(out / f"{ARRAYS[2]}.npy", mmap_mode="r"), held.states[2])


def test_safetensors_by_its_own_library(call: Call, held: Held) -> None:
    out = exported(call, held, "safetensors")
    found = safetensors.numpy.load_file(out / "states.safetensors")
    assert sorted(found) == ARRAYS
    for layer, name in enumerate(ARRAYS):
        np.testing.assert_array_equal(found[name], held.states[layer])


def test_csv(call: Call, held: Held) -> None:
    out = exported(call, held, "csv")
    states = pl.read_csv(out / "states.csv", schema_overrides={f"x{k}": pl.Float32 for k in range(WIDTH)})
    assert states.columns == ["row", "sample_id", "site", "pooling", "layer", *(f"x{k}" for k in range(WIDTH))]
    values = states.select(f"x{k}" for k in range(WIDTH)).to_numpy()
    np.testing.assert_array_equal(values.reshape(LAYERS, N, WIDTH), held.states)
    assert pl.read_csv(out / "rows.csv")["rating"].to_list() == [None if np.isnan(x) else x for x in RATINGS]


def test_hugging_face_folder(call: Call, held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = exported(call, held, "hf")
    assert sorted(path.name for path in (out / "data").iterdir()) == ["test.parquet", "train.parquet"]
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {
        name: SPLITS.count(name) for name in ("train", "test")
    }
    rows = [*loaded["train"], *loaded["test"]]
    assert [row["prompt"] for row in rows] == PROMPTS
    for layer, name in enumerate(ARRAYS):
        np.testing.assert_array_equal(np.float32([row[name] for row in rows]), held.states[layer])


@pytest.mark.parametrize("form", ["npz", "npy", "safetensors"])
def test_a_round_trip_gives_the_same_numbers(call: Call, held: Held, form: str) -> None:
    exported(call, held, form)
    called = call("import", "out", "--store", "again")
    assert called.code == 0, called
    before, after = reader.open(held.path), reader.open("again")
    (run,) = after.runs()
    assert (run.model, run.width, run.final_layer, run.layers) == ("toy", WIDTH, 3, before.runs()[0].layers)
    for layer in range(LAYERS):
        old, new = before.matrix("toy", layer), after.matrix(run, layer)
        np.testing.assert_array_equal(old.values, new.values)
        np.testing.assert_array_equal(old.sample_ids, new.sample_ids)
    assert after.rows(run, "films").equals(before.rows("toy", "films"))
    assert after.labels(run, "films").equals(before.labels("toy", "films"))
    assert after.data(run)[0].split == "split"
    assert verify(Path("again"), deep=True) == []
    assert "nothing new" in call("import", "out", "--store", "again").out
    assert len(after.shards(run)) == 1


def data_file(path: Path, n: int, ids: list[str] | None = None) -> Path:
    lines = ["title,rating,genre,key"]
    lines += [f"Film {k},{k % 7}.5,{'war' if k % 2 else 'love'},{ids[k] if ids else k}" for k in range(n)]
    path.write_text("\n".join(lines) + "\n")
    return path


LABELS = ("--prompt", "Title: {title}", "--label", "rating:number", "--label", "genre:category")


def test_an_array_of_layers_becomes_a_run_that_is_probed(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, layers, width = 60, [0, 4, 8], 12
    states = rng.standard_normal((n, len(layers), width)).astype(np.float16)
    states[:, 2, 0] = np.where(np.arange(n) % 2, 3, -3)
    np.save(tmp_path / "states.npy", states)
    data = data_file(tmp_path / "films.csv", n)
    command = ("import", "states.npy", "--store", "s", "--model", "org/mine", "--layers", "0,4,8", "--pooling", "last")
    called = call(*command, "--data", data, *LABELS, "--json")
    assert called.code == 0, called
    assert called.json["samples"] == called.json["new_samples"] == n  # type: ignore[index]
    store = reader.open("s")
    (run,) = store.runs()
    assert [(one.layer, one.name) for one in run.layers] == [(0, "layer0"), (4, "layer4"), (8, "layer8")]
    found = store.matrix("org/mine", 4, "last", label="rating")
    np.testing.assert_array_equal(found.values, states[:, 1].astype(np.float32))
    np.testing.assert_array_equal(found.labels, np.arange(n) % 7 + 0.5)
    assert run.spec["imported"]["arrays"] == [f"resid.last@prompt.layer{layer}" for layer in layers]
    assert verify(Path("s"), deep=True) == []
    probed = call(
        "analyze", "-q", "probe", "--labels", "genre", "--bootstrap", "0", "--store", "s", "--format", "jsonl"
    )
    assert probed.code == 0, probed
    scores = [json.loads(line) for line in probed.out.splitlines()]
    best = max(
        (one for one in scores if one["metric"] == "accuracy" and one["layer"] is not None), key=lambda o: o["value"]
    )
    assert (best["layer"], best["value"]) == (8, 1.0)
    for other in (("ls",), ("show", "mine"), ("report", "-o", "report.html"), ("sql", "--query", "norms_by_layer")):
        assert call(*other, "--store", "s").code == 0, other


def test_a_new_label_is_new_rows_only(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "states.npy", np.random.default_rng(0).standard_normal((5, 4)))
    data = data_file(tmp_path / "films.csv", 5)
    command = (
        "import",
        "states.npy",
        "--store",
        "s",
        "--model",
        "m",
        "--layers",
        "3",
        "--pooling",
        "mean",
        "--data",
        data,
    )
    assert call(*command, "--prompt", "{title}", "--label", "rating:number").code == 0
    assert "nothing new" in call(*command, "--prompt", "{title}", "--label", "genre:category").out
    store = reader.open("s")
    (run,) = store.runs()
    assert [str(label) for label in store.data(run)[0].labels] == ["genre:category"]
    # Another order of the rows is another run: states would belong to other prompts.
    data.write_text("\n".join([data.read_text().splitlines()[0], *data.read_text().splitlines()[:0:-1]]) + "\n")
    assert call(*command, "--prompt", "{title}").code == 0
    assert len(store.runs()) == 2


def test_rows_of_one_prompt_share_a_sample(call: Call, tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    states[3] = states[1] * 1.001
    np.save(tmp_path / "states.npy", states)
    (tmp_path / "d.csv").write_text("t\na\nb\nc\nb\n")
    command = (
        "import",
        "states.npy",
        "--store",
        "s",
        "--model",
        "m",
        "--layers",
        "1",
        "--pooling",
        "last",
        "--data",
        "d.csv",
    )
    assert call(*command, "--prompt", "{t}").code == 0
    store = reader.open("s")
    assert len(store.samples("m")) == 3
    assert store.rows("m", "d")["sample_id"][1] == store.rows("m", "d")["sample_id"][3]
    states[3] = -states[1]
    np.save(tmp_path / "states.npy", states)
    assert "lines 2 and 4 have the same prompt and different states" in refused(call, *command, "--prompt", "{t}")
    assert len(store.runs()) == 1


def test_a_large_import_is_several_shards_and_goes_on_where_it_stopped(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = np.random.default_rng(0).standard_normal((55, 2, 6)).astype(np.float32)
    np.save(tmp_path / "states.npy", states)
    monkeypatch.setattr(importing, "SHARD_BYTES", 4 * 6 * 2 * 10)
    publish = importing._publish
    done = 0

    def stop(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        publish(*arguments)

    command = (
        "import",
        "-q",
        "states.npy",
        "--store",
        "s",
        "--model",
        "m",
        "--layers",
        "0,1",
        "--pooling",
        "last",
        "--json",
    )
    monkeypatch.setattr(importing, "_publish", stop)
    assert call(*command).code == 130
    assert len(reader.open("s").samples("m")) == 20
    monkeypatch.setattr(importing, "_publish", publish)
    assert call(*command).json["new_samples"] == 35  # type: ignore[index]
    store = reader.open("s")
    assert len(store.shards("m")) == 6
    found = store.matrix("m", 1, "last")
    expected = {digest({"line": line})[:24]: states[line, 1] for line in range(55)}
    np.testing.assert_array_equal(found.values, [expected[one] for one in found.sample_ids])
    assert verify(Path("s"), deep=True) == []


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of float32 numbers that fit into it."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_bfloat16(path: Path, states: np.ndarray, tokens: np.ndarray) -> None:
    """What vLLM writes: hidden_states in bfloat16 [tokens, layers, d], token_ids [tokens]."""
    content = {"hidden_states": ("BF16", states.shape, bfloat16(states).tobytes())}
    content["token_ids"] = ("I64", tokens.shape, tokens.astype("<i8").tobytes())
    header: dict[str, Any] = {}
    offset = 0
    for name, (kind, shape, data) in content.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in content.values()))


@pytest.fixture
def vllm(tmp_path: Path) -> dict[str, np.ndarray]:
    """A folder of vLLM's files: request `11` comes after `2`, so row order is not that of names as text."""
    rng = np.random.default_rng(0)
    (tmp_path / "vllm").mkdir()
    found = {}
    for number, length in ((0, 3), (2, 5), (11, 2)):
        # Numbers that bfloat16 holds exactly.
        states = rng.integers(-64, 64, (length, 2, 8)).astype(np.float32) / 4
        write_bfloat16(tmp_path / "vllm" / f"{number}-ab12.safetensors", states, np.arange(length) + number)
        (tmp_path / "vllm" / f"{number}-ab12.safetensors.lock").touch()
        found[f"{number}-ab12"] = states
    return found


VLLM = ("import", "vllm", "--store", "s", "--model", "Qwen/Qwen3-8B", "--layers", "36,1")


@pytest.mark.parametrize("how", ["last", "first", "mean+special"])
def test_what_vllm_writes(call: Call, vllm: dict[str, np.ndarray], tmp_path: Path, how: str) -> None:
    data_file(tmp_path / "films.csv", 3)
    called = call(*VLLM, "--pooling", how, "--data", "films.csv", *LABELS)
    assert called.code == 0, called
    store = reader.open("s")
    pooled = {"last": lambda s: s[-1], "first": lambda s: s[0], "mean+special": lambda s: s.mean(0)}[how]
    for index, layer in enumerate((1, 36)):
        found = store.matrix("Qwen/Qwen3-8B", layer, how, label="rating")
        expected = [pooled(states)[index] for states in vllm.values()]
        np.testing.assert_allclose(found.values, expected, rtol=1e-6)
        assert found.labels.tolist() == [0.5, 1.5, 2.5]
    samples = store.samples("Qwen/Qwen3-8B")
    assert sorted(samples["n_tokens"]) == [2, 3, 5]
    # Samples are called as those of a run of the same tokens are.
    expected_id = digest({"tokens": [0, 1, 2], "spans": [["prompt", 0, 3]], "target": None})[:24]
    assert store.rows("Qwen/Qwen3-8B", "films")["sample_id"][0] == expected_id
    assert verify(Path("s"), deep=True) == []


def test_lines_are_aligned_by_an_id(call: Call, vllm: dict[str, np.ndarray], tmp_path: Path) -> None:
    data_file(tmp_path / "films.csv", 4, ["11-ab12", "none", "0-ab12", "11-ab12"])
    called = call(
        *VLLM,
        "--pooling",
        "last",
        "--data",
        "films.csv",
        "--prompt",
        "{genre}",
        "--label",
        "rating:number",
        "--id",
        "key",
    )
    assert called.code == 0, called
    assert "1 of 4 rows have no state" in called.out
    assert "1 of 3 states belong to no row" in called.out
    store = reader.open("s")
    found = store.matrix("Qwen/Qwen3-8B", 36, "last", label="rating")
    assert found.rows.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(found.values[:2], [vllm["11-ab12"][-1, 1], vllm["0-ab12"][-1, 1]])
    np.testing.assert_array_equal(found.values[0], found.values[2])


def test_arrays_that_are_called_by_their_layer(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"layers.{k}": rng.standard_normal((5, 4)).astype(np.float32) for k in (0, 10, 2)}
    ids = np.array(["e", "d", "c", "b", "a"])
    np.savez(tmp_path / "states.npz", **arrays, ids=ids, mask=np.ones((5, 3), bool))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"t{k}", "k": k}) + "\n" for k in "abcde"))
    called = call(
        "import", "states.npz", "--store", "s", "--model", "m", "--pooling", "mean", "--data", "d.jsonl", "--id", "k"
    )
    assert called.code == 0, called
    store = reader.open("s")
    assert store.features("m")[0].layers == [0, 2, 10]
    prompts = dict(store.samples("m").select("sample_id", "prompt").iter_rows())
    found = store.matrix("m", 10)
    for one, values in zip(found.sample_ids, found.values):
        np.testing.assert_array_equal(values, arrays["layers.10"][ids.tolist().index(prompts[one][1])])


def test_states_without_data(call: Call, tmp_path: Path) -> None:
    safetensors.numpy.save_file({"h": np.ones((3, 2, 4), np.float32)}, tmp_path / "x.safetensors")
    command = ("import", "x.safetensors", "--store", "s", "--model", "m", "--layers", "0,1", "--pooling", "last")
    assert call(*command).code == 0
    assert reader.open("s").matrix("m", 1, "last").values.shape == (3, 4)
    exported_again = call("export", "m", "--store", "s", "-o", "out")
    assert exported_again.code == 0
    assert np.load("out/states.npz")["resid.last@prompt.layer0"].shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("states.npy", "--layers", "0", "--pooling", "last"), "--model"),
        (("states.npy", "--model", "m", "--pooling", "last"), "number its 1 with --layers"),
        (("states.npy", "--model", "m", "--layers", "0,1", "--pooling", "last"), "holds 1 layers, --layers numbers 2"),
        (("states.npy", "--model", "m", "--layers", "x", "--pooling", "last"), "separated by commas"),
        (("states.npy", "--model", "m", "--layers", "0"), "--pooling"),
        (("states.npy", "--model", "m", "--layers", "0", "--pooling", "median"), "median"),
        (("none.npy", "--model", "m"), "no file none.npy"),
        (("objects.npy", "--model", "m"), "Python objects"),
        (("two.npz", "--model", "m", "--layers", "0", "--pooling", "last"), "choose one with --key"),
        (("cut.safetensors", "--model", "m"), "cut short"),
        (("lie.safetensors", "--model", "m"), "does not lie where the header says"),
        (("films.csv", "--model", "m"), "unknown kind of file"),
        (("empty", "--model", "m"), "holds no"),
        (
            (
                "states.npy",
                "--model",
                "m",
                "--layers",
                "0",
                "--pooling",
                "last",
                "--data",
                "films.csv",
                "--prompt",
                "{title}",
            ),
            "9 rows, the files hold 4",
        ),
        (
            (
                "states.npy",
                "--model",
                "m",
                "--layers",
                "0",
                "--pooling",
                "last",
                "--data",
                "films.csv",
                "--prompt",
                "{title}",
                "--id",
                "key",
            ),
            "do not name their lines",
        ),
        (("nan.npy", "--model", "m", "--layers", "0", "--pooling", "last"), "not finite"),
        (("states.npy", "--model", "m", "--label", "rating:number"), "--labels goes with --data"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    good = np.random.default_rng(0).standard_normal((4, 3))
    np.save(tmp_path / "states.npy", good)
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=good, b=good)
    safetensors.numpy.save_file({"h": good.astype(np.float32)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:20])
    (tmp_path / "lie.safetensors").write_bytes(whole[:-4])
    (tmp_path / "empty").mkdir()
    data_file(tmp_path / "films.csv", 9)
    assert words in refused(call, "import", *arguments, "--store", "s")
    assert not list(Path("s").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("toy", "--layers", "9"), "no resid layer 9 of mean@prompt"),
        (("toy", "--pooling", "last"), "no resid states last@prompt"),
        (("toy", "--site", "mlp_out"), "mlp_out"),
        (("toy", "--data", "books"), "no data set 'books'"),
        (("toy", "--format", "xlsx"), "unknown format 'xlsx'"),
        (("tay",), "did you mean 'toy"),
        ((), "one of RUN"),
        (("toy", "--sql", "SELECT 1"), "one of RUN"),
        (("--sql", "SELECT 1"), "suffix"),
        (("--sql", "SELECT 1", "--layers", "3"), "--layers goes with RUN"),
        (("--sql", "COPY (SELECT 1) TO 'x'"), "not COPY"),
    ],
)
def test_what_cannot_be_exported_is_one_line(call: Call, held: Held, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(call, "export", *arguments, "--store", held.path, "-o", "out")
    assert list(Path().iterdir()) == []


def test_nothing_is_written_over(call: Call, held: Held) -> None:
    Path("out").write_text("mine")
    assert "exists" in refused(call, "export", "toy", "--store", held.path, "-o", "out")
    Path("out.csv").write_text("mine")
    assert "exists" in refused(call, "export", "--sql", "SELECT 1", "--store", held.path, "-o", "out.csv")
    assert Path("out").read_text() == Path("out.csv").read_text() == "mine"


QUERY = (
    "SELECT sample_id, layer, vector, rating, certificate FROM hidden JOIN rows USING (sample_id) ORDER BY layer, row"
)


def test_a_query_becomes_a_file(call: Call, held: Held) -> None:
    for name in ("q.csv", "q.json", "q.jsonl", "q.md", "q.parquet", "q.npz"):
        assert call("export", "-q", "--sql", QUERY, "--store", held.path, "-o", name).code == 0
    np.testing.assert_array_equal(pq.read_table("q.parquet")["vector"].to_pylist(), held.states.reshape(-1, WIDTH))
    with np.load("q.npz") as found:
        np.testing.assert_array_equal(found["vector"], held.states.reshape(-1, WIDTH))
        np.testing.assert_array_equal(found["rating"][:N], RATINGS)
        assert found["certificate"][:N].tolist() == [value or "" for value in CERTIFICATES]
    assert len(pl.read_csv("q.csv")) == len(json.loads(Path("q.json").read_text())) == N * LAYERS
    assert "certificate is not numbers" in refused(
        call, "export", "--sql", QUERY, "--store", held.path, "-o", "q.safetensors"
    )
    query = "SELECT vector, layer FROM hidden ORDER BY layer, sample_id"
    assert call("export", "-q", "--sql", query, "--store", held.path, "-o", "q.safetensors").code == 0
    np.testing.assert_array_equal(
        safetensors.numpy.load_file("q.safetensors")["vector"], held.states.reshape(-1, WIDTH)
    )
    assert (
        call("export", "-q", "--query", "entropy_by_layer", "--format", "hf", "--store", held.path, "-o", "hf").code
        == 0
    )
    with duckdb.connect() as connection:
        assert connection.sql("SELECT count(*) FROM 'hf/data/*.parquet'").fetchall() == [(LAYERS,)]


def test_a_span_that_is_called_like_a_path_stays_a_name(call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "states.npy", np.ones((2, 3)))
    pooling = "last@../../evil/%2f"
    assert call("import", "states.npy", "--store", "s", "--model", "m", "--layers", "0", "--pooling", pooling).code == 0
    for form in ("npy", "npz", "safetensors"):
        assert call("export", "m", "--store", "s", "-o", form, "--format", form).code == 0
        assert call("import", form, "--store", f"{form}-again").code == 0
        (feature,) = reader.open(f"{form}-again").features("m")
        assert feature.pooling == pooling
    assert [path.name for path in Path("npy").glob("*.npy")] == ["resid.last@..%2F..%2Fevil%2F%252f.layer0.npy"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "b1", "i8"])
def test_safetensors_are_read_as_their_library_reads_them(tmp_path: Path, dtype: str) -> None:
    values = (np.random.default_rng(0).standard_normal((3, 4)) * 5).astype(dtype)
    safetensors.numpy.save_file({"a": values, "b": values[:0]}, tmp_path / "x.safetensors", {"k": "v"})
    found = tensors.read_arrays(tmp_path / "x.safetensors")
    expected = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name].values, expected[name])
        assert found[name].float32(slice(None)).dtype == np.float32


def test_bfloat16_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"a": values}, tmp_path / "x.safetensors")
    found = tensors.read_arrays(tmp_path / "x.safetensors")["a"]
    np.testing.assert_array_equal(found.float32(slice(1, 4)), values[1:4].float().numpy())


LIMITED = """
import resource, sys
from layercache.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.argv[0] = "layercache"
main()
"""


@pytest.mark.parametrize("fmt", ["npz", "npy", "safetensors", "csv", "hf", "sql"])
def test_a_disk_that_takes_no_more_is_one_line(fmt: str, tmp_path: Path) -> None:
    """Nothing is left of what was begun, under no name."""
    what = ["--sql", "FROM hidden", "-o", "out.csv"] if fmt == "sql" else ["demo-f10", "--format", fmt, "-o", "out"]
    store = Path(__file__).parents[1] / "store"
    words = [sys.executable, "-c", LIMITED, "export", *what, "--store", str(store), "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot write out")
    assert re.search("File too large|is the disk full", done.stderr)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file system that is only read even taking back what is not there is an error."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(Path, "open", refused)
    store = Path(__file__).parents[1] / "store"
    done = call("export", "--sql", "SELECT 1 AS one", "-o", "out.csv", "--store", store)
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: cannot write out.csv: Read-only file system\n"
