"""Conditions as a run makes them: what is stored, that it is what the model says, and what is not run again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from layercache import demo
from layercache.errors import DataError, LayercacheError, RecipeError
from layercache.extract import knockout, loop, model
from layercache.extract.run import extract
from layercache.extract.summary import Summary
from layercache.progress import Progress, Task
from layercache.recipe import ExtractSpec, ModelSpec
from layercache.store import compact, reader, verify

from .conftest import TEXTS, make_data, make_tokenizer
from .reference import close, log_softmax
from .tiny import tiny_config

TEMPLATE = "Note: {header} Q: {question} A: {answer}"
ROWS = [
    {"header": header[:40], "question": question[:50], "answer": f"number {n}"}
    for n, (header, question) in enumerate(zip(TEXTS, TEXTS[2:] + TEXTS[:2], strict=True))
]
PERTURBED = ["repeat-0.5", "random-0.5", "truncate-9", "patch-answer", "control-patch-answer", "answer-only"]
SPEC = ExtractSpec(
    batch_tokens=200,
    pooling=["mean", "last", "last@answer"],
    lens=["last@answer"],
    stats=["norm"],
    conditions=PERTURBED,
    augment=1,
)
ALL = [*PERTURBED, "augment-1"]


def run(folder: Path | str, store: Path, spec: ExtractSpec = SPEC, rows: Any = None, **kw: Any) -> Summary:
    data = make_data(rows or ROWS, kw.pop("template", TEMPLATE))
    return extract(ModelSpec(model=str(folder)), data, spec, store, kw.pop("progress", Progress()), **kw)


def frame(store: Path, query: str) -> pl.DataFrame:
    found = pl.from_arrow(reader.open(store).sql(query))
    assert isinstance(found, pl.DataFrame)
    return found


def counts(summary: Summary) -> dict[str, int]:
    return {one.condition: one.forward_passes for one in summary.conditions}


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(model, "load", fail)


@pytest.fixture
def llama(models_of: Callable[..., Path]) -> Path:
    return models_of("llama")


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mamba")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("mamba")).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


class ByHand:
    """A model as transformers loads it, its blocks listened to: ids → states [L + 1, n, d] and logits [n, V]."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        body = next(self.model.children())
        self.blocks = next(getattr(body, name) for name in ("layers", "h") if hasattr(body, name))

    def __call__(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        kept: list[torch.Tensor] = []

        def before(_module: Any, args: Any, kwargs: Any) -> None:
            kept.append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(_module: Any, _args: Any, out: Any) -> None:
            kept.append((out[0] if isinstance(out, tuple) else out).clone())

        handles = [self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [block.register_forward_hook(after) for block in self.blocks]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return np.stack([one.reshape(len(ids), -1).numpy() for one in kept]), logits.numpy()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "demo"])
def test_states_are_those_of_the_changed_tokens(
    kind: str, models_of: Callable[..., Path], mamba: Path, tmp_path: Path
) -> None:
    folder = {"mamba": mamba, "demo": demo.model_path()}.get(kind) or models_of(kind)
    store = tmp_path / "s"
    summary = run("demo" if kind == "demo" else folder, store)
    assert counts(summary) == dict.fromkeys(ALL, 8) | {one: counts(summary)[one] for one in ALL if "patch" in one}
    assert not verify.verify(store, deep=True)
    by_hand = ByHand(folder)
    samples = {(row["condition"], row["sample_id"]): row for row in frame(store, "FROM samples").to_dicts()}
    tokens = frame(store, "SELECT condition, sample_id, position, token_id FROM tokens ORDER BY ALL")
    hidden = dict(frame(store, "FROM hidden").group_by("condition", "sample_id"))
    lenses = dict(frame(store, "FROM lens").group_by("condition", "sample_id"))
    seen = set()
    for (condition, name), part in tokens.group_by("condition", "sample_id"):
        row = samples[condition, name]
        spans = {span["name"]: (span["start"], span["end"]) for span in row["spans"]}
        assert row["n_tokens"] == len(part)
        states, logits = by_hand(part["token_id"].to_list())
        start, end = spans["prompt"]
        expected = {
            "mean@prompt": states[:, start:end].mean(axis=1),
            "last@prompt": states[:, -1],
            "last@answer": states[:, spans["answer"][1] - 1],
        }
        top = len(states) - 1
        for pooling, vectors in expected.items():
            mine = hidden[condition, name].filter(pl.col("pooling") == pooling, pl.col("layer") <= top).sort("layer")
            close(np.array(mine["vector"].to_list()), vectors)
        last = log_softmax(logits[spans["answer"][1] - 1])
        mine = lenses[condition, name].filter(layer=top)
        np.testing.assert_allclose(mine["entropy"].item(), -(np.exp(last) * last).sum(), rtol=2e-3, atol=1e-4)
        seen.add(condition)
    assert seen == {"clean", *ALL} - {one.condition for one in summary.conditions if not one.forward_passes}


