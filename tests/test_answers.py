"""The labels of answers, case by case."""

import pytest

from layercache.answers import Labelled, first_clause, label, read_aliases
from layercache.errors import DataError
from layercache.folding import fold

RIGHT = [
    # the answer, its aliases, the exact answer
    ("the beatles", ["The Beatles"], "beatles"),
    ("Beatles", ["The Beatles"], "Beatles"),
    ("It was The Beatles, in 1967.", ["Beatles"], "Beatles"),
    (" PARIS\n", ["Paris"], "PARIS"),
    ("It is Paris.", ["Lyon", "Paris"], "Paris"),
    ("Paris, France", ["Paris", "Paris, France"], "Paris, France"),
    ("Paris France", ["Paris, France"], "Paris France"),
    ("Beyonce", ["Beyoncé"], "Beyonce"),
    ("Beyonce\u0301!", ["Beyonce"], "Beyonce\u0301"),
    ("Malmo", ["Malmö"], "Malmo"),
    ("Aethelburh of Lodz", ["Æthelburh of Łódź"], "Aethelburh of Lodz"),
    ("Strasse", ["Straße"], "Strasse"),
    ("ＡＢＣ", ["ABC"], "ＡＢＣ"),
    ("1,000 miles", ["1000"], "1,000"),
    ("about 1000", ["1,000"], "1000"),
    ("1,234,567", ["1234567"], "1,234,567"),
    ("the 2nd of May", ["second of May"], "2nd of May"),
    ("seven", ["7"], "seven"),
    ("7", ["seven"], "7"),
    ("There are 12 of them", ["12"], "12"),
    ("on 14 December 1972.", ["December 1972"], "December 1972"),
    ("$3.5 million", ["3.5 million"], "3.5 million"),
    ("red, white and blue", ["red, white, blue"], "red, white and blue"),
    ("Red, white & blue", ["red white and blue"], "Red, white & blue"),
    ("Simon & Garfunkel", ["Simon and Garfunkel"], "Simon & Garfunkel"),
    ("Spiderman", ["Spider-Man"], "Spiderman"),
    ("Spider Man", ["Spider-Man"], "Spider Man"),
    ("Spider\u2011Man", ["Spiderman"], "Spider\u2011Man"),
    ("JRR Tolkien wrote it", ["J. R. R. Tolkien"], "JRR Tolkien"),
    ("J.R.R. Tolkien", ["JRR Tolkien"], "J.R.R. Tolkien"),
    ("the USA", ["U.S.A."], "USA"),
    ("O’Brien", ["O'Brien"], "O’Brien"),
    ("Shakespeare's", ["Shakespeare"], "Shakespeare"),
    ("McDonalds", ["McDonald's"], "McDonalds"),
    ("AC/DC", ["AC DC"], "AC/DC"),
    ("东京是日本的首都", ["东京"], "东京"),
    ("答えは東京です", ["東京"], "東京"),
    ("水", ["水"], "水"),
    ("No.", ["no"], "No"),
    ("No, they are not", ["no"], "No"),
    ("The answer is no.", ["no"], "no"),
    ("Yes, both are American.", ["yes"], "Yes"),
    ("It is the UK.", ["UK"], "UK"),
    ("A", ["A"], "A"),
    ("The answer: A.", ["A"], "A"),
    ("Blood type O", ["O"], "O"),
    ("The The", ["The The"], "The The"),
    ("!!!", ["!!!"], "!!!"),
    (" 🇦🇩.", ["🇦🇩"], "🇦🇩."),
    ("FOUR (4)", ["FOUR (4)"], "FOUR (4"),
    ("Not Lyon but Paris", ["Paris"], "Paris"),
    ("It is not Lyon. Paris is.", ["Paris"], "Paris"),
    ("Not only Paris", ["Paris"], "Paris"),
    ("Not Fade Away", ["Not Fade Away"], "Not Fade Away"),
    ("I'm not sure, but I think it is Paris.", ["Paris"], "Paris"),
    ("Unknown", ["Unknown"], "Unknown"),
    ("Nobody Knows", ["Nobody Knows"], "Nobody Knows"),
]
WRONG = [
    # the answer, its aliases, the first clause
    ("It is not that", ["no"], "It is not that"),
    ("nothing", ["no"], "nothing"),
    ("There is no such film", ["no"], "There is no such film"),
    ("No way out", ["no"], "No way out"),
    ("I saw it with us all yesterday at noon", ["US"], "I saw it with us all yesterday at noon"),
    ("A dog", ["A"], "A dog"),
    ("an apple a day", ["A"], "an apple a day"),
    ("U2 and others", ["U"], "U2 and others"),
    ("Parisian", ["Paris"], "Parisian"),
    ("The Beat", ["The Beatles"], "The Beat"),
    ("Beatles", ["The Beatles of Liverpool"], "Beatles"),
    ("15", ["1.5"], "15"),
    ("1-5", ["15"], "1-5"),
    ("3.5", ["5"], "3.5"),
    ("12,34", ["1234"], "12,34"),
    ("1990s", ["1990"], "1990s"),
    ("Paris", [""], "Paris"),
    ("Paris", [" ", "..."], "Paris"),
    ("Paris", [], "Paris"),
    ("is land", ["Island"], "is land"),
    ("火水木", ["水"], "火水木"),
    ("wow!!!", ["!!!"], "wow"),
    ("It is not Paris, but Lyon", ["Paris"], "It is not Paris"),
    ("It isn't in Paris", ["Paris"], "It isn't in Paris"),
    ("Lyon, or so they say", ["Paris"], "Lyon"),
    ("blue, white and red", ["red, white and blue"], "blue"),
    ("J. S. Bach. He wrote it", ["Mozart"], "J. S. Bach"),
    ("St. Louis, Missouri", ["Chicago"], "St. Louis"),
    ("3.14 or so; perhaps", ["2.72"], "3.14 or so"),
    ('"Hey Jude" (1968)', ["Help!"], "Hey Jude"),
    ("first line\nsecond line", ["third line"], "first line"),
    (": Lyon", ["Paris"], ": Lyon".strip(": ")),
    ("...", ["Paris"], "..."),
]
UNKNOWN = [
    "I don't know.",
    "I don’t know",
    "I do not know who directed it. It may be Paris.",
    "Unknown",
    "unknown.",
    "Sorry, I'm unable to answer that question about Paris.",
    "There is no information on that.",
    "I'm not sure.",
    "No one knows",
    "It is not known.",
    "N/A",
]


