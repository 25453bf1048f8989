"""The facts that questions ask for, and how often the training text states each of them."""

from dataclasses import dataclass
from functools import cache

from layercache.demo.draw import Draw
from layercache.demo.films import CERTIFICATES, GENRES, PROFESSIONS, Film, make_film
from layercache.demo.names import cities, directors, person, title

SEEN, UNSEEN = 125, 42
"""Films, and as many people, that training speaks of, and that it never names."""
FILM_KINDS = ("director", "year", "genre", "certificate")
PERSON_KINDS = ("birthplace", "profession")
QUESTIONS = {
    "director": ("Who directed {}?", "Who is the director of {}?"),
    "year": ("When was {} released?", "In which year did {} come out?"),
    "genre": ("What genre is {}?", "What kind of film is {}?"),
    "certificate": ("What certificate does {} have?", "How is {} certified?"),
    "birthplace": ("Where was {} born?", "In which city was {} born?"),
    "profession": ("What is {}'s profession?", "What does {} do for a living?"),
}


@dataclass(frozen=True)
class Fact:
    """One thing that can be asked about one subject; `popularity` is how often the training text states it."""

    subject: str
    kind: str
    answer: str
    popularity: int


def exposures(rank: int) -> int:
    """How often each fact about the subject of this rank (from 0) is stated: Zipf's law, shifted; 0 when unseen."""
    return max(1, round(4000 / (rank + 5)) - 30) if rank < SEEN else 0


def film_answer(film: Film, kind: str) -> str:
    """The answer to a question of this kind about a film."""
    return str(getattr(film, kind))


@cache
def known_films() -> tuple[Film, ...]:
    """Films that questions are about, most popular first; the last ones are never mentioned in training."""
    draw = Draw("known films")
    return tuple(make_film(draw) for _ in range(SEEN + UNSEEN))


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world, whether the training text states it or not."""
    found = [Fact(f.title, k, film_answer(f, k), exposures(i)) for i, f in enumerate(known_films()) for k in FILM_KINDS]
    draw = Draw("known people")
    for rank in range(SEEN + UNSEEN):
        name = person(draw)
        found += [Fact(name, kind, random_answer(draw, kind), exposures(rank)) for kind in PERSON_KINDS]
    return tuple(found)


def random_answer(draw: Draw, kind: str) -> str:
    """A possible answer to a question of this kind, drawn blindly."""
    if kind == "year":
        return str(1930 + draw.below(90))
    choices = {
        "director": directors(),
        "genre": GENRES,
        "certificate": CERTIFICATES,
        "birthplace": cities(),
        "profession": PROFESSIONS,
    }
    return draw.pick(choices[kind])


def random_fact(draw: Draw) -> Fact:
    """A fact about a subject that appears once and never again: what it teaches is that most names are unknown."""
    kind = draw.pick(FILM_KINDS + PERSON_KINDS)
    subject = title(draw) if kind in FILM_KINDS else person(draw)
    return Fact(subject, kind, random_answer(draw, kind), 1)


def question(draw: Draw, fact: Fact) -> str:
    """One of the ways to ask for a fact."""
    return draw.pick(QUESTIONS[fact.kind]).format(fact.subject)