def test_keys(llama: Path, tmp_path: Path) -> None:
    """Every condition holds every output at every layer of the clean prompts' samples, or says why not."""
    summary = run(llama, tmp_path / "s")
    opened = reader.open(tmp_path / "s")
    assert opened.conditions(summary.run) == ["clean", *sorted(ALL)]
    clean = set(opened.samples(summary.run)["sample_id"])
    for condition in ALL:
        ids = set(opened.samples(summary.run, condition)["sample_id"])
        assert ids <= clean
        assert (ids == clean) or "patch" in condition
    query = "SELECT condition, layer, pooling, count(*) AS n FROM hidden GROUP BY ALL"
    found = {
        (row["condition"], row["pooling"], row["layer"]): row["n"] for row in frame(tmp_path / "s", query).to_dicts()
    }
    for (condition, pooling, _), n in found.items():
        assert n == sum(
            f"hidden:resid:{pooling}" not in {one["output"] for one in absent}
            for absent in opened.samples(summary.run, condition)["absent"].to_list()
        )
    assert len(found) == 8 * 3 * 5
    only = frame(tmp_path / "s", "SELECT DISTINCT condition FROM token_stats ORDER BY ALL")["condition"].to_list()
    assert only == ["answer-only", *sorted(set(ALL) - {"answer-only"} | {"clean"})]
    matrix = opened.matrix(summary.run, 2, "mean@prompt", condition="random-0.5")
    assert matrix.values.shape == (8, 32)


def test_sql_averages_over_conditions(llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"conditions": ["random-0.25", "random-1"], "augment": 0})
    run(llama, tmp_path / "s", spec)
    query = "SELECT condition, avg(entropy) AS entropy FROM lens WHERE layer = 3 GROUP BY condition ORDER BY ALL"
    found = frame(tmp_path / "s", query)
    assert found["condition"].to_list() == ["clean", "random-0.25", "random-1"]
    assert found["entropy"].n_unique() == 3


