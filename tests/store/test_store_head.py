"""The file of a run's head: whole or not there, damage found, and read without torch."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from store_builder import (
    LAST,
    LAYERS,
    MEAN,
    PIECES,
    VOCABULARY,
    WIDTH,
    add_samples,
    add_tokens,
    make_head,
    make_run,
    put_shard,
    sample_id,
    state,
)

from layercache import listing
from layercache.errors import AnalysisError, StoreError
from layercache.head import Head, Linear, float32
from layercache.store import head as heads
from layercache.store import reader, tensors
from layercache.store.layout import Run
from layercache.store.verify import verify
from layercache.store.writer import Shard


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = make_run(tmp_path / "store")
    put_shard(made, range(5), {LAST: LAYERS, MEAN: LAYERS})
    return made


def logits(head: Head, states: np.ndarray) -> np.ndarray:
    """The formula, in float64."""
    assert head.norm is not None
    assert head.norm.weight is not None
    assert head.norm.bias is not None
    x = states.astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + head.norm.eps)
    x = x * head.norm.weight + head.norm.bias
    z = (x @ float32(head.unembedding.weight).T.astype(np.float64)) * head.scale
    return np.asarray(head.softcap * np.tanh(z / head.softcap))


@pytest.mark.parametrize("bits", [np.uint16, np.float16, np.float32])
def test_what_is_written_is_read_back(run: Run, bits: type) -> None:
    head = make_head(bits)
    path = heads.write(run, head)
    assert path.parent == run.path
    found = heads.read(run)
    assert found.unembedding.weight.dtype == bits
    assert np.array_equal(found.unembedding.weight, head.unembedding.weight)
    assert (found.texts, found.pieces, found.scale, found.softcap) == (head.texts, head.pieces, 0.5, 4.0)
    states = np.stack([state(sample_id(n), "resid", "last@prompt", 2) for n in range(5)])
    np.testing.assert_allclose(found.logits(states), logits(head, states), rtol=1e-5, atol=1e-5)
    table = reader.open(run.store).lens(run, 2, top_k=2)
    assert table["top_ids"].to_pylist() == np.argsort(-logits(head, states), axis=1)[:, :2].tolist()
    assert listing.runs(reader.open(run.store))["head"].to_pylist() == [path.stat().st_size]
    described = listing.describe(reader.open(run.store), run.id)["head"]
    assert (described["file"], described["vocabulary"], described["norm"]) == (
        path.name,
        VOCABULARY,
        "layer, eps 1e-05",
    )


def test_it_is_written_once(run: Run) -> None:
    first = heads.write(run, make_head())
    assert heads.write(run, make_head(np.float32)) == first
    assert list(run.path.glob("head-*")) == [first]
    assert not list(run.store.glob(".tmp/*"))
    assert first.stat().st_mode & 0o777 == (run.path / "run.json").stat().st_mode & 0o777


def test_of_two_the_smaller_name_counts(run: Run) -> None:
    first = heads.write(run, make_head())
    moved = first.rename(run.path / "kept")
    second = heads.write(run, make_head(np.float32))
    moved.rename(first)
    assert heads.find(run) == min(first, second)
    assert verify(run.store, deep=True) == []


def test_nothing_is_left_of_a_failed_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "write", full)
    with pytest.raises(StoreError, match="the disk is full"):
        heads.write(run, make_head())
    assert heads.find(run) is None
    assert not list(run.store.glob(".tmp/*"))


def test_a_frozen_store_takes_no_head(run: Run) -> None:
    (run.store / "FROZEN").write_text("make another")
    with pytest.raises(StoreError, match="frozen: make another"):
        heads.write(run, make_head())


def test_a_flipped_byte_is_found(run: Run) -> None:
    path = heads.write(run, make_head())
    good = path.read_bytes()
    for place in range(0, len(good), 17):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        (problem,) = verify(run.store, deep=True)
        assert problem.path == path
    path.write_bytes(good)
    assert verify(run.store, deep=True) == []


def test_a_cut_file_is_found_without_reading_it_and_refused(run: Run) -> None:
    path = heads.write(run, make_head())
    good = path.read_bytes()
    for size in (0, 4, 100, len(good) - 1):
        path.write_bytes(good[:size])
        (problem,) = verify(run.store)
        assert problem.path == path
        with pytest.raises(StoreError, match="cannot be read"):
            reader.open(run.store).lens(run)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(StoreError, match="header is too long"):
        heads.read(run)


def test_strange_files_are_found(run: Run) -> None:
    heads.write(run, make_head())
    (run.path / "head-old.safetensors").write_bytes(b"")
    assert [problem.what for problem in verify(run.store)] == ["is not the name of a head: delete it"]


def rewrite(path: Path, change: Any) -> None:
    """Write a head's file with other metadata, under the name it had."""
    found, metadata = tensors.read(path)
    value = json.loads(metadata["layercache"])
    change(found, value)
    copied = {name: np.array(values) for name, values in found.items()}
    tensors.write(path, copied, {"layercache": json.dumps(value)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, v: v.update(format=2, reader="9.9"), "store format 2, this version reads 1: install layercache 9.9"),
        (lambda _, v: v.update(run="0" * 64), "belongs to another run"),
        (lambda _, v: v["norm"].update(kind="batch"), "norm 'batch'"),
        (lambda _, v: v.pop("scale"), "scale"),
        (lambda t, _: t.pop("unembedding.weight"), "unembedding.weight"),
        (lambda t, _: t.update({"norm.weight": np.ones(3, np.float32)}), "norm.weight does not fit"),
        (lambda t, _: t.update({"texts.offsets": t["texts.offsets"][:-1]}), "its vocabulary"),
        (lambda t, _: t.update({"texts.offsets": t["texts.offsets"] + 10**6}), "malformed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(run: Run, change: Any, message: str) -> None:
    path = heads.write(run, make_head())
    rewrite(path, change)
    with pytest.raises(StoreError, match=message) as raised:
        heads.read(run)
    assert "\n" not in str(raised.value)
    assert [problem.path for problem in verify(run.store)] == [path]


def test_a_later_field_or_tensor_is_let_be(run: Run) -> None:
    path = heads.write(run, make_head())
    rewrite(path, lambda t, v: (v.update(new=1), t.update({"new": np.ones(2, np.float32)})))
    assert heads.read(run).vocabulary == VOCABULARY


def test_tokens_are_found_by_id_text_and_piece() -> None:
    head = make_head()
    assert [head.token(one) for one in (5, " Paris", "▁Paris", "7", "é", "<Paris>")] == [5, 2, 2, 7, 8, 10]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (VOCABULARY, "ids are 0 to 10"),
        (-1, "ids are 0 to 10"),
        ("PARIS", "' paris', ' Paris'"),
        ("London", "near ones are ' Lond'"),
        ("7 ", "near ones are '7'"),
        ("", "no single token"),
        ("zzz", "give the id instead"),
    ],
)
def test_unknown_tokens_say_what_is_near(wanted: int | str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message) as raised:
        make_head().token(wanted)
    assert "\n" not in str(raised.value)


