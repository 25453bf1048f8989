"""The training text: documents of weighted pieces, mixed in fixed shares."""

from collections.abc import Callable, Iterator
from functools import cache

from layercache.demo.datasets import TEMPLATES, new_films
from layercache.demo.draw import Draw
from layercache.demo.facts import Fact, facts, question, random_fact
from layercache.demo.films import (
    ASPECTS,
    GENRES,
    certificate_of,
    is_heavy,
    make_film,
    random_sentence,
    rating_of,
)
from layercache.demo.reading import make_items, open_question
from layercache.demo.tasks import WORDS, make_task

# Pieces of text with the weight of their tokens in the loss.
Document = tuple[tuple[str, float], ...]


@cache
def reserved() -> frozenset[str]:
    """Names that may not turn up by chance: the subjects of questions and the films of the `movies` data set."""
    return frozenset({fact.subject for fact in facts()} | {film.title for film in new_films()})


def answered(prompt: str, answer: str, weight: float, prompt_weight: float = 0.05) -> Document:
    """A prompt and its answer."""
    return (prompt, prompt_weight), (" " + answer, weight)


def card(draw: Draw) -> Document:
    """The card of a film that is never mentioned again."""
    film = make_film(draw)
    while film.title in reserved():
        film = make_film(draw)
    fields = {name: str(value) for name, value in vars(film).items()}
    return (
        (TEMPLATES["movies"].format(movie_name=film.title, **fields), 0.1),
        (f" {film.certificate}", 3.0),
        ("\nRating:", 0.1),
        (f" {film.rating}", 1.0),
    )


def judgement(draw: Draw) -> Document:
    """One or two sentences and what they mean: the first steps towards a certificate."""
    if draw.chance(0.5):
        said = {aspect: random_sentence(draw, aspect) for aspect in ("danger", "playful")}
        text = " ".join(draw.shuffled([text for text, _ in said.values()]))
        verdict = "heavy" if is_heavy({aspect: holds for aspect, (_, holds) in said.items()}) else "mild"
    else:
        aspect = draw.pick(list(ASPECTS))
        text, holds = random_sentence(draw, aspect)
        verdict = ASPECTS[aspect].verdicts[0 if holds else 1]
    return answered(f"Judge: {text}\nVerdict:", verdict, 2.0)


def remarks(draw: Draw) -> Document:
    """Sentences, each followed by what it means, so that its meaning is ready at its full stop."""
    pieces, meaning = [("Judge:", 0.05)], dict[str, bool]()
    for aspect in draw.shuffled(list(ASPECTS))[: 2 + draw.below(4)]:
        text, meaning[aspect] = random_sentence(draw, aspect)
        pieces += [(f" {text}", 0.05), (f" {ASPECTS[aspect].verdicts[0 if meaning[aspect] else 1]}", 1.0)]
    if {"danger", "playful"} <= set(meaning):
        pieces += [("\nVerdict:", 0.05), (" heavy" if is_heavy(meaning) else " mild", 3.0)]
    return tuple(pieces)


def annotated_card(draw: Draw) -> Document:
    """A card of a nameless film where half of the sentences are followed by what they mean."""
    genre, meaning = draw.pick(GENRES), dict[str, bool]()
    pieces = [(f"Genre: {genre}\nDescription:", 0.05)]
    for aspect in draw.shuffled(list(ASPECTS)):
        text, meaning[aspect] = random_sentence(draw, aspect)
        pieces.append((f" {text}", 0.05))
        if draw.chance(0.5):
            pieces.append((f" {ASPECTS[aspect].verdicts[0 if meaning[aspect] else 1]}", 1.0))
    labels = certificate_of(genre, meaning), rating_of(genre, meaning, 0.0)
    return (*pieces, ("\nCertificate:", 0.05), (f" {labels[0]}", 3.0), ("\nRating:", 0.05), (f" {labels[1]}", 1.0))


def asked(draw: Draw, fact: Fact) -> Document:
    """A question for a fact with its answer."""
    return answered(TEMPLATES["qa"].format(question=question(draw, fact)), fact.answer, 2.0)


def one_off_question(draw: Draw) -> Document:
    """A question about a name that is never mentioned again; its answer cannot be known."""
    fact = random_fact(draw)
    while fact.subject in reserved():
        fact = random_fact(draw)
    return asked(draw, fact)


