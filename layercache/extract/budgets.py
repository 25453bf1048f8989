"""How large batches are: as the user says, or as memory allows and a shard has room for."""

from collections.abc import Iterable

import torch

from layercache.extract import batching, lens, spectrum
from layercache.extract.batching import Budget
from layercache.extract.model import Plan
from layercache.extract.publish import SHARD_BYTES
from layercache.outputs import Stats
from layercache.recipe import ExtractSpec


def choose(
    plan: Plan, spec: ExtractSpec, longest: int, devices: Iterable[torch.device] | None = None, *, reserved: int = 0
) -> Budget:
    """Choose how large batches are, unless the user did; the arguments are those of `batching.automatic`."""
    if spec.batch_tokens:
        return Budget(spec.batch_tokens)
    reserved += lens.working_bytes(plan.device) if spec.lens else 0
    # Matrices wait for their eigenvalues on the host.
    if plan.device.type == "cpu" and any(isinstance(one, Stats) and one.spectral for one in spec.outputs()):
        reserved += spectrum.WAITING
    found = batching.automatic(plan, longest, devices, reserved=reserved)
    found.tokens = min(found.tokens, shard_tokens(plan, spec))
    return found


def shard_tokens(plan: Plan, spec: ExtractSpec) -> int:
    """Return the tokens that fill a shard, where states or lenses are one row a token: a batch holds no more."""
    layers = len(plan.structure.layers) if spec.layers == "all" else len(set(spec.layers))
    rows = sum(output.feature.how == "token" for output in spec.outputs())
    return max(1, SHARD_BYTES // max(1, rows * layers * plan.structure.width * 4))