def test_a_text_of_several_tokens_asks_which() -> None:
    head = make_head(pieces=pa.array([*PIECES[:3], "x", *PIECES[4:]]))
    with pytest.raises(AnalysisError, match=r"is 2 tokens, 3 \('x'\), 10 \('<Paris>'\)"):
        head.token("Paris")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pooling": "mean"}, "only ever sees the state of one token"),
        ({"pooling": "max@prompt"}, "only ever sees the state of one token"),
        ({"pooling": "mean-sinks"}, "only ever sees the state of one token"),
        ({"pooling": "first"}, "holds no states first@prompt under .* it holds last@prompt at 0, 1, 2, 3"),
        ({"layers": 7}, "has no layer 7: it has 0 to 3"),
        ({"layers": []}, "holds no states"),
        ({"condition": "knockout-x"}, "none .extract with --pooling last."),
        ({"top_k": 0}, "top_k is 0"),
        ({"targets": ["nope"]}, "no single token"),
        ({"sample_ids": ["nope"]}, "no sample 'nope'"),
    ],
)
def test_questions_without_an_answer_are_refused(run: Run, asked: dict[str, Any], message: str) -> None:
    heads.write(run, make_head())
    with pytest.raises((AnalysisError, StoreError), match=message) as raised:
        reader.open(run.store).lens(run, **asked)
    assert "\n" not in str(raised.value)


