"""The training text: documents of weighted pieces, mixed in fixed shares."""

from collections.abc import Callable, Iterator
from functools import cache

from layercache.demo.datasets import TEMPLATES, new_films
from layercache.demo.draw import Draw
from layercache.demo.facts import Fact, facts, question, random_fact
from layercache.demo.films import ASPECTS, is_heavy, make_film, random_sentence
from layercache.demo.reading import make_items, open_question
from layercache.demo.tasks import make_task

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
        (TEMPLATES["movies"].format(**fields), 0.1),
        (f" {film.certificate}", 3.0),
        ("\nRating:", 0.1),
        (f" {film.rating}", 1.0),
    )


def judgement(draw: Draw) -> Document:
    """One or two sentences and what they mean: the first steps towards a certificate."""
    if draw.chance(0.4):
        said = {aspect: random_sentence(draw, aspect) for aspect in ("danger", "playful")}
        text = " ".join(draw.shuffled([text for text, _ in said.values()]))
        verdict = "heavy" if is_heavy({aspect: holds for aspect, (_, holds) in said.items()}) else "mild"
    else:
        aspect = draw.pick(list(ASPECTS))
        text, holds = random_sentence(draw, aspect)
        verdict = ASPECTS[aspect].verdicts[0 if holds else 1]
    return answered(f"Judge: {text}\nVerdict:", verdict, 2.0)


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
    (item,) = make_items(draw, "plain", 2 + draw.below(3), 1)
    return answered(TEMPLATES["boolq"].format(question=item.question, passage=item.passage), _word(item.answer), 3.0)


def _word(value: bool) -> str:
    return "true" if value else "false"


def reading(draw: Draw) -> Document:
    """A question whose answer stands in the passage."""
    wanted, passage, value = open_question(draw)
    return answered(TEMPLATES["boolq"].format(question=wanted, passage=passage), value, 1.0)


def task(draw: Draw) -> Document:
    """An instruction with its answer."""
    instruction, answer = make_task(draw)
    return answered(TEMPLATES["instructions"].format(instruction=instruction), answer, 1.0)


# Documents of each kind in the whole training text; the known facts come on top, each as often as it is popular.
KINDS: dict[Callable[[Draw], Document], int] = {
    yes_or_no: 72_000,
    card: 54_000,
    one_off_question: 39_000,
    judgement: 30_000,
    reading: 12_000,
    task: 30_000,
}


def documents(seed: int = 0) -> Iterator[Document]:
    """The whole training text in order."""
    draw = Draw("corpus", seed)
    known = [fact for fact in facts() for _ in range(fact.popularity)]
    plan: list[Fact | Callable[[Draw], Document]] = [*known]
    for kind, count in KINDS.items():
        plan += [kind] * count
    for entry in draw.shuffled(plan):
        yield asked(draw, entry) if isinstance(entry, Fact) else entry(draw)
