"""Films: what a description says, and how certificate and rating follow from it.

Both labels follow from *meaning*. Many sentences say their word by denying its opposite, tone turns danger round, and
pace counts differently in different genres; a bag of words therefore sees little of either.
"""

from dataclasses import dataclass

from layercache.demo.draw import Draw
from layercache.demo.names import cities, directors, title, words

GENRES = ("Drama", "Comedy", "Horror", "Thriller", "War", "Western", "Romance", "Fantasy")
DARK_GENRES = ("Horror", "Thriller", "War")
FAST_GENRES = ("Thriller", "War", "Western", "Fantasy")
CERTIFICATES = ("Family", "Guidance", "Teen", "Mature", "Adult")
PROFESSIONS = words("baker sailor nurse painter farmer teacher tailor miner singer lawyer pilot gardener")
RATING_NOISE = 0.3
"""How far a rating lies at most from what genre and description make it."""


@dataclass(frozen=True)
class Aspect:
    """Something a sentence can say about a film: words for yes, words for no, and ways to put and to deny them."""

    yes: tuple[str, ...]
    no: tuple[str, ...]
    said: tuple[str, ...]
    denied: tuple[str, ...]
    verdicts: tuple[str, str]
    yes_share: float = 0.5
    denied_share: float = 0.3


ASPECTS = {
    "danger": Aspect(
        words("bloodshed gunfire torture murder cruelty terror"),
        words("kittens picnics dancing kindness lullabies gardens"),
        ("It shows {}.", "There is {} in it."),
        ("It never shows {}.", "There is no {} in it."),
        ("harsh", "gentle"),
    ),
    "playful": Aspect(
        words("playful comic silly merry teasing"),
        words("earnest grave solemn sober stern"),
        ("The tone is {}.", "It is told in a {} way."),
        ("The tone is not {}.", "It is told in no {} way."),
        ("light", "serious"),
        # Tone turns danger round: were both even, neither alone would tell anything, and that is hardly ever learned.
        yes_share=0.2,
        denied_share=0.1,
    ),
    "grown": Aspect(
        words("adults veterans cynics scholars widows"),
        words("toddlers children families pupils babies"),
        ("It is meant for {}.", "It will please {}."),
        ("It is not meant for {}.", "It will not please {}."),
        ("old", "young"),
    ),
    "good": Aspect(
        words("praised admired loved cheered"),
        words("panned mocked hated booed"),
        ("Critics {} the acting.", "Critics {} the plot.", "Critics {} the music."),
        ("Critics never {} the acting.", "Critics never {} the plot.", "Critics never {} the music."),
        ("good", "bad"),
    ),
    "fast": Aspect(
        words("fast brisk hasty rapid"),
        words("slow calm lazy sleepy"),
        ("The pace is {}.", "It has a {} rhythm."),
        ("The pace is not {}.", "It has no {} rhythm."),
        ("quick", "leisurely"),
    ),
}
OPENINGS = ("A {} leaves {}.", "A {} returns to {}.", "A {} gets lost in {}.")


@dataclass(frozen=True)
class Film:
    """One film with everything known about it."""

    title: str
    year: int
    genre: str
    director: str
    description: str
    certificate: str
    rating: float


def sentence(draw: Draw, aspect: str, holds: bool, negated: bool) -> str:
    """A sentence that means the aspect holds or not, said directly or by denying the opposite."""
    a = ASPECTS[aspect]
    word = draw.pick(a.yes if holds != negated else a.no)
    return draw.pick(a.denied if negated else a.said).format(word)


def random_sentence(draw: Draw, aspect: str) -> tuple[str, bool]:
    """A sentence and whether the aspect holds by it. The *word* is drawn first, so that denial changes the meaning."""
    says_yes, negated = draw.chance(ASPECTS[aspect].yes_share), draw.chance(ASPECTS[aspect].denied_share)
    holds = says_yes != negated
    return sentence(draw, aspect, holds, negated), holds


def is_heavy(meaning: dict[str, bool]) -> bool:
    """Danger told in earnest is heavy; played for laughs it is not, while mocking gentle things is."""
    return meaning["danger"] != meaning["playful"]


def certificate_of(genre: str, meaning: dict[str, bool]) -> str:
    """Heaviness counts two steps, a grown-up audience and a dark genre one each."""
    return CERTIFICATES[2 * is_heavy(meaning) + meaning["grown"] + (genre in DARK_GENRES)]


def rating_of(genre: str, meaning: dict[str, bool], noise: float) -> float:
    """Good reviews and heaviness raise the rating, as does a pace that suits the genre."""
    paced = meaning["fast"] == (genre in FAST_GENRES)
    steps = 1.6 * _sign(meaning["good"]) + 0.9 * _sign(is_heavy(meaning)) + 1.0 * _sign(paced)
    return round(min(9.9, max(1.0, 5.5 + steps + noise)), 1)


def _sign(value: bool) -> int:
    return 1 if value else -1


def make_film(draw: Draw, name: str | None = None) -> Film:
    """A random film that follows the rules of the world."""
    genre = draw.pick(GENRES)
    said = {aspect: random_sentence(draw, aspect) for aspect in ASPECTS}
    meaning = {aspect: holds for aspect, (_, holds) in said.items()}
    opening = draw.pick(OPENINGS).format(draw.pick(PROFESSIONS), draw.pick(cities()))
    description = " ".join([opening, *draw.shuffled([text for text, _ in said.values()])])
    return Film(
        title=name or title(draw),
        year=1930 + draw.below(90),
        genre=genre,
        director=draw.pick(directors()),
        description=description,
        certificate=certificate_of(genre, meaning),
        rating=rating_of(genre, meaning, draw.uniform(-RATING_NOISE, RATING_NOISE)),
    )
