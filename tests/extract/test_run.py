"""The stage as a whole: what is stored, what is not run twice, and what happens when it stops half-way."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from layercache.errors import DataError, ModelError, StoreError
from layercache.extract import batching, estimate, forward, loop, model, publish
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec, Label, ModelSpec
from layercache.store import reader, verify
from layercache.store.writer import Shard

from .conftest import TEXTS, make_data
from .reference import Reference, close

ROWS = [{"text": f"{text} Part {i}.", "rating": i / 2} for i in range(5) for text in TEXTS]
SPEC = ExtractSpec(batch_tokens=64, lens=["last"])


def run(
    folder: Path, store: Path, rows: list[dict[str, Any]] | None = None, spec: ExtractSpec = SPEC, **kw: Any
) -> Summary:
    data = kw.pop("data", None) or make_data(rows or ROWS)
    return extract(ModelSpec(model=str(folder)), data, spec, store, kw.pop("progress", Progress()), **kw)


@pytest.fixture
def llama(models_of: Callable[..., Path]) -> Path:
    return models_of("llama")


def contents(store: Path, run_id: str) -> dict[str, pl.DataFrame]:
    """Every table, in order."""
    opened = reader.open(store)
    tables = {
        "hidden": "site, layer, pooling, sample_id",
        "lens": "output, layer, sample_id",
        "tokens": "sample_id, position",
    }
    found = {}
    for table, order in tables.items():
        frame = pl.from_arrow(opened.sql(f"SELECT * FROM {table} WHERE run = ? ORDER BY {order}", [run_id]))
        assert isinstance(frame, pl.DataFrame)
        found[table] = frame
    return found


def same(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> None:
    """Equal keys, and values within the noise floor and one storage step."""
    for table, frame in left.items():
        other = right[table]
        keys = [
            name for name in frame.columns if name in ("sample_id", "site", "layer", "pooling", "output", "position")
        ]
        assert frame.select(keys).equals(other.select(keys))
        if table == "hidden":
            a, b = (np.array(one["vector"].to_list()) for one in (frame, other))
            assert (np.abs(a - b) <= np.abs(b) * 2.0**-9 + 2e-5 * np.abs(b).max(1, keepdims=True)).all()
        for name in ("entropy", "target_logprob", "kl_to_final"):
            if name in frame.columns:
                np.testing.assert_allclose(
                    frame[name].to_numpy().astype(float), other[name].to_numpy().astype(float), rtol=1e-3, atol=1e-4
                )


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(model, "load", fail)


def test_summary_counts(llama: Path, tmp_path: Path) -> None:
    summary = run(llama, tmp_path / "s", [*ROWS, ROWS[0]])
    assert (summary.rows, summary.samples, summary.new_samples, summary.forward_passes, summary.cached) == (
        41,
        40,
        40,
        40,
        0,
    )
    opened = reader.open(tmp_path / "s")
    assert summary.tokens == len(contents(tmp_path / "s", summary.run)["tokens"]) <= summary.padded_tokens
    assert summary.batches >= summary.tokens // 64
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("s/run=*/condition=*/shard=*/*.parquet"))
    assert summary.bytes == on_disk
    json.dumps(asdict(summary))
    assert "40 forward passes" in str(summary)
    assert not verify.verify(tmp_path / "s", deep=True)
    rows = opened.rows(summary.run, "data")
    assert rows["sample_id"][40] == rows["sample_id"][0]
    assert rows["row"].to_list() == list(range(41))


def test_twice_is_no_forward_pass_and_no_weights(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(llama, tmp_path / "s")
    no_weights(monkeypatch)
    second = run(llama, tmp_path / "s")
    assert (second.forward_passes, second.cached, second.run) == (0, 40, first.run)
    assert "0 forward passes" in str(second)


def test_a_new_label_is_no_forward_pass(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(llama, tmp_path / "s")
    no_weights(monkeypatch)
    data = make_data([row | {"rating": 9.0} for row in ROWS], labels=[Label("rating", "number")])
    summary = run(llama, tmp_path / "s", data=data)
    store = reader.open(tmp_path / "s")
    assert summary.forward_passes == 0
    assert set(store.labels(summary.run, "data")["number"]) == {9.0}


def test_rows_and_labels_that_an_extraction_leaves_out_are_named(llama: Path, tmp_path: Path) -> None:
    labelled = make_data([row | {"rating": 9.0} for row in ROWS], labels=[Label("rating", "number")])
    assert run(llama, tmp_path / "s", data=labelled).notes == []
    same = run(llama, tmp_path / "s", data=labelled)
    assert same.notes == []
    (note,) = run(llama, tmp_path / "s", data=make_data(ROWS[:10])).notes
    assert (
        "the rows of data are replaced by this extraction's: they are 10, not 40 and they declare no label rating"
        in note
    )
    assert run(llama, tmp_path / "s", data=labelled).forward_passes == 0
    assert len(reader.open(tmp_path / "s").labels(same.run, "data")) == 40


def test_ten_more_rows_are_ten_passes(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", ROWS[:30])
    summary = run(llama, tmp_path / "s", ROWS)
    assert (summary.forward_passes, summary.new_samples, summary.cached) == (10, 10, 30)


def test_row_order_names_and_data_set_do_not_count(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s")
    data = replace(make_data(list(reversed(ROWS)), name="other"), source="elsewhere.csv")
    assert run(llama, tmp_path / "s", data=data).forward_passes == 0


def test_a_new_pooling_stores_only_that(llama: Path, tmp_path: Path) -> None:
    first = run(llama, tmp_path / "s")
    before = {shard.name for shard in reader.open(tmp_path / "s").shards(first.run)}
    second = run(llama, tmp_path / "s", spec=SPEC.model_copy(update={"pooling": ["mean@prompt", "max@text"]}))
    added = [one for one in reader.open(tmp_path / "s").shards(second.run) if one.name not in before]
    assert second.forward_passes == 40
    assert second.new_samples == 0
    assert [list(shard.outputs) for shard in added] == [["hidden:resid:max@text"]]
    assert set(added[0].files) == {"samples.parquet", "hidden.parquet"}


def test_some_layers_then_all(llama: Path, tmp_path: Path) -> None:
    first = run(llama, tmp_path / "s", spec=SPEC.model_copy(update={"layers": [0, 3]}))
    second = run(llama, tmp_path / "s")
    shards = reader.open(tmp_path / "s").shards(second.run)
    layers = sorted(shard.outputs["hidden:resid:mean@prompt"] for shard in shards)
    assert layers == [[0, 3], [1, 2, 4]]
    assert first.run == second.run
    whole = run(llama, tmp_path / "whole")
    same(contents(tmp_path / "s", second.run), contents(tmp_path / "whole", whole.run))
    assert run(llama, tmp_path / "s").forward_passes == 0


def test_an_early_layer_does_not_run_the_later_ones(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    load = model.load

    def watched(plan: Any) -> Any:
        loaded = load(plan)
        for i, block in enumerate(loaded.structure.blocks):
            block.mlp.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        return loaded

    monkeypatch.setattr(model, "load", watched)
    run(llama, tmp_path / "s", spec=ExtractSpec(layers=[1], lens=[], self_check=False))
    assert set(ran) == {0}
    ran.clear()
    run(llama, tmp_path / "s0", spec=ExtractSpec(layers=[0], lens=[], self_check=False))
    assert not ran


def test_the_same_content_elsewhere_is_the_same_run(llama: Path, tmp_path: Path) -> None:
    first = run(llama, tmp_path / "s")
    copy = Path(shutil.copytree(llama, tmp_path / "a copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": "x", "transformers_version": "0"}))
    second = run(copy, tmp_path / "s")
    assert (second.run, second.forward_passes) == (first.run, 0)


def test_what_changes_a_number_is_another_run(llama: Path, models_of: Callable[..., Path], tmp_path: Path) -> None:
    runs = {run(llama, tmp_path / "s", ROWS[:2]).run}
    runs.add(run(llama, tmp_path / "s", ROWS[:2], spec=SPEC.model_copy(update={"dtype": "bfloat16"})).run)
    runs.add(run(llama, tmp_path / "s", ROWS[:2], spec=SPEC.model_copy(update={"attn": "eager"})).run)
    runs.add(run(llama, tmp_path / "s", ROWS[:2], spec=SPEC.model_copy(update={"truncate": True})).run)
    runs.add(run(models_of("llama", seed=1), tmp_path / "s", ROWS[:2]).run)
    runs.add(run(llama, tmp_path / "s", data=make_data(ROWS[:2], "> {text}")).run)
    runs.add(run(llama, tmp_path / "s", data=make_data(ROWS[:2], chat=True)).run)
    assert len(runs) == 7


class _Killed(BaseException):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Stop the run, as Ctrl-C would, after so many batches."""
    run_batch = forward.Forward.run
    done = iter(range(10_000))

    def stopping(self: Any, batch: Any) -> Any:
        if batch.samples[0].text and next(done) == batches:
            raise _Killed
        return run_batch(self, batch)

    monkeypatch.setattr(forward.Forward, "run", stopping)


