"""What quantisation costs, and whether consistency between layers says that an answer is right."""

from pathlib import Path

import numpy as np
import polars as pl
import probe_stores as stores
import pytest
import sacrebleu
import text_stores
from sklearn.metrics import roc_auc_score

from layercache.analyze import analyze, text_claims
from layercache.recipe import TextSpec
from layercache.store.layout import Run
from layercache.store.reader import Store

N = 80
PROMPTS, REFERENCES, TEXTS, RIGHT = text_stores.planted(N)


def table(store: Store, notes: stores.Notes | None = None, **settings) -> pl.DataFrame:
    spec = TextSpec(**{"bootstrap": 50, "metrics": ["exact_match", "bleu"], **settings})
    return stores.frame(analyze(store, spec, notes or stores.Notes()).results)


def put(run: Run, texts: dict[int, list[str]], rows: int = N) -> None:
    text_stores.put_rows(run, PROMPTS[:rows], REFERENCES[:rows])
    text_stores.put_text(run, PROMPTS, texts)


@pytest.fixture
def worse() -> dict[int, list[str]]:
    """The same texts, but for every fourth of the last layer that is broken."""
    broken = ["broken text it is" if at % 4 == 0 else text for at, text in enumerate(TEXTS[2])]
    return {**TEXTS, 2: broken}


def test_what_quantisation_costs(tmp_path: Path, worse: dict[int, list[str]]):
    plain = text_stores.new_run(tmp_path / "store")
    quantised = text_stores.new_run(tmp_path / "store", quantization="nf4")
    put(plain, TEXTS)
    put(quantised, worse, rows=N - 10)
    found = table(stores.opened(tmp_path / "store"), seed=5)
    difference = found.filter(pl.col("metric").str.ends_with("_minus_other"))
    assert set(difference["run"]) == {quantised.id}
    assert set(difference["other_run"]) == {plain.id}
    assert difference["layer"].to_list() == difference["other_layer"].to_list()
    assert set(difference["n"]) == {N - 10}
    same = difference.filter(pl.col("layer") < 2)
    assert same.select("value", "low", "high").unique().rows() == [(0.0, 0.0, 0.0)]

    rows = range(N - 10)
    right = [float(TEXTS[2][at] == REFERENCES[at][0]) for at in rows]
    still = [float(worse[2][at] == REFERENCES[at][0]) for at in rows]
    paired = np.array(still) - np.array(right)
    order = np.argsort([stores.sample_id(PROMPTS[at]) for at in rows])
    rng = np.random.default_rng(5)
    draws = [order[rng.integers(len(order), size=len(order))] for _ in range(50)]
    here = difference.filter(metric="exact_match_minus_other", layer=2)
    ends = np.percentile([paired[draw].mean() for draw in draws], [2.5, 97.5])
    assert here.select("value", "low", "high").row(0) == pytest.approx((paired.mean(), *ends))

    def bleu(texts: list[str], draw: np.ndarray) -> float:
        return sacrebleu.corpus_bleu([texts[at] for at in draw], [[REFERENCES[at][0] for at in draw]]).score

    here = difference.filter(metric="bleu_minus_other", layer=2)
    ends = np.percentile([bleu(worse[2], draw) - bleu(TEXTS[2], draw) for draw in draws], [2.5, 97.5])
    everyone = np.array(rows)
    value = bleu(worse[2], everyone) - bleu(TEXTS[2], everyone)
    assert here.select("value", "low", "high").row(0) == pytest.approx((value, *ends))


@pytest.mark.parametrize(
    ("ours", "theirs", "compared"),
    [
        ({"quantization": "nf4"}, {}, True),
        ({"quantization": {"method": "int8"}}, {}, True),
        ({}, {"quantization": "nf4"}, False),
        ({}, {}, False),
        ({"quantization": "nf4"}, {"quantization": "int8"}, False),
        ({"quantization": "nf4", "weights": "v"}, {}, False),
        ({"quantization": "nf4", "dtype": "bfloat16"}, {}, False),
    ],
)
def test_only_runs_that_differ_in_quantisation_alone(tmp_path: Path, ours: dict, theirs: dict, compared: bool):
    one, other = (text_stores.new_run(tmp_path / name, **spec) for name, spec in (("a", ours), ("b", theirs)))
    assert text_claims.differ_in_quantisation(one, other) is compared


