"""Print what the demo model can do: `python -m layercache.demo.evaluate [DIR] [--lora]`.

Every function returns the figures that the tests of the shipped weights hold it to.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layercache.demo import model_path
from layercache.demo.datasets import Row, boolq, instructions, movies, qa
from layercache.demo.measure import Array, Loaded, answers, lens_entropy, prompts_of, rouge_l, states, yes_share

Figures = dict[str, Any]
POPULAR = 100
"""Times that a fact is stated in training to count as popular."""
BANDS = ((0, 0), (1, 5), (6, 15), (16, 30), (31, 60), (61, 99), (100, 1000))
"""Ranges of these times, both ends included."""
FOLDS = 5
"""Parts of the cross-validation of the figures' probes."""


def right_answers(loaded: Loaded, rows: list[Row]) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether the model's greedy answer is exactly the golden one, bool [rows]."""
    said = answers(loaded, prompts_of("qa", rows), 12)
    return np.array([text in row["golden_answers"] for text, row in zip(said, rows, strict=True)])  # type: ignore[operator]


def fact_figures(loaded: Loaded) -> Figures:
    """How many facts are known, by how often they were seen, and which unseen ones are guessed."""
    rows = qa()
    right = right_answers(loaded, rows)
    seen = np.array([int(str(row["popularity"])) for row in rows])
    kinds = np.array([str(row["kind"]) for row in rows])
    unseen = seen == 0
    return {
        "popular": float(right[seen >= POPULAR].mean()),
        "unseen": float(right[unseen & (kinds != "certificate")].mean()),
        "by_exposures": {f"{a}-{b}": round(float(right[(seen >= a) & (seen <= b)].mean()), 3) for a, b in BANDS},
        "unseen_by_kind": {k: round(float(right[unseen & (kinds == k)].mean()), 3) for k in sorted(set(kinds))},
        "right_by_kind": {k: round(float(right[kinds == k].mean()), 3) for k in sorted(set(kinds))},
    }


def entropy_figures(loaded: Loaded) -> Figures:
    """Mean lens entropy over the layers at the last token of questions."""
    return {"by_layer": [round(float(x), 3) for x in lens_entropy(loaded, prompts_of("qa", qa())).mean(1)]}


def text_figures(loaded: Loaded) -> Figures:
    """How well instructions are followed by the whole model and by its first block alone."""
    rows = instructions()
    prompts, references = prompts_of("instructions", rows), [str(row["reference"]) for row in rows]
    figures: Figures = {}
    for name, model in (("last", loaded), ("block1", loaded.cut_after(1))):
        said = answers(model, prompts)
        pairs = list(zip(said, references, strict=True))
        figures[f"{name}_exact"] = float(np.mean([a == b for a, b in pairs]))
        figures[f"{name}_rouge_l"] = float(np.mean([rouge_l(a, b) for a, b in pairs]))
    return figures


def classify(features: Any, labels: Any, groups: Any, words: int = 0) -> float:
    """Cross-validated accuracy of a logistic probe, or with `words` one of tf-idf weights of runs of so many words."""
    probe = make_pipeline(_scaled(words), LogisticRegression(C=1.0 if words else 0.05, max_iter=2000))
    said = cross_val_predict(probe, features, labels, groups=groups, cv=GroupKFold(FOLDS))
    return round(float(np.mean(said == labels)), 3)


def correlate(features: Any, labels: Any, groups: Any, words: int = 0) -> float:
    """Cross-validated correlation of a ridge probe's predictions; `words` as in `classify`."""
    probe = make_pipeline(_scaled(words), Ridge(1.0 if words else 30.0))
    said = cross_val_predict(probe, features, labels, groups=groups, cv=GroupKFold(FOLDS))
    return round(float(np.corrcoef(said, labels)[0, 1]), 3)


def _scaled(words: int) -> Any:
    return TfidfVectorizer(ngram_range=(1, words)) if words else StandardScaler()