def test_a_killed_run_goes_on_where_it_stopped(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, 6)
        with pytest.raises(_Killed):
            run(llama, tmp_path / "s", shard_bytes=1)
    store = reader.open(tmp_path / "s")
    stored = store.runs()[0]
    done = len(store.samples(stored))
    # Every batch was a shard of its own; all but the one that was running are there, and the rows are.
    assert 0 < done < 40
    assert len(store.shards(stored)) == 6
    assert len(store.rows(stored, "data")) == 40
    summary = run(llama, tmp_path / "s")
    assert (summary.forward_passes, summary.cached) == (40 - done, done)
    whole = run(llama, tmp_path / "whole")
    same(contents(tmp_path / "s", summary.run), contents(tmp_path / "whole", whole.run))
    assert not verify.verify(tmp_path / "s", deep=True)


def test_batches_do_not_change_the_numbers(llama: Path, tmp_path: Path) -> None:
    one = run(llama, tmp_path / "one", spec=SPEC.model_copy(update={"batch_tokens": 1}))
    many = run(llama, tmp_path / "many", spec=SPEC.model_copy(update={"batch_tokens": 4096, "seed": 7}))
    assert one.batches == 40
    assert many.batches == 1
    assert one.run == many.run
    same(contents(tmp_path / "one", one.run), contents(tmp_path / "many", many.run))


