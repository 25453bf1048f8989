"""Which outputs and layers a run captures: what was asked, held against what the model has."""

from collections.abc import Iterable

from layercache.errors import DataError, ModelError
from layercache.extract import generate
from layercache.extract.model import Plan
from layercache.extract.sampling import Settings
from layercache.extract.structure import sublayer
from layercache.extract.tokenize import Samples
from layercache.extract.unembed import no_head
from layercache.outputs import TOKENS, WHOLE_PROMPT, Feature, Hidden, Lens, Output
from layercache.recipe import ExtractSpec

Selection = dict[Output, list[int]]


def select(spec: ExtractSpec, plan: Plan) -> tuple[Selection, list[str]]:
    """List the layers of every output asked for.

    States exist at 0…L and, where there is a final norm, L+1; sublayers' at 1…L; the lens at 0…L.

    Returns:
        The selection and notes on outputs that have none of the layers asked for.

    Raises:
        ModelError: a layer that the model does not have, a site its blocks do not have, or a lens without a head.
    """
    structure = plan.structure
    last = structure.n_layers
    top = structure.layers[-1][0]
    asked = list(range(top + 1)) if spec.layers == "all" else sorted(set(spec.layers))
    unknown = [layer for layer in asked if not 0 <= layer <= top]
    if unknown:
        raise ModelError(f"model {plan.checkpoint.name} has no layer {unknown[0]}: its layers are 0 to {top}")
    if spec.lens and not plan.with_head:
        raise ModelError(no_head(plan.checkpoint.name))
    for site in spec.sites:
        if site != "resid":
            sublayer(structure.blocks[0], site)
    selection: Selection = {}
    notes = []
    for output in spec.outputs():
        layers = [layer for layer in asked if layer in _there(output, last, top)]
        if layers:
            selection[output] = layers
        else:
            notes.append(f"{output}: there is none at the layers asked for ({', '.join(map(str, asked))})")
    _add_generation(selection, spec, plan)
    return selection, notes


def _add_generation(selection: Selection, spec: ExtractSpec, plan: Plan) -> None:
    """Add the text generated and, at its layers, the lens where its first token is drawn."""
    if not spec.generate_layers:
        return
    last = plan.structure.n_layers
    layers = list(range(last + 1)) if spec.generate_layers == "all" else sorted(set(spec.generate_layers))
    generate.check_model(plan, layers)
    lens = Lens(Feature("last", WHOLE_PROMPT), spec.top_k)
    selection[lens] = sorted({*selection.get(lens, []), *layers})
    selection[Settings.of(spec, plan.checkpoint).output] = layers


def _there(output: Hidden | Lens, last: int, top: int) -> range:
    if isinstance(output, Lens):
        return range(last + 1)
    return range(top + 1) if output.site == "resid" else range(1, last + 1)


def named(selection: Selection) -> dict[str, list[int] | None]:
    """Return a selection by canonical names, the tokens included."""
    return {TOKENS: None, **{str(output): layers for output, layers in selection.items()}}


def check_spans(outputs: Iterable[Output], samples: Samples) -> None:
    """Refuse a span that no prompt has.

    Raises:
        DataError: names the span and those there are.
    """
    known = {name for sample in samples.distinct.values() for name in (*sample.spans, *sample.absent)}
    for output in outputs:
        span = (output.pooling if isinstance(output, Hidden) else output.position).span
        if span != WHOLE_PROMPT and span not in known:
            raise DataError(
                f"{output}: the template has no field {span!r}; its spans are {', '.join(sorted(known)) or 'none'}"
            )
