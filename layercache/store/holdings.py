"""What a run holds under a condition: which samples lack which outputs, and what is held twice.

The unit is (output, layer, sample). Shards planned at different times may hold one twice; then the
shard with the smaller name counts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from layercache.store.layout import ShardInfo

Outputs = dict[str, list[int] | None]
"""Layers of every output; None for an output that has no layers."""

Pair = tuple[str, int | None]
SAMPLES = "samples"


class Exclusion(NamedTuple):
    """Rows of a shard that do not count, because a shard with a smaller name holds them.

    `outputs` may hold, beside outputs, the key `samples` (None): the shard's rows of the table `samples`.
    """

    shard: str
    outputs: Outputs
    sample_ids: list[str]


@dataclass(frozen=True)
class Holdings:
    """What is held, sample by sample, in a form that answers for 100,000 samples at once."""

    holders: Mapping[str, tuple[int, ...]]
    """Sample id to the numbers of the shards that hold the sample."""
    pairs: Sequence[frozenset[Pair]]
    """What every shard holds, as (output, layer)."""

    def missing(self, sample_ids: Iterable[str], outputs: Outputs) -> list[tuple[Outputs, list[str]]]:
        """Group samples by which of the outputs (and layers) they lack; complete samples are left out.

        Returns:
            (outputs lacked, sample ids), the ids distinct and in the order given.
        """
        wanted = [
            (name, layer) for name, layers in outputs.items() for layer in (layers if layers is not None else [None])
        ]
        lacking: dict[tuple[int, ...], tuple[Pair, ...]] = {}
        groups: dict[tuple[Pair, ...], list[str]] = defaultdict(list)
        for sample_id in dict.fromkeys(sample_ids):
            holders = self.holders.get(sample_id, ())
            if holders not in lacking:
                held = frozenset[Pair]().union(*(self.pairs[index] for index in holders))
                lacking[holders] = tuple(pair for pair in wanted if pair not in held)
            if lacking[holders]:
                groups[lacking[holders]].append(sample_id)
        return [(_outputs(pairs), ids) for pairs, ids in groups.items()]


def holdings(shards: Sequence[ShardInfo], sample_ids: Sequence[Sequence[str]]) -> Holdings:
    """Build the holdings of shards from the sample ids of each."""
    return Holdings(_holders(sample_ids), [_pairs(shard) for shard in shards])


def exclusions(shards: Sequence[ShardInfo], sample_ids: Sequence[Sequence[str]]) -> list[Exclusion]:
    """List the rows that do not count, given shards sorted by name and the sample ids of each."""
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for sample_id, holders in _holders(sample_ids).items():
        if len(holders) > 1:
            shared[holders].append(sample_id)
    pairs = [_pairs(shard) for shard in shards]
    found: dict[tuple[int, tuple[Pair, ...]], list[str]] = defaultdict(list)
    for holders, ids in shared.items():
        before: frozenset[Pair] = pairs[holders[0]]
        for index in holders[1:]:
            found[index, _in_order(pairs[index] & before)] += ids
            before |= pairs[index]
    return [
        Exclusion(shards[i].name, {SAMPLES: None, **_outputs(again)}, sorted(ids)) for (i, again), ids in found.items()
    ]


def united(pairs: Iterable[Pair]) -> Outputs:
    """Return outputs and their layers, ascending, from (output, layer) pairs in any order."""
    return _outputs(_in_order(pairs))


def _in_order(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0], -1 if pair[1] is None else pair[1])))


def _holders(sample_ids: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    holders: dict[str, tuple[int, ...]] = {}
    # One tuple object for all samples with the same holders: a run of many samples has few different ones.
    longer: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
    for index, ids in enumerate(sample_ids):
        for sample_id in ids:
            before = holders.get(sample_id, ())
            holders[sample_id] = longer.setdefault((before, index), (*before, index))
    return holders


def _pairs(shard: ShardInfo) -> frozenset[Pair]:
    return frozenset(
        (name, layer) for name, layers in shard.outputs.items() for layer in ([None] if layers is None else layers)
    )


def _outputs(pairs: Iterable[Pair]) -> Outputs:
    outputs: Outputs = {}
    for name, layer in pairs:
        if layer is None:
            outputs[name] = None
        else:
            layers = outputs.setdefault(name, [])
            assert layers is not None
            layers.append(layer)
    return outputs