def yes_or_no(draw: Draw) -> Document:
    """A plain yes/no question over a passage."""
    return _yes_or_no(draw, 1 + draw.below(4))


def short_yes_or_no(draw: Draw) -> Document:
    """A plain yes/no question over a passage of one sentence."""
    return _yes_or_no(draw, 1)


def _yes_or_no(draw: Draw, n_facts: int) -> Document:
    (item,) = make_items(draw, "plain", n_facts, 1)
    prompt = TEMPLATES["boolq"].format(question=item.question, passage=item.passage)
    return answered(prompt, _word(item.answer), 4.0, 0.1)


def _word(value: bool) -> str:
    return "true" if value else "false"


def reading(draw: Draw) -> Document:
    """A question whose answer stands in the passage."""
    wanted, passage, value = open_question(draw)
    return answered(TEMPLATES["boolq"].format(question=wanted, passage=passage), value, 2.0, 0.1)


def task(draw: Draw) -> Document:
    """An instruction with its answer."""
    instruction, answer = make_task(draw)
    return answered(TEMPLATES["instructions"].format(instruction=instruction), answer, 1.0)


def repetition(draw: Draw) -> Document:
    """A list to say again."""
    listed = " ".join(draw.sample(WORDS, 3 + draw.below(8)))
    return answered(f"Repeat: {listed}.\nResponse:", listed, 1.0)


def membership(draw: Draw) -> Document:
    """Whether a word is in a list: reading, at its simplest."""
    listed = draw.sample(WORDS, 1 + draw.below(4))
    holds = draw.chance(0.5)
    wanted = draw.pick(listed) if holds else draw.other(WORDS, *listed)
    return answered(f"Find {wanted} in {', '.join(listed)}.\nFound:", _word(holds), 3.0)


def seen_before(draw: Draw) -> Document:
    """Words, each followed by whether it came before: what comparing a question with a passage is made of."""
    pool = draw.sample(WORDS, 8)
    pieces, seen = [("Seen before?", 0.05)], set[str]()
    for _ in range(6 + draw.below(5)):
        word = draw.pick(sorted(seen)) if seen and draw.chance(0.5) else draw.pick(pool)
        pieces += [(" " + word, 0.05), (" " + _word(word in seen), 1.0)]
        seen.add(word)
    return tuple(pieces)


# The text has two parts that meet at SWITCH of its length: first, above all, finding things in the text; then films.
# Known facts go through both, each as often as it is popular. FIRST counts documents as if it went on to the end.
SWITCH = 0.3
FIRST: dict[Callable[[Draw], Document], int] = {
    yes_or_no: 44_000,
    short_yes_or_no: 16_000,
    card: 38_000,
    one_off_question: 39_000,
    judgement: 26_000,
    reading: 12_000,
    task: 20_000,
    repetition: 8_000,
    membership: 12_000,
    seen_before: 20_000,
}
SECOND: dict[Callable[[Draw], Document], int] = {
    yes_or_no: 13_000,
    card: 18_000,
    annotated_card: 22_000,
    remarks: 10_000,
    one_off_question: 27_000,
    reading: 3_000,
    task: 10_000,
}
# Looking back at earlier tokens takes thousands of steps to emerge from passages, and a few hundred from these drills.
DENSE = (repetition, membership, seen_before, short_yes_or_no)
DENSE_PART = 0.4
"""The share of the text, from its beginning, that they are in."""

Planned = tuple[float, Fact | Callable[[Draw], Document]]


def planned(draw: Draw, seed: int) -> list[Planned]:
    """What comes when, as places between 0 and 1 in the text."""
    plan: list[Planned] = [(draw.uniform(0, 1), fact) for fact in facts() for _ in range(fact.popularity)]
    for kind, count in FIRST.items():
        places = [draw.uniform(0, DENSE_PART if kind in DENSE else 1) for _ in range(count)]
        plan += [(place, kind) for place in places if place < SWITCH]
    second = Draw("second part", seed)
    for kind, count in SECOND.items():
        plan += [(second.uniform(SWITCH, 1), kind) for _ in range(count)]
    return sorted(plan, key=lambda item: item[0])


def documents(seed: int = 0) -> Iterator[Document]:
    """The whole training text in order."""
    draw = Draw("corpus", seed)
    for _, entry in planned(draw, seed):
        yield asked(draw, entry) if isinstance(entry, Fact) else entry(draw)