def test_running_out_of_memory_halves_the_batches(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_batch = forward.Forward.run

    def limited(self: Any, batch: Any) -> Any:
        if batch.input_ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_batch(self, batch)

    said: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "run", limited)
        summary = run(llama, tmp_path / "s", spec=SPEC.model_copy(update={"batch_tokens": 2000}), progress=Notes())
    assert summary.forward_passes == 40
    assert said == summary.notes
    last = int(said[-1].removeprefix("memory ran out: batches are now ").removesuffix(" tokens"))
    assert 75 <= last <= 150
    whole = run(llama, tmp_path / "whole")
    same(contents(tmp_path / "s", summary.run), contents(tmp_path / "whole", whole.run))


def test_memory_that_is_too_small_for_one_prompt(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(forward.Forward, "run", never)
    with pytest.raises(ModelError, match="single prompt of"):
        run(llama, tmp_path / "s", spec=SPEC.model_copy(update={"self_check": False}))


def test_other_errors_of_torch_are_not_hidden(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, batch: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(forward.Forward, "run", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(llama, tmp_path / "s", spec=SPEC.model_copy(update={"self_check": False}))


def test_errors_of_the_writer_reach_the_caller(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Shard) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Shard, "publish", full)
    threads = threading.active_count()
    for limit in (1, 10**9):
        with pytest.raises(StoreError, match="the disk is full"):
            run(llama, tmp_path / "s", shard_bytes=limit)
    assert threading.active_count() == threads


def test_shards_close_by_size_and_age(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = run(llama, tmp_path / "size", shard_bytes=60_000)
    shards = reader.open(tmp_path / "size").shards(summary.run)
    assert 2 <= len(shards) < summary.batches
    clock = iter(range(0, 100_000, 30))
    monkeypatch.setattr(publish.time, "monotonic", lambda: next(clock))
    summary = run(llama, tmp_path / "age")
    assert 5 <= len(reader.open(tmp_path / "age").shards(summary.run)) <= summary.batches


def test_dry_run_writes_nothing_and_is_close(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        no_weights(patch)
        planned = run(llama, tmp_path / "s", dry_run=True)
    assert not (tmp_path / "s").exists()
    done = run(llama, tmp_path / "s")
    assert planned.dry_run
    assert (planned.forward_passes, planned.tokens, planned.samples) == (done.forward_passes, done.tokens, done.samples)
    assert planned.free_bytes > 0
    assert 0.75 < sum(planned.estimate.values()) / done.bytes < 1.35
    assert "would run 40 samples" in str(planned)
    after = run(llama, tmp_path / "s", dry_run=True)
    assert (after.forward_passes, after.cached, after.run, sum(after.estimate.values())) == (0, 40, done.run, 0)
    more = run(
        llama, tmp_path / "s", dry_run=True, spec=SPEC.model_copy(update={"pooling": ["mean@prompt", "max@prompt"]})
    )
    assert more.forward_passes == 40
    assert more.estimate["lens"] == more.estimate["tokens"] == 0 < more.estimate["hidden"]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_measuring_dry_run_knows_time_memory_and_bytes(
    rows: list[dict[str, Any]], llama: Path, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"batch_tokens": 64})
    planned = run(llama, tmp_path / "s", rows, dry_run="measure", spec=spec)
    assert not (tmp_path / "s").exists()
    done = run(llama, tmp_path / "s", rows, spec=spec)
    assert (planned.tokens, planned.padded_tokens, planned.batches) == (done.tokens, done.padded_tokens, done.batches)
    assert planned.tokens_per_second > 0
    assert planned.memory_bytes > sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    assert "padded tokens a second" in str(planned)
    assert run(llama, tmp_path / "s", rows, dry_run="measure", spec=spec).tokens_per_second == 0


def test_a_disk_that_cannot_hold_it(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_weights(monkeypatch)
    monkeypatch.setattr(estimate, "free_bytes", lambda store: 1000)
    with pytest.raises(StoreError, match=r"has 1\.0 kB free and this run needs about"):
        run(llama, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("damage", ["no number", "another shape"])
def test_a_model_that_is_refused_leaves_nothing_behind(llama: Path, tmp_path: Path, damage: str) -> None:
    bad = shutil.copytree(llama, tmp_path / "bad")
    weights = safetensors.torch.load_file(bad / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name] = (
        torch.full_like(weights[name], torch.nan) if damage == "no number" else weights[name][:, :-1].clone()
    )
    safetensors.torch.save_file(weights, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError):
        run(bad, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    good = run(llama, tmp_path / "s").run
    with pytest.raises(ModelError):
        run(bad, tmp_path / "s")
    assert [one.id for one in reader.open(tmp_path / "s").runs()] == [good]


def test_duplicates_share_a_pass_and_folds_can_see_it(llama: Path, tmp_path: Path) -> None:
    summary = run(llama, tmp_path / "s", [{"text": "Why?"}] * 3 + [{"text": "It rains."}])
    assert (summary.rows, summary.samples, summary.forward_passes) == (4, 2, 2)
    ids = reader.open(tmp_path / "s").rows(summary.run, "data")["sample_id"].to_list()
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_empty_spans_are_held_counted_and_have_no_row(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"title": "" if i % 3 == 0 else "T", "text": text} for i, text in enumerate(TEXTS)]
    data = make_data(rows, "{title} {text}")
    spec = ExtractSpec(pooling=["mean@title", "last"], lens=["last@title"])
    summary = run(llama, tmp_path / "s", data=data, spec=spec)
    assert summary.absent == {"hidden:resid:mean@title": {"empty span": 3}, "lens:last@title:top10": {"empty span": 3}}
    assert "3 samples have none (empty span)" in str(summary)
    store = reader.open(tmp_path / "s")
    assert len(store.matrix(summary.run, 1, "mean@title").sample_ids) == 5
    assert len(store.matrix(summary.run, 1, "last").sample_ids) == 8
    absent = store.samples(summary.run)["absent"].list.len().to_list()
    assert sorted(absent) == [0] * 5 + [2] * 3
    no_weights(monkeypatch)
    assert run(llama, tmp_path / "s", data=data, spec=spec).forward_passes == 0


def test_batches_without_any_of_a_span(llama: Path, tmp_path: Path) -> None:
    rows = [{"title": "T" if i == 0 else "", "text": text} for i, text in enumerate(TEXTS)]
    spec = ExtractSpec(pooling=["mean@title"], lens=["last@title"], batch_tokens=1)
    summary = run(llama, tmp_path / "s", data=make_data(rows, "{title} {text}"), spec=spec, shard_bytes=1)
    store = reader.open(tmp_path / "s")
    assert len(store.shards(summary.run)) == len(TEXTS)
    assert len(store.matrix(summary.run, 1, "mean@title").sample_ids) == 1


def test_a_span_that_no_prompt_has(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no field 'quesion'; its spans are prompt, text"):
        run(llama, tmp_path / "s", spec=ExtractSpec(pooling=["mean@quesion"]))
    assert not (tmp_path / "s").exists()


def test_long_prompts_are_refused_or_cut(llama: Path, tmp_path: Path) -> None:
    rows = [{"text": "Why?"}, {"text": " ".join(TEXTS * 3)}]
    with pytest.raises(DataError, match=r"row 1 has \d+ tokens and the model sees 128"):
        run(llama, tmp_path / "s", rows)
    summary = run(llama, tmp_path / "s", rows, spec=SPEC.model_copy(update={"truncate": True}))
    assert summary.notes == ["1 of 2 prompts are cut to 128 tokens"]
    store = reader.open(tmp_path / "s")
    assert store.run(summary.run).spec["truncate"] == 128
    samples = store.samples(summary.run).sort("n_tokens")
    assert samples["n_tokens"].to_list()[1] == 128
    assert samples["n_truncated"].to_list()[0] == 0 < samples["n_truncated"].to_list()[1]
    passed = Reference(llama, "llama").run(rows[1]["text"], max_length=128)
    matrix = store.matrix(summary.run, 2, "last")
    close(matrix.values[list(matrix.sample_ids).index(samples["sample_id"][1])], passed.states[2, -1])


def test_chat_runs_the_rendered_text(models_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = models_of("llama")
    summary = run(
        folder, tmp_path / "s", data=make_data(chat=True), spec=ExtractSpec(pooling=["mean", "last", "mean@text"])
    )
    store = reader.open(tmp_path / "s")
    assert store.run(summary.run).spec["chat"] is True
    reference = Reference(folder, "llama")
    ids = store.rows(summary.run, "data")["sample_id"].to_list()
    for pooling in ("last", "mean", "mean@text"):
        matrix = store.matrix(summary.run, 2, pooling)
        for one, text in zip(ids, TEXTS, strict=True):
            rendered = reference.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            passed = reference.run(rendered, add_special_tokens=False)
            start = rendered.index(text)
            tokens = passed.within(start, start + len(text))
            state = passed.states[2, -1] if pooling == "last" else passed.states[2, tokens].mean(0)
            close(matrix.values[list(matrix.sample_ids).index(one)], state)


def test_rows_keep_the_users_columns_and_split(llama: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "Why?", "split": "train", "run": "mine", "row": 7, "user_row": 1, "tags": ["a", "b"]},
        {"text": "", "split": "test", "run": "yours", "row": 8, "user_row": 2, "tags": []},
    ]
    data = make_data(rows, labels=[Label("run", "category")], split="split")
    summary = run(llama, tmp_path / "s", data=data)
    store = reader.open(tmp_path / "s")
    frame = store.rows(summary.run, "data")
    assert frame.columns == ["row", "sample_id", "split", "text", "user_run", "user_user_row", "user_row", "tags"]
    assert frame["split"].to_list() == ["train", "test"]
    assert frame["row"].to_list() == [0, 1]
    assert frame["user_user_row"].to_list() == [7, 8]
    assert frame["user_row"].to_list() == [1, 2]
    assert [tuple(one) for one in store.data(summary.run)[0].labels] == [("user_run", "category")]
    assert store.labels(summary.run, "data")["text"].to_list() == ["mine", "yours"]


def test_non_finite_states_are_refused_or_kept(models_of: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models_of("llama"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spec = ExtractSpec(lens=[], layers=[1], pooling=["mean"], self_check=False)
    with pytest.raises(StoreError, match="layer 1"):
        run(folder, tmp_path / "s", spec=spec)
    summary = run(folder, tmp_path / "s", spec=spec.model_copy(update={"allow_nonfinite": True}))
    assert summary.forward_passes == 40


def test_progress_counts_samples_and_tokens(llama: Path, tmp_path: Path) -> None:
    seen: dict[str, int] = {"samples": 0, "tokens": 0}

    class Count(Task):
        def advance(self, amount: int = 1, **counts: int) -> None:
            seen["samples"] += amount
            seen["tokens"] += counts["tokens"]

    class Counting(Progress):
        def task(self, title: str, total: int, unit: str = "samples") -> Any:
            from contextlib import nullcontext

            seen["total"] = total
            return nullcontext(Count())

    summary = run(llama, tmp_path / "s", progress=Counting())
    assert seen == {"samples": 40, "tokens": summary.tokens, "total": 40}


def test_provenance_is_in_every_shard(llama: Path, tmp_path: Path) -> None:
    summary = run(llama, tmp_path / "s")
    for shard in reader.open(tmp_path / "s").shards(summary.run):
        kept = shard.provenance
        assert kept["torch"] == torch.__version__
        assert kept["device"].startswith("cpu")
        assert kept["self_check"]["padding"] <= kept["self_check"]["tolerance"]
        assert set(kept) >= {"layercache", "transformers", "host", "dtype", "attention", "created", "precision"}


def test_a_frozen_store_is_refused_before_anything_is_loaded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights(monkeypatch)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "FROZEN").write_text("copy it first")
    with pytest.raises(StoreError, match="frozen"):
        run(llama, tmp_path / "s")


def test_the_budget_asked_for_is_used(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "automatic", lambda plan, longest: pytest.fail("not asked for"))
    assert run(llama, tmp_path / "s").batches > 5
    assert loop.Loop.__init__.__annotations__["longest"] is int


def test_an_estimate_is_put_right_by_a_shard_that_is_large_enough(llama: Path, tmp_path: Path) -> None:
    summary = run(llama, tmp_path / "s")
    (shard,) = reader.open(tmp_path / "s").shards(summary.run)
    size = shard.files["hidden.parquet"].bytes
    total = {"hidden": 5000, "lens": 700}
    estimate.correct(total, replace(shard, n_samples=499), {"hidden": 2 * size})
    assert total == {"hidden": 5000, "lens": 700}
    estimate.correct(total, replace(shard, n_samples=500), {"hidden": 2 * size, "lens": 0})
    assert total == {"hidden": 2500, "lens": 700}