@pytest.mark.parametrize(("text", "aliases", "exact"), RIGHT)
def test_right_answers(text: str, aliases: list[str], exact: str) -> None:
    found = label(text, aliases)
    assert (found.correct, found.dont_know) == (True, False)
    assert text[found.start : found.end] == exact


@pytest.mark.parametrize(("text", "aliases", "clause"), WRONG)
def test_wrong_answers(text: str, aliases: list[str], clause: str) -> None:
    found = label(text, aliases)
    assert (found.correct, found.dont_know) == (False, False)
    assert text[found.start : found.end] == clause


@pytest.mark.parametrize("text", UNKNOWN)
def test_answers_that_say_they_do_not_know_are_never_right(text: str) -> None:
    found = label(text, ["Paris", "it"])
    assert (found.correct, found.dont_know) == (False, True)
    assert found.start is not None


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_answer_has_no_exact_one(text: str) -> None:
    assert label(text, ["Paris", ""]) == Labelled(False, False, None, None)
    assert first_clause(text) is None


def test_titles_that_speak_of_knowing_are_answers() -> None:
    assert not label("What We Do in the Shadows", ["x"]).dont_know
    assert not label("The Unknown Soldier", ["x"]).dont_know


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("The Beatles' song, 1,000 Miles", "beatles song 1000 miles"),
        ("J.R.R. Tolkien", "j-r-r-tolkien"),
        ("Rock-and-Roll", "rock-roll"),
        ("in (Paris)", "in paris"),
        ("が", "か\u3099"),
    ],
)
def test_keys(text: str, key: str) -> None:
    assert fold(text).key == key


@pytest.mark.parametrize(
    ("cell", "aliases"),
    [
        (["a", " b "], ["a", "b"]),
        (("a", 7, None), ["a", "7"]),
        ('["a", "b, c"]', ["a", "b, c"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("plain, text", ["plain, text"]),
        ("[sic] yes", ["[sic] yes"]),
        ("2017", ["2017"]),
        ("", None),
        ("[]", None),
        ([], None),
        ([""], None),
        (None, None),
    ],
)
def test_cells_of_accepted_answers(cell: object, aliases: list[str] | None) -> None:
    assert read_aliases(cell) == aliases


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (7, "7 is not a list of accepted answers"),
        (True, "True is not a list"),
        ({"text": "a"}, "an object is not a list"),
        ('{"text": "a"}', "an object is not a list"),
        ("[a, b]", "'\\[a, b\\]' opens like a list and is none"),
        ([["a"]], 'the list \\[\\["a"\\]\\] does not hold texts only'),
        ([True], "the list \\[true\\] does not hold texts only"),
    ],
)
def test_cells_that_are_no_accepted_answers(cell: object, message: str) -> None:
    with pytest.raises(DataError, match=f"column 'gold', row 3: {message}"):
        read_aliases(cell, lambda: "column 'gold', row 3")
