"""Instructions with short answers: plain knowledge, comparing, copying and composing."""

from collections.abc import Callable

from layercache.demo.draw import Draw
from layercache.demo.films import PROFESSIONS
from layercache.demo.names import words
from layercache.demo.reading import ANIMALS, COLOURS, FOODS

OPPOSITES = words(
    "hot-cold big-small open-closed full-empty wet-dry up-down old-young fast-slow early-late good-bad light-dark "
    "loud-quiet rich-poor strong-weak near-far sweet-sour"
)
COLOUR_OF = words(
    "snow-white grass-green coal-black blood-red milk-white ink-blue mud-brown rust-orange salt-white corn-yellow "
    "moss-green tar-black sky-blue wood-brown"
)
SOUNDS = words("cow-moo cat-meow dog-woof duck-quack sheep-baa pig-oink horse-neigh owl-hoot")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
WORDS = ANIMALS + COLOURS + FOODS + PROFESSIONS

Task = tuple[str, str]


def fixed_tasks() -> list[Task]:
    """Instructions whose answers are plain knowledge."""
    found: list[Task] = []
    for pair in OPPOSITES:
        a, b = pair.split("-")
        found += [(f"Name the opposite of {x}.", f"The opposite of {x} is {y}.") for x, y in ((a, b), (b, a))]
    for pair in COLOUR_OF:
        thing, colour = pair.split("-")
        found.append((f"What colour is {thing}?", f"The colour of {thing} is {colour}."))
    for pair in SOUNDS:
        animal, sound = pair.split("-")
        found.append((f"What sound does a {animal} make?", f"A {animal} says {sound}."))
    for i, day in enumerate(DAYS):
        after = DAYS[(i + 1) % 7]
        found.append((f"Which day comes after {day}?", f"The day after {day} is {after}."))
    return found


def _larger(draw: Draw) -> Task:
    a = draw.below(10)
    b = draw.other(range(10), a)
    return f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."


def _last(draw: Draw) -> Task:
    listed = draw.sample(WORDS, 3)
    return f"Give the last word of {', '.join(listed)}.", f"The last word is {listed[-1]}."


def _twice(draw: Draw) -> Task:
    word = draw.pick(WORDS)
    return f"Say {word} twice.", f"{word} {word}"


def _sentence(draw: Draw) -> Task:
    who, animal, food = draw.pick(PROFESSIONS), draw.pick(ANIMALS), draw.pick(FOODS)
    return f"Write about a {who}, a {animal} and {food}.", f"The {who} and the {animal} eat {food}."


MADE: tuple[Callable[[Draw], Task], ...] = (_larger, _last, _twice, _sentence)


def make_task(draw: Draw) -> Task:
    """A random instruction with its answer."""
    return draw.pick(fixed_tasks()) if draw.chance(0.4) else draw.pick(MADE)(draw)


def listed_tasks() -> list[Task]:
    """Different instructions: all of the fixed ones and some of every kind that is made up on the spot."""
    draw = Draw("instructions")
    found = dict(fixed_tasks())
    for kind in MADE:
        wanted = len(found) + 42
        while len(found) < wanted:
            instruction, answer = kind(draw)
            found[instruction] = answer
    return list(found.items())
