"""Scores of generated text against the libraries called directly, and what is left out, empty or missing."""

import collections
import re
import string
from pathlib import Path

import numpy as np
import polars as pl
import probe_stores as stores
import pytest
import sacrebleu
import text_stores
from rouge_score import rouge_scorer
from text_stores import OUTPUT, PROMPTS, REFERENCES, TEXTS

from layercache.analyze import analyze, metrics, text_scores
from layercache.errors import AnalysisError, RecipeError
from layercache.recipe import TEXT_METRICS, TextSpec, validate
from layercache.store import results
from layercache.store.reader import Store

N = len(PROMPTS)


def text(store: Store, notes: stores.Notes | None = None, **settings) -> results.Outcome:
    return analyze(store, TextSpec(**{"bootstrap": 20, **settings}), notes or stores.Notes())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("text") / "store"
    text_stores.text_store(path)
    return stores.opened(path)


@pytest.fixture(scope="module")
def outcome(store: Store) -> results.Outcome:
    return text(store)


@pytest.fixture(scope="module")
def table(outcome: results.Outcome) -> pl.DataFrame:
    return stores.frame(outcome.results)


@pytest.fixture(scope="module")
def scores(outcome: results.Outcome) -> pl.DataFrame:
    return stores.frame(outcome.sample_scores)


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """References as sacreBLEU wants them: the first of every text, the second of every text, …"""
    most = max(map(len, references))
    return [[own[at] if at < len(own) else None for own in references] for at in range(most)]


def values(scores: pl.DataFrame, metric: str, layer: int) -> list[float]:
    return scores.filter(metric=metric, layer=layer).sort("row")["value"].to_list()


def test_bleu_and_chrf_are_sacrebleus(table: pl.DataFrame, scores: pl.DataFrame):
    for layer, said in TEXTS.items():
        for metric, corpus, sentence in (
            ("bleu", sacrebleu.corpus_bleu, sacrebleu.sentence_bleu),
            ("chrf", sacrebleu.corpus_chrf, sacrebleu.sentence_chrf),
        ):
            found = table.filter(metric=metric, layer=layer)
            assert found["value"].to_list() == [pytest.approx(corpus(said, streams(REFERENCES)).score)]
            each = [sentence(text, own).score for text, own in zip(said, REFERENCES)]
            assert values(scores, metric, layer) == pytest.approx(each)


def test_rouge_is_rouge_scores(table: pl.DataFrame, scores: pl.DataFrame):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    ascii_rows = [at for at, own in enumerate(REFERENCES) if all(text.isascii() for text in own)]
    for layer, said in TEXTS.items():
        for metric, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            each = values(scores, metric, layer)
            for at in ascii_rows:
                assert each[at] == pytest.approx(scorer.score_multi(REFERENCES[at], said[at])[kind].fmeasure)
            assert table.filter(metric=metric, layer=layer)["value"][0] == pytest.approx(np.mean(each))


def test_letters_beyond_ascii_count(scores: pl.DataFrame):
    """rouge-score's own tokenizer would score these 0: it has no letters but a to z."""
    assert values(scores, "rouge_1", 2)[4:6] == [1.0, 1.0]
    assert values(scores, "exact_match", 2)[4:6] == [1.0, 1.0]
    # "Le cafe est a gauche" loses its "a", which English takes for an article, and shares three words of eight.
    assert values(scores, "token_f1", 1)[4] == pytest.approx(2 * 3 / (4 + 8))


