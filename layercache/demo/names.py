"""Made-up names. Every person, place and title is built from syllables, so that none of them is anybody's."""

from functools import cache

from layercache.demo.draw import Draw


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


SYLLABLES = words(
    "ka ve lo mir tan sol bri dra fen gor hul jas kel lum mor nex osh pra quin rud sta tev ulm vor wex yan zed bal cor "
    "dim ela fru gil hem ivo jun kro lir mun nal ota pel rin sha tor uma vin wil xan yor zul bex cam dov erl fio gam "
    "hob ist jol kum lev mag"
)
ADJECTIVES = words("Silent Golden Broken Hidden Last Lonely Distant Frozen Burning Hollow Crooked Sleeping")
NOUNS = words("Harbour Garden Mirror Winter Orchard Lantern Bridge Letter Shadow Island Station Promise")


def word(draw: Draw, syllables: int) -> str:
    """A capitalised made-up word."""
    return "".join(draw.pick(SYLLABLES) for _ in range(syllables)).capitalize()


def person(draw: Draw) -> str:
    """A given name and a surname."""
    return f"{word(draw, 2)} {word(draw, 2)}"


def title(draw: Draw) -> str:
    """A film title around one made-up word."""
    name = word(draw, 3)
    form = draw.below(3)
    if form == 0:
        return f"The {draw.pick(ADJECTIVES)} {name}"
    return f"{name}'s {draw.pick(NOUNS)}" if form == 1 else f"{draw.pick(NOUNS)} of {name}"


@cache
def cities() -> tuple[str, ...]:
    """The 40 cities of the world."""
    draw = Draw("cities")
    found: dict[str, None] = {}
    while len(found) < 40:
        found[word(draw, 2)] = None
    return tuple(found)


@cache
def directors() -> tuple[str, ...]:
    """The 48 directors of the world."""
    draw = Draw("directors")
    return tuple(person(draw) for _ in range(48))