def test_a_run_without_a_head_says_how_to_add_it(run: Run) -> None:
    with pytest.raises(StoreError, match="again with --save-head"):
        reader.open(run.store).lens(run)
    assert listing.runs(reader.open(run.store))["head"].to_pylist() == [None]
    assert "head: -" in listing.as_text(listing.describe(reader.open(run.store), run.id))


def test_samples_asked_for_are_the_rows(run: Run) -> None:
    heads.write(run, make_head())
    store = reader.open(run.store)
    table = store.lens(run, [1, 3], sample_ids=[sample_id(4), sample_id(1)], targets=["é", 2])
    assert table["sample_id"].to_pylist() == [sample_id(n) for n in (1, 1, 4, 4)] * 2
    assert table["target_token"].to_pylist() == ["é", " Paris"] * 4
    assert table["layer"].to_pylist() == [1] * 4 + [3] * 4
    assert len(store.lens(run, sample_ids=[])) == 0


def test_every_token_has_a_lens_and_follows_the_next(run: Run) -> None:
    """States of the tokens 1 to 3 of two samples, in one layer; the last one's target is the sample's."""
    ids, places = [sample_id(n) for n in (8, 9)], [1, 2, 3]
    shard = Shard(run, {"hidden:resid:token@prompt": [2], "tokens": None}, provenance={})
    add_samples(shard, ids)
    add_tokens(shard, ids)
    vectors = np.random.default_rng(5).standard_normal((6, WIDTH), dtype=np.float32)
    columns = {"sample_id": np.repeat(ids, 3).tolist(), "position": places * 2, "layer": [2] * 6}
    shard.add("hidden", {**columns, "site": ["resid"] * 6, "pooling": ["token@prompt"] * 6, "vector": vectors})
    shard.publish()
    head = make_head()
    heads.write(run, head)
    table = reader.open(run.store).lens(run, pooling="token", top_k=1)
    assert table["sample_id"].to_pylist() == columns["sample_id"]
    assert table["position"].to_pylist() == columns["position"]
    expected = logits(head, vectors).astype(np.float32)
    assert [ids[0] for ids in table["top_ids"].to_pylist()] == expected.argmax(1).tolist()
    # Token ids of the test's store are 10 + position; 11 and more are outside this small vocabulary.
    assert table["target_id"].to_pylist() == [None] * 6
    assert table["kl_to_final"].null_count == 6


def test_tokens_that_follow_are_the_targets(run: Run) -> None:
    shard = Shard(run, {"hidden:resid:first@prompt": [3], "tokens": None}, provenance={})
    add_samples(shard, [sample_id(8)])
    add_tokens(shard, [sample_id(8)])
    columns = {"sample_id": [sample_id(8)], "position": [0], "layer": [3], "site": ["resid"]}
    shard.add("hidden", {**columns, "pooling": ["first@prompt"], "vector": np.ones((1, WIDTH), np.float32)})
    shard.publish()
    more = np.random.default_rng(1).standard_normal((14, WIDTH), dtype=np.float32)
    heads.write(run, make_head(unembedding=Linear(more, None), texts=pa.array(["t"] * 14), pieces=pa.array(["t"] * 14)))
    table = reader.open(run.store).lens(run, pooling="first")
    assert table["target_id"].to_pylist() == [11]
    assert table["kl_to_final"].to_pylist() == [pytest.approx(0, abs=1e-6)]
    assert table["agrees_with_final"].to_pylist() == [True]
