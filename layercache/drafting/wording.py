"""Does the wording of a question give a label away? A probe then reads words, whatever else the model knows.

`What is Ada's occupation?`, label `occupation`: one word tells it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from layercache.folding import fold

_TOLD = 0.9
"""Mean over rows of Youden's J of the word that tells a row's class best, from which a label counts as given away."""


def told_by_a_word(labels: Sequence[str | None], texts: Sequence[str | None]) -> bool:
    """Tell whether, class by class, a single word of the text says that a row is of the class.

    Of a class and a word that is Youden's J: the share of the class's rows with the word, less that of the other rows
    (Youden 1950). 0 is what a word says that has nothing to do with the class, also of a frequent one.
    """
    rows = [(label, _words(text)) for label, text in zip(labels, texts, strict=True) if label is not None and text]
    classes = Counter(label for label, _ in rows)
    if len(classes) < 2:
        return False
    every: Counter[str] = Counter()
    inside: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for label, words in rows:
        every.update(words)
        inside[label].update(words)
    score = 0.0
    for label, count in classes.items():
        others = len(rows) - count
        best = max((n / count - (every[word] - n) / others for word, n in inside[label].items()), default=0.0)
        score += best * count / len(rows)
    return score >= _TOLD


def _words(text: str) -> set[str]:
    return {word.text for word in fold(text).words}
