"""The code of docs/extending.md runs, and gives what NumPy gives."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layercache import queries
from layercache.analyze import KINDS
from layercache.extract.token_metrics import Tokens
from layercache.progress import Progress
from layercache.recipe import ANALYSES, ProbeSpec
from layercache.store import reader, sql
from layercache.token_statistics import Statistic

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
ANALYSIS, METRIC = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(QUERY,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


def made(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "docs/extending.md", "exec"), names)
    return names


def test_the_query_answers(tmp_path: Path) -> None:
    file = tmp_path / "longest.sql"
    file.write_text(QUERY)
    query = queries.read_query(file)
    answer = sql.run_query(ROOT / "store", query.sql, params=query.bind({"first": 3})).to_pylist()
    frame = reader.open(ROOT / "store").sql("SELECT n_tokens FROM samples ORDER BY n_tokens DESC LIMIT 3")
    assert [row["n_tokens"] for row in answer] == frame["n_tokens"].to_pylist()


def test_the_analysis_says_what_numpy_says() -> None:
    store = reader.open(ROOT / "store")
    run = store.runs()[0]
    spec = ProbeSpec(runs=[run.id], pooling=["mean@prompt"], bootstrap=100)
    found = made(ANALYSIS)["norms"](store, spec, Progress()).results.to_pylist()
    assert [row["layer"] for row in found] == store.features(run)[0].layers
    for row in found:
        norm = np.linalg.norm(store.matrix(run, row["layer"], "mean@prompt").values.astype(float), axis=1)
        np.testing.assert_allclose(row["value"], norm.mean(), rtol=1e-12)
        assert row["n"] == len(norm)
        assert row["low"] <= row["value"] <= row["high"]


def test_the_statistic_says_what_numpy_says() -> None:
    metric = made(METRIC)["METRIC"]
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    states = states * mask[:, :, None]
    found = metric.of(Tokens(states, mask, 0.0), Statistic("norm_spread"))
    for row, count in enumerate((5, 3)):
        norms = np.linalg.norm(states[row, :count].numpy().astype(float), axis=1)
        np.testing.assert_allclose(found[row], norms.std() / norms.mean(), rtol=1e-6)
    assert metric.of(Tokens(0 * states, mask, 0.0), Statistic("norm_spread")).isinf().all()


def test_every_kind_of_analysis_is_complete() -> None:
    import layercache

    assert list(KINDS) == list(ANALYSES)
    assert set(KINDS) <= set(layercache.__all__)
