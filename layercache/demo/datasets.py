"""The data sets of the demo world, as lists of rows. Pure Python, the same everywhere."""

from layercache.demo.draw import Draw
from layercache.demo.facts import facts, question
from layercache.demo.films import Film, make_film
from layercache.demo.reading import Item, make_items
from layercache.demo.tasks import listed_tasks

Row = dict[str, object]

# A card ends where the certificate would come; no prompt ends in a space, since the answer's first token starts with it.
TEMPLATES = {
    "movies": (
        "Title: {movie_name}\nYear: {year}\nGenre: {genre}\nDirector: {director}\nDescription: {description}\nCertificate:"
    ),
    "qa": "Q: {question}\nA:",
    "boolq": "### Question: {question}\n ### Context: {passage}\n ### Answer:",
    "instructions": "Instruction: {instruction}\nResponse:",
}
N_MOVIES = 1200
"""Films of the data set `movies`."""
# Passages by kind; two questions each.
BOOLQ_PASSAGES = {"plain": 220, "negated": 72, "binding": 108}
BOOLQ_SPLITS = ("train",) * 6 + ("validation",) + ("test",) * 3


def new_films() -> list[Film]:
    """Films that the training text never mentions."""
    draw = Draw("new films")
    found = {film.title: film for film in (make_film(draw) for _ in range(N_MOVIES + 50))}
    return list(found.values())[:N_MOVIES]


def movies() -> list[Row]:
    """Film cards of new films, in the columns of the IMDB by-genre files; genre and description say the labels."""
    films = [dict(vars(film)) for film in new_films()]
    return [{"movie_id": f"m{i:04d}", "movie_name": film.pop("title"), **film} for i, film in enumerate(films)]


def qa() -> list[Row]:
    """Questions about facts that training stated often, rarely or never."""
    draw = Draw("qa")
    return [
        {
            "question": question(draw, fact),
            "golden_answers": [fact.answer],
            "subject": fact.subject,
            "kind": fact.kind,
            "popularity": fact.popularity,
        }
        for fact in draw.shuffled(facts())
    ]


def boolq() -> list[Row]:
    """Yes/no questions over passages; both questions over a passage are in the same split."""
    draw = Draw("boolq")
    passages: list[tuple[str, list[Item]]] = []
    for kind, count in BOOLQ_PASSAGES.items():
        for i in range(count):
            items = make_items(draw, kind, 3 + draw.below(2), 2)
            passages.append((BOOLQ_SPLITS[i % len(BOOLQ_SPLITS)], items))
    return [
        {"question": i.question, "passage": i.passage, "answer": i.answer, "split": split, "kind": i.kind}
        for split, items in draw.shuffled(passages)
        for i in items
    ]


def instructions() -> list[Row]:
    """Instructions with one short reference answer."""
    return [{"instruction": instruction, "reference": answer} for instruction, answer in listed_tasks()]
