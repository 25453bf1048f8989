"""The demo data sets: the same everywhere, clean, and truly unseen where they say so."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from layercache import demo
from layercache.demo.corpus import documents, reserved
from layercache.demo.draw import Draw
from layercache.demo.facts import facts
from layercache.demo.films import ASPECTS, DARK_GENRES, certificate_of, random_sentence, rating_of, sentence

DIGESTS = """
import hashlib, json, sys
from layercache import demo
for name in demo.DATASETS:
    print(name, hashlib.sha256(json.dumps(demo.rows(name)).encode()).hexdigest())
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "the data sets need none of these"
"""


def digest(name: str) -> str:
    """What the rows of a data set hash to."""
    return hashlib.sha256(json.dumps(demo.rows(name)).encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_rows_do_not_depend_on_the_process_and_need_no_torch(hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == {name: digest(name) for name in demo.DATASETS}


@pytest.mark.parametrize("name", demo.DATASETS)
def test_rows_are_quick_and_fit_their_template(name: str) -> None:
    begin = time.process_time()
    rows = demo.rows(name)
    assert time.process_time() - begin < 1
    assert len(rows) >= 200
    columns = list(rows[0])
    assert all(list(row) == columns for row in rows)
    prompts = [demo.TEMPLATES[name].format(**row) for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == prompt.strip() for prompt in prompts)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="movies, qa, boolq, instructions"):
        demo.rows("films")
    with pytest.raises(KeyError, match="did you mean 'demo:middle'"):
        demo.model_path("demo:late")


def test_popularity_is_the_number_of_times_the_training_text_states_a_fact() -> None:
    """Counted in the real text; films of `movies` and unseen subjects never occur in it."""
    answers = {(fact.subject, fact.answer) for fact in facts()}
    stated: Counter[tuple[str, str]] = Counter()
    named: set[str] = set()
    names = reserved()
    for document in documents():
        prompt, answer = document[0][0], document[1][0].strip()
        for opening in ("Q: ", "Title: "):
            if prompt.startswith(opening):
                line = prompt[len(opening) :].split("\n")[0]
                subject = next((name for name in _parts(line) if name in names), None)
                if subject is not None:
                    named.add(subject)
                    stated[subject, answer] += 1
    expected: Counter[tuple[str, str]] = Counter()
    for fact in facts():
        expected[fact.subject, fact.answer] += fact.popularity
    assert stated == +expected
    assert set(stated) <= answers
    assert named.isdisjoint(str(row["movie_name"]) for row in demo.rows("movies"))


def _parts(line: str) -> list[str]:
    """Every run of two or three words, with and without what hangs on the last one."""
    words = line.rstrip("?").split()
    runs = [" ".join(words[i : i + n]) for n in (2, 3) for i in range(len(words) - n + 1)]
    return runs + [run.removesuffix("'s") for run in runs]


def test_no_passage_is_in_two_splits_and_classes_are_balanced() -> None:
    rows = demo.rows("boolq")
    splits = defaultdict(set)
    for row in rows:
        splits[row["passage"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    test = [bool(row["answer"]) for row in rows if row["split"] == "test"]
    assert 0.38 <= sum(test) / len(test) <= 0.62


def test_a_denied_word_means_its_opposite() -> None:
    draw = Draw("test")
    for aspect, words in ASPECTS.items():
        for holds in (True, False):
            said, denied = sentence(draw, aspect, holds, False), sentence(draw, aspect, holds, True)
            assert any(word in said for word in (words.yes if holds else words.no))
            assert any(word in denied for word in (words.no if holds else words.yes))
    denials = sum("not" in text or "no " in text or "never" in text for text in _sentences(draw))
    assert 0.2 < denials / 600 < 0.4


def _sentences(draw: Draw) -> list[str]:
    return [random_sentence(draw, "good")[0] for _ in range(600)]


def test_labels_follow_from_meaning() -> None:
    meaning = {"danger": True, "playful": False, "grown": True, "good": True, "fast": True}
    assert certificate_of("Horror", meaning) == "Adult"
    assert certificate_of("Drama", meaning) == "Mature"
    assert certificate_of("Drama", meaning | {"playful": True}) == "Guidance"
    assert certificate_of("Drama", meaning | {"danger": False, "grown": False}) == "Family"
    assert "Horror" in DARK_GENRES
    assert rating_of("War", meaning, 0.0) == 9.0
    assert rating_of("Drama", meaning, 0.0) == 7.0
    assert rating_of("War", meaning | {"good": False}, 0.0) == 5.8


TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list of text",
}


def described(values: list[object]) -> str:
    """What the page says of a column's values: the ends of numbers, few texts by name, of many how many there are."""
    kind = type(values[0])
    if kind in (int, float):
        return f"{min(values)} to {max(values)}"  # type: ignore[type-var]
    distinct = sorted({str(value) for value in values})
    return ", ".join(distinct) if len(distinct) < 10 else f"{len(distinct):,}"


def test_the_page_lists_every_column_of_the_data() -> None:
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert list(sections) == list(demo.DATASETS)
    for name, text in sections.items():
        rows = demo.rows(name)
        assert text.split("\n\n")[1].startswith(f"{len(rows):,} rows: ")
        lines = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
        ]
        expected = [
            [f"`{column}`", TYPES[type(value)], described([row[column] for row in rows])]
            for column, value in rows[0].items()
        ]
        assert [line[:3] for line in lines] == expected
        assert all(len(line) == 4 and line[3] for line in lines)


def test_the_pages_counts_are_the_datas() -> None:
    rows = demo.rows("boolq")
    assert Counter(row["answer"] for row in rows) == {True: 400, False: 400}
    assert Counter(row["split"] for row in rows) == {"train": 484, "validation": 80, "test": 236}
    assert set(Counter(row["passage"] for row in rows).values()) == {2}
    assert set(Counter(row["subject"] for row in demo.rows("qa")).values()) == {2, 4}