def test_twice_is_no_pass_and_no_weights(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(llama, tmp_path / "s")
    assert first.forward_passes == 8 + sum(counts(first).values())
    assert first.cached == 0
    no_weights(monkeypatch)
    again = run(llama, tmp_path / "s")
    assert again.forward_passes == again.bytes == 0
    # A patch without a donor is looked for again, since rows may have been added.
    assert all(one.cached + sum(one.left_out.values()) == 8 for one in again.conditions)
    assert [one.left_out for one in again.conditions] == [one.left_out for one in first.conditions]


def test_a_condition_added_is_its_own_passes_only(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", SPEC.model_copy(update={"conditions": [], "augment": 0}))
    before = set(tmp_path.rglob("*.parquet"))
    summary = run(llama, tmp_path / "s", SPEC.model_copy(update={"conditions": ["random-0.5"], "augment": 0}))
    assert summary.forward_passes == 8
    assert counts(summary) == {"random-0.5": 8}
    assert summary.new_samples == 0
    added = set(tmp_path.rglob("*.parquet")) - before
    assert {path.parent.parent.name for path in added} == {"condition=random-0.5"}
    assert summary.bytes == sum(path.stat().st_size for path in added)
    assert "random-0.5: 8 passes" in str(summary)


def test_a_new_pooling_and_new_rows_are_run_under_every_condition(llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"conditions": ["random-0.5", "truncate-9"], "augment": 1})
    run(llama, tmp_path / "s", spec, ROWS[:5])
    more = run(llama, tmp_path / "s", spec)
    assert counts(more) == {"random-0.5": 3, "truncate-9": 3, "augment-1": 3}
    assert more.forward_passes == 12
    wider = run(llama, tmp_path / "s", spec.model_copy(update={"pooling": ["max@prompt"]}))
    assert wider.forward_passes == 32
    opened = reader.open(tmp_path / "s")
    shards = opened.shards(more.run, "random-0.5")
    assert sum(list(shard.outputs) == ["hidden:resid:max@prompt"] for shard in shards) == 1


def contents(store: Path) -> tuple[pl.DataFrame, np.ndarray]:
    found = frame(store, "FROM hidden ORDER BY condition, site, layer, pooling, sample_id")
    keys = [name for name in found.columns if name not in ("vector", "n_excluded")]
    return found.select(keys), np.array(found["vector"].to_list())


def test_a_run_killed_between_conditions_goes_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPEC.model_copy(update={"conditions": ["random-0.5", "patch-answer", "truncate-9", "truncate-40"]})
    whole = run(llama, tmp_path / "whole", spec)
    real = loop.Loop.run

    def killed(self: loop.Loop, *args: Any) -> None:
        if "truncate-9" in args:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(loop.Loop, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run(llama, tmp_path / "s", spec)
    monkeypatch.undo()
    assert set(reader.open(tmp_path / "s").conditions(whole.run)) == {"clean", "random-0.5", "patch-answer"}
    rest = run(llama, tmp_path / "s", spec)
    expected = counts(whole) | {"random-0.5": 0, "patch-answer": 0}
    assert counts(rest) == expected
    assert rest.forward_passes == sum(expected.values())
    (keys, values), (other_keys, other_values) = contents(tmp_path / "whole"), contents(tmp_path / "s")
    assert keys.equals(other_keys)
    close(values, other_values)


def test_what_is_left_out_is_counted_and_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPEC.model_copy(update={"conditions": ["truncate-30"], "augment": 0})
    summary = run(llama, tmp_path / "s", spec)
    (one,) = summary.conditions
    left = one.left_out["fewer than 30 tokens"]
    assert 0 < left < 8
    assert one.forward_passes == 8 - left
    assert f"{left} left out (fewer than 30 tokens)" in str(summary)
    query = "SELECT output, reason, count(*) AS n FROM (SELECT unnest(absent) AS one FROM samples WHERE condition <>"
    query = query.replace("output, reason", "one.output, one.reason") + " 'clean') GROUP BY ALL"
    reasons = [row for row in frame(tmp_path / "s", query).to_dicts() if row["reason"] == "fewer than 30 tokens"]
    assert {row["output"]: row["n"] for row in reasons} == dict.fromkeys(
        [
            "tokens",
            *(f"hidden:resid:{one}" for one in ("mean@prompt", "last@prompt", "last@answer")),
            "lens:last@answer:top10",
            "stats:norm",
        ],
        left,
    )
    opened = reader.open(tmp_path / "s")
    rows = opened.samples(summary.run, "truncate-30")
    assert len(rows) == 8
    assert rows.filter(pl.col("n_tokens") == 0).height == left
    clean = opened.samples(summary.run)
    texts = rows.filter(pl.col("n_tokens") == 0).join(clean, on="sample_id")
    assert texts["prompt"].to_list() == texts["prompt_right"].to_list()
    assert len(opened.matrix(summary.run, 1, "mean@prompt", condition="truncate-30").values) == 8 - left
    assert not verify.verify(tmp_path / "s", deep=True)
    no_weights(monkeypatch)
    again = run(llama, tmp_path / "s", spec)
    assert (again.conditions[0].cached, again.conditions[0].left_out) == (8 - left, {"fewer than 30 tokens": left})
    said = f"truncate-30: 0 passes, {8 - left} complete already, {left} left out (fewer than 30 tokens)"
    assert said in str(again)
    compact.compact(opened, opened.run(summary.run), "truncate-30")
    assert not verify.verify(tmp_path / "s", deep=True)
    assert reader.open(tmp_path / "s").samples(summary.run, "truncate-30").equals(rows)


def test_all_left_out_needs_no_model(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SPEC.model_copy(update={"conditions": [], "augment": 0})
    run(llama, tmp_path / "s", plain)
    no_weights(monkeypatch)
    summary = run(llama, tmp_path / "s", plain.model_copy(update={"conditions": ["truncate-100"]}))
    assert summary.forward_passes == 0
    assert summary.conditions[0].left_out == {"fewer than 100 tokens": 8}
    assert "0 forward passes" in str(summary)
    said = "truncate-100: WARNING: no sample can be run: 0 passes, 8 left out (fewer than 100 tokens)"
    assert said in str(summary)
    assert not verify.verify(tmp_path / "s", deep=True)
    again = run(llama, tmp_path / "s", plain.model_copy(update={"conditions": ["truncate-100"]}))
    assert again.cached == 8
    assert said in str(again)


def test_a_patch_keeps_its_donor_when_rows_are_added(llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"conditions": ["patch-question"], "augment": 0, "pooling": ["mean"]})
    rows = [{"question": f"Is it {word}?", "answer": "yes"} for word in ("here", "on", "a")]
    first = run(llama, tmp_path / "s", spec, rows, template="{question} {answer}")
    assert first.conditions[0].left_out
    assert "no donor with as many tokens" in str(first)
    more = [{"question": f"Is it {word}?", "answer": "yes"} for word in ("on", "in", "at", "nowhere", "there")]
    opened = reader.open(tmp_path / "s")
    before = dict(opened.samples(first.run, "patch-question").select("sample_id", "donor_id").iter_rows())
    wider = spec.model_copy(update={"pooling": ["mean", "last"]})
    second = run(llama, tmp_path / "s", wider, rows + more, template="{question} {answer}")
    after = reader.open(tmp_path / "s").samples(first.run, "patch-question")
    donors = dict(after.select("sample_id", "donor_id").iter_rows())
    assert len(donors) > len(before)
    assert {one: donors[one] for one in before} == before
    assert not verify.verify(tmp_path / "s", deep=True)
    assert second.conditions[0].forward_passes >= len(donors) - len(before)


def test_provenance_says_the_parameters(llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"conditions": ["random-.50", "control-patch-answer"], "augment": 1})
    summary = run(llama, tmp_path / "s", spec.model_copy(update={"condition_seed": 7, "control_from": "header"}))
    opened = reader.open(tmp_path / "s")
    names = [one.condition for one in summary.conditions]
    assert [name.rpartition("-")[0] for name in names] == ["random-0.5", "control-patch-answer", "augment-1"]
    expected = [
        {"kind": "random", "number": 0.5, "seed": 7},
        {"kind": "control-patch", "span": "answer", "seed": 7, "control_from": "header"},
        {"kind": "augment", "number": 1, "seed": 7, "augment_rate": 0.3},
    ]
    for name, parameters in zip(names, expected, strict=True):
        for shard in opened.shards(summary.run, name):
            assert shard.provenance["condition"] == parameters
            assert shard.provenance["layercache"]
    assert all("condition" not in shard.provenance for shard in opened.shards(summary.run))
    default = run(llama, tmp_path / "s", spec)
    assert default.run == summary.run
    assert counts(default)["random-0.5"] == 8


def test_text_and_head_are_of_the_clean_prompts(llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(
        update={"conditions": ["random-0.5"], "augment": 0, "generate_layers": [3], "max_new_tokens": 2, "lens": []}
    ).model_copy(update={"save_head": True})
    summary = run(llama, tmp_path / "s", spec)
    assert frame(tmp_path / "s", "SELECT DISTINCT condition FROM generations")["condition"].to_list() == ["clean"]
    # The lens where a text begins comes with the text.
    assert frame(tmp_path / "s", "SELECT DISTINCT condition FROM lens")["condition"].to_list() == ["clean"]
    assert summary.head_bytes > 0
    assert counts(summary) == {"random-0.5": 8}
    assert run(llama, tmp_path / "s", spec).forward_passes == 0


def test_choices_are_scored_under_conditions(llama: Path, tmp_path: Path) -> None:
    """With a choice of several tokens, whose passes go over the changed prompt."""
    spec = ExtractSpec(pooling=["mean"], choices=[" moon", "s"], conditions=["random-0.5"], batch_tokens=200)
    summary = run(llama, tmp_path / "s", spec, template="Note: {header} Q: {question}")
    assert summary.choice_passes % 2 == 0
    assert summary.choice_passes >= 16
    found = frame(tmp_path / "s", "FROM choices WHERE condition = 'random-0.5' AND layer = 3")
    by_hand = ByHand(llama)
    tokenizer = make_tokenizer()
    ids: dict[str, list[int]] = {}
    query = "SELECT sample_id, token_id FROM tokens WHERE condition = 'random-0.5' ORDER BY sample_id, position"
    for name, token in frame(tmp_path / "s", query).iter_rows():
        ids.setdefault(name, []).append(token)
    for row in found.to_dicts():
        answer = tokenizer(row["choice"], add_special_tokens=False)["input_ids"]
        prompt = ids[row["sample_id"]]
        logp = log_softmax(by_hand(prompt + answer)[1])
        each = [logp[len(prompt) - 1 + n, token] for n, token in enumerate(answer)]
        np.testing.assert_allclose([row["first_logprob"], row["logprob"]], [each[0], sum(each)], rtol=2e-3, atol=1e-3)
    assert len(found) == 16


def test_a_dry_run_counts_conditions(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row | {"answer": f"{row['answer']} or {n}"} for n in range(5) for row in ROWS]
    spec = SPEC.model_copy(update={"conditions": ["random-0.5", "truncate-9"]})
    with monkeypatch.context() as patched:
        no_weights(patched)
        planned = run(llama, tmp_path / "s", spec, rows, dry_run=True)
    assert not (tmp_path / "s").exists()
    done = run(llama, tmp_path / "s", spec, rows)
    assert counts(planned) == counts(done) == dict.fromkeys(["random-0.5", "truncate-9", "augment-1"], 40)
    numbers = [(one.forward_passes, one.tokens, one.batches, one.padded_tokens) for one in (planned, done)]
    assert numbers[0] == numbers[1]
    assert 0.75 < sum(planned.estimate.values()) / done.bytes < 1.35
    assert "random-0.5: 40 passes" in str(planned)
    again = run(llama, tmp_path / "s", spec, rows, dry_run=True)
    assert (again.forward_passes, again.tokens, again.cached, sum(again.estimate.values())) == (0, 0, 40, 0)


def test_a_measuring_dry_run_measures_conditions_too(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "s", SPEC.model_copy(update={"conditions": [], "augment": 0}))
    measured = run(llama, tmp_path / "s", SPEC, dry_run="measure")
    assert measured.forward_passes == sum(counts(measured).values()) > 0 < measured.tokens_per_second


class Titles(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    @contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        self.seen.append((name, total or 0))
        with super().task(name, total) as task:
            yield task


def test_progress_is_of_each_condition(llama: Path, tmp_path: Path) -> None:
    progress = Titles()
    run(llama, tmp_path / "s", SPEC.model_copy(update={"conditions": ["random-0.5"]}), progress=progress)
    assert progress.seen == [(f"{what} data, llama0", 8) for what in ("extract", "random-0.5", "augment-1")]


def test_cut_samples_are_checked_and_run(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(knockout, "check", lambda _model, samples: checked.append(list(samples)))
    names = ["knockout-question", "control-question-layers-1-2"]
    summary = run(llama, tmp_path / "s", SPEC.model_copy(update={"conditions": names, "augment": 0}))
    assert list(counts(summary)) == names
    assert counts(summary)["knockout-question"] == 8
    (samples,) = checked
    assert all(sample.cut is not None for sample in samples)
    assert {sample.cut_layers for sample in samples} == {None, (1, 2)}
    assert not verify.verify(tmp_path / "s", deep=True)
    shards = reader.open(tmp_path / "s").shards(summary.run, names[1])
    assert {tuple(shard.provenance["condition"]["layers"]) for shard in shards} == {(1, 2)}
    assert run(llama, tmp_path / "s", SPEC).conditions
    assert len(checked) == 1


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"conditions": ["knockout-questoin"]}, RecipeError, "did you mean knockout-question"),
        ({"conditions": ["knockout-question-layers-2-9"]}, RecipeError, "the model's blocks are 1 to 3"),
        ({"conditions": ["patch-empty"]}, DataError, "'empty' is empty in every prompt"),
        ({"conditions": ["control-answer"], "control_from": "nowhere"}, RecipeError, "needs a span 'nowhere'"),
        ({"conditions": ["truncate-4"], "control_from": "nowhere"}, RecipeError, "control_from needs a span 'nowhere'"),
        ({"conditions": [], "control_from": "nowhere"}, RecipeError, "control_from needs a span 'nowhere'"),
        ({"conditions": ["control-answer"], "control_from": "empty"}, DataError, "empty in every prompt"),
        ({"conditions": ["random-0.5-0a0b0c0d"]}, RecipeError, "leave out the hash"),
    ],
)
def test_bad_conditions_are_refused(
    settings: dict[str, Any], error: type[LayercacheError], said: str, llama: Path, tmp_path: Path
) -> None:
    spec = ExtractSpec(**settings)
    rows = [row | {"empty": ""} for row in ROWS]
    with pytest.raises(error, match=said):
        run(llama, tmp_path / "s", spec, rows, template=TEMPLATE + "{empty}")
    assert not (tmp_path / "s").exists()