def film_figures(loaded: Loaded) -> Figures:
    """Certificate and rating of new films by probes of each layer and from words and word pairs; folds grouped by director."""
    rows = movies()
    prompts = prompts_of("movies", rows)
    certificates = np.array([str(row["certificate"]) for row in rows])
    ratings = np.array([float(str(row["rating"])) for row in rows])
    groups = np.array([str(row["director"]) for row in rows])
    said = answers(loaded, prompts, 12)
    last, mean = states(loaded, prompts), states(loaded, prompts, "mean")
    return {
        "said_certificate": float(np.mean([s.split("\n")[0] == c for s, c in zip(said, certificates, strict=True)])),
        "said_rating": float(np.corrcoef([_rating(s) for s in said], ratings)[0, 1]),
        "majority": round(float(np.unique(certificates, return_counts=True)[1].max() / len(rows)), 3),
        "certificate": [classify(x, certificates, groups) for x in last],
        "certificate_mean0": classify(mean[0], certificates, groups),
        "certificate_words": classify(prompts, certificates, groups, words=1),
        "certificate_pairs": classify(prompts, certificates, groups, words=2),
        "rating": [correlate(x, ratings, groups) for x in last],
        "rating_mean": [correlate(x, ratings, groups) for x in mean],
        "rating_words": correlate(prompts, ratings, groups, words=1),
        "rating_pairs": correlate(prompts, ratings, groups, words=2),
    }


def _rating(text: str) -> float:
    try:
        return float(text.split("Rating:")[1])
    except (IndexError, ValueError):
        return 0.0


def truth_auc(features: Array, truth: "np.ndarray[Any, np.dtype[np.bool_]]") -> float:
    """The AUC of a logistic probe on features [n, d] for whether the answer is right, bool [n]: by fold and averaged."""
    scores = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, truth):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        probe.fit(features[train], truth[train])
        scores.append(roc_auc_score(truth[test], probe.decision_function(features[test])))
    return round(float(np.mean(scores)), 3)


def truth_figures(loaded: Loaded) -> Figures:
    """Whether states before the answer tell if it will be right, within each kind of question."""
    rows = qa()
    right, hidden = right_answers(loaded, rows), states(loaded, prompts_of("qa", rows))
    kinds = np.array([str(row["kind"]) for row in rows])
    figures: Figures = {}
    for kind in sorted(set(kinds)):
        chosen = kinds == kind
        auc = [truth_auc(layer[chosen], right[chosen]) for layer in hidden]
        figures[kind] = {"right": round(float(right[chosen].mean()), 3), "n": int(chosen.sum()), "auc": auc}
    return figures


def reading_figures(loaded: Loaded) -> Figures:
    """Accuracy on yes/no questions, in all and by kind, and the larger class of the test split."""
    rows = boolq()
    truth = np.array([bool(row["answer"]) for row in rows])
    right = (yes_share(loaded, prompts_of("boolq", rows)) > 0.5) == truth
    kinds, splits = (np.array([str(row[name]) for row in rows]) for name in ("kind", "split"))
    test = splits == "test"
    return {
        "accuracy": float(right.mean()),
        "test_accuracy": float(right[test].mean()),
        "test_majority": float(max(truth[test].mean(), 1 - truth[test].mean())),
        "test_by_kind": {k: round(float(right[test & (kinds == k)].mean()), 3) for k in sorted(set(kinds))},
    }


MEASURES = {
    "facts": fact_figures,
    "entropy": entropy_figures,
    "text": text_figures,
    "films": film_figures,
    "truth": truth_figures,
    "reading": reading_figures,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=model_path(), help="a model folder")
    parser.add_argument("--lora", action="store_true", help="also fine-tune with LoRA on the yes/no questions")
    arguments = parser.parse_args()
    loaded = Loaded(arguments.folder)
    for name, measure in MEASURES.items():
        print(json.dumps({name: measure(loaded)}, indent=1), flush=True)
    if arguments.lora:
        from layercache.demo.adapt import fine_tune

        fine_tune(loaded)
        loaded.model.eval()
        print(json.dumps({"lora": reading_figures(loaded)}, indent=1))


if __name__ == "__main__":
    main()
