from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layercache.errors import ModelError
from layercache.extract import batching, checkpoint, model
from layercache.extract.batching import Budget, collate, split, windows
from layercache.extract.tokenize import Sample


def make(lengths: list[int]) -> list[Sample]:
    return [
        Sample(f"{i:04d}", "", np.arange(1, n + 1, dtype=np.int32), np.zeros(n, bool), {}, {}, None, 0)
        for i, n in enumerate(lengths)
    ]


def lengths(n: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return np.clip(np.exp(rng.normal(4, 0.8, n)), 1, 500).astype(int).tolist()


def test_every_sample_is_in_exactly_one_batch_within_the_budget() -> None:
    samples = make(lengths(2000))
    batches = [batch for window in windows(samples, Budget(1000, rows=20), seed=0) for batch in window]
    assert sorted(one.id for batch in batches for one in batch) == [one.id for one in samples]
    assert all(len(batch) <= 20 and max(map(len, batch)) * len(batch) <= 1000 for batch in batches)


def test_a_sample_longer_than_the_budget_runs_alone() -> None:
    assert [[len(one) for one in batch] for batch in split(make([5, 30, 4]), Budget(12))] == [[30], [5, 4]]


def test_padding_is_close_to_a_global_sort() -> None:
    samples = make(lengths(6000))
    budget = Budget(2000)

    def padded(batches: list[list[Sample]]) -> int:
        return sum(max(map(len, batch)) * len(batch) for batch in batches)

    ours = padded([batch for window in windows(samples, budget, seed=0) for batch in window])
    assert ours < 1.06 * padded(split(samples, budget))


def test_order_is_seeded_and_not_by_length() -> None:
    samples = make(lengths(800))

    def order(seed: int) -> list[str]:
        return [one.id for window in windows(samples, Budget(500), seed) for batch in window for one in batch]

    assert order(3) == order(3) != order(4)
    sizes = [max(map(len, batch)) for window in windows(samples, Budget(500), 3) for batch in window]
    # The first batches of a stopped run are not the longest ones.
    assert abs(np.corrcoef(np.arange(len(sizes)), sizes)[0, 1]) < 0.3


def test_windows_follow_a_budget_that_shrinks() -> None:
    samples = make([10] * 3000)
    budget = Budget(100)
    first = True
    seen = 0
    for window in windows(samples, budget, seed=0):
        if first:
            budget.halve(100)
            first = False
        else:
            assert all(len(batch) <= 5 for batch in window)
        seen += sum(map(len, window))
    assert seen == 3000
    assert budget.tokens == 50


def test_budget_ends() -> None:
    budget = Budget(2)
    budget.halve(2)
    with pytest.raises(ModelError, match="memory"):
        budget.halve(1)


@pytest.mark.parametrize("left", [False, True])
def test_collate_pads_and_counts_positions_from_the_mask(left: bool) -> None:
    batch = collate(make([3, 1]), torch.device("cpu"), pad_id=9, position_offset=2, left=left)
    if left:
        assert batch.input_ids.tolist() == [[1, 2, 3], [9, 9, 1]]
        assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
        assert batch.position_ids.tolist() == [[2, 3, 4], [2, 2, 2]]
        assert batch.starts.tolist() == [0, 2]
    else:
        assert batch.input_ids.tolist() == [[1, 2, 3], [1, 9, 9]]
        assert batch.position_ids.tolist() == [[2, 3, 4], [2, 2, 2]]
        assert batch.starts.tolist() == [0, 0]
    assert batch.lengths.tolist() == [3, 1]


def test_automatic_budget_keeps_within_free_memory(
    models_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = model.plan(checkpoint.find(str(models_of("llama"))), device="cpu", dtype="auto", attn="eager")
    need = batching.token_bytes(plan, 128)
    assert need > batching.token_bytes(plan, 16) > 4 * plan.structure.width
    monkeypatch.setattr(batching, "free_bytes", lambda device: 100 * need)
    assert batching.automatic(plan, 128).tokens == 40
    monkeypatch.setattr(batching, "free_bytes", lambda device: 10)
    assert batching.automatic(plan, 128).tokens == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    assert batching.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert batching.is_out_of_memory(MemoryError())
    assert batching.is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"))
    assert not batching.is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_budget_is_fitted_to_what_two_batches_took(
    models_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = model.plan(checkpoint.find(str(models_of("llama"))), device="cpu", dtype="float32", attn="sdpa")
    monkeypatch.setattr(batching, "free_bytes", lambda device: 10_000)
    monkeypatch.setattr(batching, "most_tokens", lambda plan: 500)
    # 8,000 bytes may be taken; 1,000 of them whatever the batch, and 20 a token.
    assert batching.fitted(plan, (10, 1200), (100, 3000)) == 350
    assert batching.fitted(plan, (10, 1000), (100, 1001)) == 500
    assert batching.fitted(plan, (10, 90_000), (100, 900_000)) == 1
    # Two batches of one size say nothing of the slope.
    assert batching.fitted(plan, (50, 1000), (50, 1000)) >= 1