def lens_store(path: Path, samples: int = N) -> Run:
    """A lens that tells right from wrong better at every layer: its entropy is lower where the answer is right."""
    run = text_stores.new_run(path)
    put(run, TEXTS)
    rng = np.random.default_rng(1)
    entropies = {layer: (rng.random(N) + 1 - 0.6 * layer * RIGHT).clip(0.01).astype(np.float32) for layer in range(3)}
    agrees = {layer: rng.random(N) < 0.5 + 0.2 * layer * RIGHT for layer in range(2)} | {2: np.ones(N, bool)}
    cut = {layer: values[:samples] for layer, values in entropies.items()}
    stores.put_lens(run, PROMPTS[:samples], cut, {layer: values[:samples] for layer, values in agrees.items()})
    return run


def test_consistency_foretells_right_answers(tmp_path: Path):
    run = lens_store(tmp_path / "store")
    store = stores.opened(tmp_path / "store")
    found = table(store, seed=2)
    lens = stores.frame(store.sql("select * from lens")).sort("layer", "sample_id")
    ids = [stores.sample_id(prompt) for prompt in PROMPTS]
    right = dict(zip(ids, RIGHT))
    for layer in range(3):
        here = lens.filter(layer=layer)
        truth = [right[name] for name in here["sample_id"]]
        for column, sign in (("entropy", -1), ("kl_to_final", -1), ("js_to_final", -1), ("agrees_with_final", 1)):
            row = found.filter(metric=f"auc_{column}", layer=layer)
            shown = sign * here[column].cast(pl.Float64).to_numpy()
            if layer == 2 and column != "entropy":
                assert row.is_empty(), "what the last layer is from itself is rounding"
                continue
            assert row["value"].to_list() == [pytest.approx(roc_auc_score(truth, shown))]
            assert set(row["position"]) == {"last@prompt"}
            rng, again = np.random.default_rng(2), []
            for _ in range(50):
                draw = rng.integers(N, size=N)
                again.append(roc_auc_score(np.array(truth)[draw], shown[draw]))
            assert row.select("low", "high").row(0) == pytest.approx(np.percentile(again, [2.5, 97.5]))
    correct = found.filter(metric="answer_correct").select("run", "layer", "value", "n")
    assert correct.rows() == [(run.id, 2, pytest.approx(RIGHT.mean()), N)]


def test_another_score_can_say_what_is_right(tmp_path: Path):
    lens_store(tmp_path / "store")
    found = table(stores.opened(tmp_path / "store"), correct="rouge_l", correct_above=0.3, metrics=["exact_match"])
    assert "rouge_l" not in set(found["metric"])
    share = found.filter(metric="answer_correct")["value"][0]
    assert RIGHT.mean() < share < 1


def test_rows_without_the_lens_are_left_out_of_the_curve(tmp_path: Path):
    lens_store(tmp_path / "store", samples=50)
    found = table(stores.opened(tmp_path / "store"))
    assert set(found.filter(metric="auc_entropy")["n"]) == {50}
    assert set(found.filter(metric="exact_match")["n"]) == {N}


def test_nothing_to_tell_apart(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    put(run, {2: ["no answer at all"] * N})
    stores.put_lens(run, PROMPTS, {2: np.ones(N)}, {2: np.ones(N, bool)})
    notes = stores.Notes()
    found = table(stores.opened(tmp_path / "store"), notes)
    assert not found["metric"].str.starts_with("auc_").any()
    said = f"{run.id}, toy, {text_stores.OUTPUT}: all answers are wrong by exact_match, so the lens has nothing to tell apart"
    assert said in notes.notes


def test_text_without_the_last_layer_or_the_lens(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    put(run, {0: TEXTS[0]})
    found = table(stores.opened(tmp_path / "store"))
    assert set(found["metric"]) == {"exact_match", "bleu", "left_out"}
    text_stores.put_text(run, PROMPTS, {2: TEXTS[2]})
    found = table(stores.opened(tmp_path / "store"))
    assert set(found["metric"]) == {"exact_match", "bleu", "left_out", "answer_correct"}
