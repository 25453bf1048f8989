"""Which name was perhaps meant: the near one, and none where none is near."""

import pytest

from layercache.nearest import hint, nearest

FILMS = [
    "movie_id",
    "movie_name",
    "title",
    "certificate",
    "runtime",
    "genre",
    "rating",
    "description",
    "director",
    "star",
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("titel", "title"),
        ("Title", "title"),
        ("certficate", "certificate"),
        ("name", "movie_name"),
        ("desc", "description"),
        ("film_rating", "rating"),
        ("gennre", "genre"),
    ],
)
def test_the_near_name_is_proposed(typed: str, meant: str) -> None:
    assert nearest(typed, FILMS) == [meant]
    assert hint(typed, FILMS) == f"did you mean {meant!r}?"


@pytest.mark.parametrize("typed", ["titel", "xyz", "id", "popularity", ""])
def test_nothing_is_proposed_where_nothing_is_near(typed: str) -> None:
    known = ["movie_name", "certificate", "runtime", "rating"]
    assert nearest(typed, known) == []
    assert hint(typed, known) == "there are movie_name, certificate, runtime, rating"


def test_a_name_spelt_nearly_comes_before_one_that_it_is_part_of() -> None:
    assert nearest("star", ["start_of_it", "stars", "x_star"], n=3) == ["stars", "x_star", "start_of_it"]
