"""Which spans the prompts of a data set have, and whether what is asked of them is among these: known before any model is."""

from collections.abc import Iterable

from layercache import conditions, nearest
from layercache.conditions import ANSWER, EXACT_ANSWER
from layercache.dataset import Dataset
from layercache.errors import DataError, RecipeError
from layercache.outputs import WHOLE_PROMPT
from layercache.recipe import ExtractSpec


def names(data: Dataset, spec: ExtractSpec) -> set[str]:
    """Return the spans that a prompt of a data set can have, those of a generated answer among them."""
    found = {name for one in data.prompts for name in (*one.spans, *one.absent, *one.unfound)}
    return found | {WHOLE_PROMPT} | ({ANSWER, EXACT_ANSWER} if spec.generate_answer else set())


def check(data: Dataset, spec: ExtractSpec) -> None:
    """Refuse an output or a condition of a span that no prompt has.

    Raises:
        DataError: names the output, its span and those there are.
        RecipeError: the same of a condition.
    """
    known = names(data, spec)
    for output in spec.outputs():
        span = output.feature.span
        if span not in known:
            raise DataError(f"{output}: the template has no field {span!r}; {_known(span, known)}")
    if spec.control_from not in known:
        raise RecipeError(f"control_from needs a span {spec.control_from!r}; {_known(spec.control_from, known)}")
    for name in spec.condition_names():
        conditions.parse(name, known)


def _known(span: str, known: Iterable[str]) -> str:
    """Say which spans there are, and which was perhaps meant."""
    close = nearest.nearest(span, known)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}its spans are {', '.join(sorted(known))}"