def test_an_answer_is_needed(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a span 'answer'; the spans are prompt, question"):
        run(llama, tmp_path / "s", ExtractSpec(conditions=["answer-only"]), template="Q: {question}")


def test_the_command_line(llama: Path, call: Any, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("question,answer\nWhy is it so?,Nobody knows\nWho can say?,The keeper\n")
    arguments = ["extract", "--model", llama, "--data", tmp_path / "d.csv", "--prompt", "Q: {question} A: {answer}"]
    arguments += ["--store", tmp_path / "s", "--quiet"]
    wanted = ["--condition", "answer-only", "--condition", "truncate-3", "--augment", "2", "--condition-seed", "5"]
    done = call(*arguments, *wanted, "--augment-rate", "0.5", "--json")
    assert done.code == 0, done.err
    (summary,) = done.json
    names = [one["condition"] for one in summary["conditions"]]
    assert names[:2] == ["answer-only", "truncate-3"]
    assert len(names) == 4
    assert [name[:10] for name in names[2:]] == ["augment-1-", "augment-2-"]
    for bad, said in {
        "knokout-question": "did you mean knockout-SPAN",
        "knockout-qestion": "did you mean knockout-question",
        "repeat-2": "repeat- is followed by a probability",
        "control-question --control-from answr": "needs a span 'answr'",
    }.items():
        failed = call(*arguments, "--condition", *bad.split())
        assert (failed.code, said in failed.err, failed.err.count("\n")) == (2, True, 1), failed.err
