"""Yes/no questions over a passage.

Three kinds: `plain` (is the asked value in the passage?), `negated` ("is it wrong that …", kept out of the base text,
so that fine-tuning has something to restore) and `binding` (two people, whose is the value? also kept out, and hard).
"""

from dataclasses import dataclass

from layercache.demo.draw import Draw
from layercache.demo.films import GENRES, PROFESSIONS
from layercache.demo.names import cities, person, title, words

COLOURS = words("red blue green yellow purple orange pink brown black white")
ANIMALS = words("goat cat dog horse parrot rabbit snake turtle hen pig duck fox")
FOODS = words("soup bread cheese honey rice beans cake plums fish eggs")


@dataclass(frozen=True)
class Relation:
    """A property with its possible values, ways to state it, and how to ask for it."""

    values: tuple[str, ...]
    stated: tuple[str, ...]
    asked: str
    claimed: str
    wanted: str


PERSON_RELATIONS = {
    "city": Relation(
        cities(),
        ("{s} was born in {v}.", "{s} comes from {v}."),
        "was {s} born in {v}",
        "{s} was born in {v}",
        "where was {s} born",
    ),
    "work": Relation(
        PROFESSIONS,
        ("{s} works as a {v}.", "{s} is a {v} by trade."),
        "does {s} work as a {v}",
        "{s} works as a {v}",
        "what work does {s} do",
    ),
    "colour": Relation(
        COLOURS,
        ("{s} likes the colour {v}.", "{s} always wears {v}."),
        "does {s} like {v}",
        "{s} likes {v}",
        "which colour does {s} like",
    ),
    "animal": Relation(
        ANIMALS,
        ("{s} keeps a {v}.", "{s} owns a {v}."),
        "does {s} keep a {v}",
        "{s} keeps a {v}",
        "which animal does {s} keep",
    ),
    "food": Relation(
        FOODS,
        ("{s} often eats {v}.", "{s} cooks {v}."),
        "does {s} eat {v}",
        "{s} eats {v}",
        "what does {s} eat",
    ),
}
FILM_RELATIONS = {
    "city": Relation(
        cities(),
        ("{s} was shot in {v}.", "{s} is set in {v}."),
        "was {s} shot in {v}",
        "{s} was shot in {v}",
        "where was {s} shot",
    ),
    "genre": Relation(
        GENRES,
        ("{s} is a {v} film.", "{s} belongs to {v}."),
        "is {s} a {v} film",
        "{s} is a {v} film",
        "what kind of film is {s}",
    ),
    "about": Relation(
        PROFESSIONS,
        ("{s} is about a {v}.", "{s} follows a {v}."),
        "is {s} about a {v}",
        "{s} is about a {v}",
        "who is {s} about",
    ),
    "animal": Relation(
        ANIMALS,
        ("{s} stars a {v}.", "{s} features a {v}."),
        "does {s} feature a {v}",
        "{s} features a {v}",
        "which animal does {s} feature",
    ),
}


@dataclass(frozen=True)
class Passage:
    """A passage, its subjects, and what it says of each."""

    text: str
    relations: dict[str, Relation]
    said: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Item:
    """A yes/no question over a passage."""

    question: str
    passage: str
    answer: bool
    kind: str


def passage_about_one(draw: Draw, n_facts: int) -> Passage:
    """A passage about one person or film."""
    film = draw.chance(0.4)
    relations = FILM_RELATIONS if film else PERSON_RELATIONS
    subject = title(draw) if film else person(draw)
    values = {name: draw.pick(relations[name].values) for name in draw.sample(list(relations), n_facts)}
    stated = [draw.pick(relations[name].stated) for name in values]
    subjects = [subject] + ["It" if film else draw.pick(("He", "She"))] * (n_facts - 1)
    parts = [text.format(s=s, v=v) for text, s, v in zip(stated, subjects, values.values(), strict=True)]
    return Passage(" ".join(parts), relations, {subject: values})


def passage_about_two(draw: Draw) -> Passage:
    """A passage about two people who differ in the same two properties."""
    first, second = person(draw), person(draw)
    said: dict[str, dict[str, str]] = {first: {}, second: {}}
    parts = []
    for name in draw.sample(list(PERSON_RELATIONS), 2):
        relation = PERSON_RELATIONS[name]
        said[first][name] = draw.pick(relation.values)
        said[second][name] = draw.other(relation.values, said[first][name])
        parts += [draw.pick(relation.stated).format(s=s, v=said[s][name]) for s in draw.shuffled([first, second])]
    return Passage(" ".join(parts), PERSON_RELATIONS, said)


def ask(draw: Draw, passage: Passage, kind: str) -> Item:
    """A question of one kind over a passage; true and false are equally likely."""
    subject = draw.pick(list(passage.said))
    name = draw.pick(list(passage.said[subject]))
    right, relation, holds = passage.said[subject][name], passage.relations[name], draw.chance(0.5)
    others = [values[name] for who, values in passage.said.items() if who != subject]
    wrong = others[0] if others else draw.other(relation.values, right)
    value = right if holds else wrong
    if kind == "negated":
        return Item("is it wrong that " + relation.claimed.format(s=subject, v=value), passage.text, not holds, kind)
    return Item(relation.asked.format(s=subject, v=value), passage.text, holds, kind)


def make_items(draw: Draw, kind: str, n_facts: int, count: int) -> list[Item]:
    """Different questions over one new passage."""
    passage = passage_about_two(draw) if kind == "binding" else passage_about_one(draw, n_facts)
    found: dict[str, Item] = {}
    while len(found) < count:
        item = ask(draw, passage, kind)
        found[item.question] = item
    return list(found.values())


def open_question(draw: Draw) -> tuple[str, str, str]:
    """A question for a value, the passage, and the value."""
    passage = passage_about_one(draw, 2 + draw.below(3))
    subject, values = next(iter(passage.said.items()))
    name = draw.pick(list(values))
    return passage.relations[name].wanted.format(s=subject), passage.text, values[name]