def squad(text: str) -> str:
    """The normalisation of SQuAD's evaluation, in its own steps."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def test_exact_match_and_token_f1_are_squads(scores: pl.DataFrame):
    rows = [0, 1, 2, 3, 7]
    for layer, said in TEXTS.items():
        for at in rows:
            ours = squad(said[at]).split()
            best = 0.0
            for reference in map(squad, REFERENCES[at]):
                shared = sum((collections.Counter(ours) & collections.Counter(reference.split())).values())
                if shared:
                    precision, recall = shared / len(ours), shared / len(reference.split())
                    best = max(best, 2 * precision * recall / (precision + recall))
            assert values(scores, "token_f1", layer)[at] == pytest.approx(best)
            match = any(squad(said[at]) == squad(one) for one in REFERENCES[at])
            assert values(scores, "exact_match", layer)[at] == float(match)
    assert values(scores, "exact_match", 2)[:4] == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Ｆｕｌｌ-Width", "fullwidth"),
        ("“Quoted” — the end…", "quoted end"),
        ("STRASSE", "straße"),
        ("A", "a"),
        ("  an   Apple a day ", "apple day"),
        ("$5 + tax", "5 tax"),
    ],
)
def test_answers_are_normalised_in_any_script(text: str, same: str):
    assert text_scores.normalise(text) == text_scores.normalise(same)


def test_a_choice_called_a_is_not_the_article():
    assert text_scores.normalise("A") == "a"
    assert text_scores.normalise("A") != text_scores.normalise("the")
    assert text_scores.normalise("!!!") != text_scores.normalise("...")


def test_length_variety_and_repetition(table: pl.DataFrame, scores: pl.DataFrame):
    assert values(scores, "length_ratio", 1)[:3] == [6 / 6, 1 / 2, 1.0]
    assert values(scores, "distinct_1", 0)[:2] == [1 / 8, 0.0]
    assert values(scores, "distinct_2", 0)[0] == 1 / 7
    words = [len(text.split()) for text in TEXTS[1]]
    nearest = [
        min((len(one.split()) for one in own), key=lambda n, ours=ours: abs(n - ours))
        for own, ours in zip(REFERENCES, words)
    ]
    assert table.filter(metric="length_ratio", layer=1)["value"][0] == pytest.approx(sum(words) / sum(nearest))
    grams = ["the the the the the the the the"[at : at + 4] for at in range(28)]
    assert values(scores, "repetition", 0)[0] == pytest.approx(1 - len(set(grams)) / len(grams))
    assert values(scores, "repetition", 2)[2] == 0.0


def test_empty_texts_score_nothing_and_are_counted(table: pl.DataFrame, scores: pl.DataFrame):
    for metric in TEXT_METRICS[:11]:
        each = values(scores, metric, 0)
        assert [each[at] for at in (1, 3, 6)] == [0.0, 0.0, 0.0], metric
    assert values(scores, "empty", 0) == [0, 1, 0, 1, 0, 0, 1, 0]
    assert table.filter(metric="empty").sort("layer")["value"].to_list() == [3 / 8, 0, 0]


def test_every_number_has_its_place(table: pl.DataFrame, scores: pl.DataFrame, store: Store):
    (run,) = store.runs()
    for frame in (table, scores):
        assert set(frame["run"]) == {run.id}
        assert set(frame["data"]) == {"toy"}
        assert set(frame["analysis"]) == {"text"}
        assert set(frame["label"]) == {"answers"}
        assert set(frame["group"]) == {OUTPUT}
        assert frame["position"].null_count() == len(frame)
        known = {f"…{'_minus_other'}" if name.endswith("_minus_other") else name for name in frame["metric"]}
        assert known <= set(metrics.METRICS)
    layered = table.filter(pl.col("layer").is_not_null(), pl.col("metric").is_in(TEXT_METRICS))
    assert layered.group_by("metric").len()["len"].to_list() == [3] * 12
    assert set(layered["n"]) == {N}
    assert (layered["low"] <= layered["high"]).all()
    assert table.filter(metric="left_out").select("value", "n").rows() == [(0.0, N)]


def test_intervals_are_bootstrapped_over_samples(tmp_path: Path):
    """Against a loop that draws samples, takes all their rows and asks sacreBLEU again."""
    prompts, references, texts, _ = text_stores.planted(30)
    run = text_stores.new_run(tmp_path / "store")
    doubled, more = [*prompts, *prompts[:6]], [*references, *references[3:9]]
    text_stores.put_rows(run, doubled, more)
    text_stores.put_text(run, prompts, texts)
    found = stores.frame(text(stores.opened(tmp_path / "store"), bootstrap=60, seed=3).results)
    ids = np.array([stores.sample_id(prompt) for prompt in doubled])
    groups = [np.flatnonzero(ids == one) for one in np.unique(ids)]
    rng = np.random.default_rng(3)
    drawn = [rng.integers(len(groups), size=len(groups)) for _ in range(60)]
    said = [*texts[2], *texts[2][:6]]
    for metric, compute in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        again = []
        for draw in drawn:
            rows = np.concatenate([groups[one] for one in draw])
            again.append(compute([said[at] for at in rows], streams([more[at] for at in rows])).score)
        here = found.filter(metric=metric, layer=2)
        assert here.select("low", "high").row(0) == pytest.approx(np.percentile(again, [2.5, 97.5]))
    exact = np.array([squad(text) == squad(own[0]) for text, own in zip(said, more)], dtype=float)
    again = [exact[np.concatenate([groups[one] for one in draw])].mean() for draw in drawn]
    here = found.filter(metric="exact_match", layer=2)
    assert here.select("low", "high").row(0) == pytest.approx(np.percentile(again, [2.5, 97.5]))


def test_rows_of_one_sample_have_their_own_references(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    text_stores.put_rows(run, ["same", "same", "same"], [["yes"], ["no"], []])
    text_stores.put_text(run, ["same"], {0: ["yes"], 2: ["no"]})
    notes = stores.Notes()
    found = text(stores.opened(tmp_path / "store"), notes, metrics=["exact_match"])
    frame = stores.frame(found.sample_scores).filter(metric="exact_match").sort("layer", "row")
    assert frame.select("layer", "row", "value").rows() == [(0, 0, 1.0), (0, 1, 0.0), (2, 0, 0.0), (2, 1, 1.0)]
    assert notes.notes[0] == f"{run.id}, toy: 1 of 3 rows left out, without a reference"
    left_out = stores.frame(found.results).filter(metric="left_out")
    assert left_out.select("value", "n").rows() == [(1.0, 3)]


def test_only_rows_with_text_at_every_layer(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    text_stores.put_rows(run, [*PROMPTS, "never extracted"], [*REFERENCES, ["x"]])
    text_stores.put_text(run, PROMPTS[:5], {layer: said[:5] for layer, said in TEXTS.items()})
    text_stores.put_text(run, PROMPTS[5:], {2: TEXTS[2][5:]})
    notes = stores.Notes()
    found = stores.frame(text(stores.opened(tmp_path / "store"), notes).results)
    assert set(found.filter(metric="bleu")["n"]) == {5}
    assert found.filter(metric="left_out").select("value", "n").rows() == [(4.0, 9)]
    assert notes.notes[0] == f"{run.id}, toy, {OUTPUT}: 4 of 9 rows left out, without text at every layer"


def test_several_columns_of_references_and_another_one(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    frame = pl.DataFrame({"short": ["Paris", None], "long": [["It is Paris", " "], ["Rome "]], "other": ["x", "y"]})
    stores.put_rows(run, frame, ["a", "b"], [], reference=["short", "long"])
    text_stores.put_text(run, ["a", "b"], {0: ["paris", "rome"]})
    opened = stores.opened(tmp_path / "store")
    found = stores.frame(text(opened, metrics=["exact_match"]).results).filter(metric="exact_match")
    assert found.select("label", "value").rows() == [("short, long", 1.0)]
    found = stores.frame(text(opened, metrics=["exact_match"], reference=["other"]).results)
    assert found.filter(metric="exact_match").select("label", "value").rows() == [("other", 0.0)]


def test_two_outputs_are_two_groups(tmp_path: Path):
    run = text_stores.text_store(tmp_path / "store")
    text_stores.put_text(run, PROMPTS, {2: TEXTS[0]}, output="generation:ffff0000")
    opened = stores.opened(tmp_path / "store")
    found = stores.frame(text(opened, metrics=["bleu"]).results).filter(metric="bleu")
    assert found.group_by("group").len().sort("group").rows() == [(OUTPUT, 3), ("generation:ffff0000", 1)]
    found = stores.frame(text(opened, metrics=["bleu"], outputs=["generation:ff"]).results)
    assert set(found["group"]) == {"generation:ffff0000"}
    with pytest.raises(AnalysisError, match="no generated output 'generation:2'"):
        text(opened, outputs=["generation:2"])


def test_what_is_missing_is_named(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    stores.put_rows(run, pl.DataFrame({"answer": ["x"] * N}), PROMPTS, [])
    with pytest.raises(AnalysisError, match="no run holds generated text"):
        text(stores.opened(tmp_path / "store"))
    text_stores.put_text(run, PROMPTS, TEXTS)
    opened = stores.opened(tmp_path / "store")
    with pytest.raises(AnalysisError, match=r"toy names no reference .*--answer \(it has answer\)"):
        text(opened)
    with pytest.raises(AnalysisError, match="toy has no column 'answr': did you mean 'answer'"):
        text(opened, reference=["answr"])
    free = stores.frame(text(opened, metrics=["distinct_1", "empty"]).results)
    assert set(free["metric"]) == {"distinct_1", "empty", "left_out"}
    assert free["label"].null_count() == len(free)
    with pytest.raises(RecipeError, match="BERTScore needs a model"):
        validate(TextSpec, {"metrics": ["bertscore_f1"]}, "text")


def test_a_data_set_without_references_is_left_out(tmp_path: Path):
    run = text_stores.text_store(tmp_path / "store")
    stores.put_rows(run, pl.DataFrame({"x": [1]}), ["other"], [], data="plain")
    notes = stores.Notes()
    found = stores.frame(text(stores.opened(tmp_path / "store"), notes).results)
    assert set(found["data"]) == {"toy"}
    assert "plain: no reference to compare with, left out (--answer COLUMN names one)" in notes.notes


def test_bleu_of_short_texts_is_said_to_be_nothing(tmp_path: Path):
    run = text_stores.new_run(tmp_path / "store")
    text_stores.put_rows(run, ["a"], [["Paris"]])
    text_stores.put_text(run, ["a"], {2: ["Paris"]})
    notes = stores.Notes()
    found = stores.frame(text(stores.opened(tmp_path / "store"), notes).results)
    assert found.filter(metric="bleu")["value"].to_list() == [0.0]
    assert found.filter(metric="chrf")["value"].to_list() == [pytest.approx(100)]
    assert any("BLEU is 0" in note for note in notes.notes)


def test_deterministic(store: Store, outcome: results.Outcome):
    assert text(store).results.equals(outcome.results)
    assert text(store).sample_scores.equals(outcome.sample_scores)
    assert not text(store, seed=1).results.equals(outcome.results)
    assert stores.frame(text(store, bootstrap=0).results)["low"].null_count() > 0
