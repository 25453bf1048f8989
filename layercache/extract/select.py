"""Which outputs and layers a run captures: what was asked, held against what the model has."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from layercache.errors import ModelError
from layercache.extract.generation import generate
from layercache.extract.generation.sampling import Settings
from layercache.extract.model import Plan, vocabulary
from layercache.extract.structure import sublayer
from layercache.extract.tokenize import Samples
from layercache.extract.unembed import no_head
from layercache.outputs import TOKENS, WHOLE_PROMPT, Feature, Hidden, Lens, Output, Stats, parse_output
from layercache.recipe import ExtractSpec
from layercache.store.holdings import Holdings, Outputs

Selection = dict[Output, list[int]]


def select(spec: ExtractSpec, plan: Plan) -> tuple[Selection, list[str]]:
    """List the layers of every output asked for.

    States and their statistics exist at 0…L and, where there is a final norm, L+1; sublayers' at 1…L; the lens at 0…L.

    Returns:
        The selection and notes on outputs that have none of the layers asked for.

    Raises:
        ModelError: a layer that the model does not have, a site its blocks do not have, a lens without a head, or
            choices for a model that does not continue text.
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
    if spec.choices and plan.checkpoint.masked:
        raise ModelError(
            f"model {plan.checkpoint.name} fills in masked tokens and does not continue a prompt: leave out --choice"
        )
    for site in spec.sites:
        if site != "resid" and plan.compiled:
            raise ModelError(f"site {site} is inside the blocks that --compile makes one piece of: use --sites resid")
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
    position = Feature("last", WHOLE_PROMPT)
    asked = (output for output in selection if isinstance(output, Lens) and output.position == position)
    lens = next(asked, Lens(position, spec.top_k))
    selection[lens] = sorted({*selection.get(lens, []), *layers})
    selection[Settings.of(spec, plan.checkpoint).output] = layers


def _there(output: Output, last: int, top: int) -> range:
    if isinstance(output, Lens):
        return range(last + 1)
    return range(1, last + 1) if isinstance(output, Hidden) and output.site != "resid" else range(top + 1)


def named(selection: Selection) -> dict[str, list[int] | None]:
    """Return a selection by canonical names, the tokens included."""
    return {TOKENS: None, **{str(output): layers for output, layers in selection.items()}}


def parts(outputs: Outputs, ids: list[str], spec: ExtractSpec) -> list[tuple[list[str], Outputs]]:
    """Say which samples are asked for which outputs: with `spectrum_sample` not all for statistics of a spectrum.

    The samples chosen are those with the smallest hash of the seed and their id, so that the choice does not depend on
    their order, is the same under every condition, and among more samples keeps to as many of them as it can. A value
    does not depend on it: the outputs have their usual names, a larger number later asks only for what is missing,
    and of a sample that was not chosen the store holds nothing, as of one that was never run.

    Args:
        outputs: everything asked for.
        ids: of the distinct samples.

    Returns:
        (sample ids in their order, outputs).
    """
    dear = spectral(outputs)
    if spec.spectrum_sample is None or not dear or len(ids) <= spec.spectrum_sample:
        return [(ids, outputs)]
    ranked = sorted(ids, key=lambda one: hashlib.sha256(f"{spec.seed}:{one}".encode()).digest())
    chosen = set(ranked[: spec.spectrum_sample])
    rest = {name: layers for name, layers in outputs.items() if name not in dear}
    return [([one for one in ids if one in chosen], outputs), ([one for one in ids if one not in chosen], rest)]


def missing(
    held: Holdings, outputs: Outputs, ids: list[str], spec: ExtractSpec, mine: Callable[[str], bool] = lambda _: True
) -> list[tuple[Outputs, list[str]]]:
    """Return what is asked for and not held: outputs, and the ids of the samples that lack just these.

    Args:
        ids: of all the samples, on which it depends what each is asked for.
        mine: tells the samples that are looked at.
    """
    found: list[tuple[Outputs, list[str]]] = []
    for chosen, asked in parts(outputs, ids, spec):
        for lacked, lacking in held.missing(filter(mine, chosen), asked):
            same = next((one for one in found if one[0] == lacked), None)
            if same is None:
                found.append((lacked, lacking))
            else:
                same[1].extend(lacking)
    return found


def spectral(names: Iterable[str]) -> set[str]:
    """Return the names of outputs that take a spectrum."""
    return {name for name in names if isinstance(one := parse_output(name), Stats) and one.spectral}


def check_vocabulary(plan: Plan, samples: Samples, tokenizer: Any) -> None:
    """Refuse token ids that the model has no embedding for; a vocabulary padded to a round number is none.

    Raises:
        ModelError: names the id and both sizes.
    """
    size = vocabulary(plan)
    largest = max((int(sample.tokens.max()) for sample in samples.distinct.values()), default=-1)
    targets = [sample.target for sample in samples.distinct.values() if sample.target is not None]
    largest = max([largest, *targets])
    if size is not None and largest >= size:
        raise ModelError(
            f"model {plan.checkpoint.name}: its tokenizer has {len(tokenizer):,} tokens and gave token {largest:,}, the"
            f" model has embeddings for {size:,}: use the tokenizer it was trained with, or resize its embeddings"
        )
