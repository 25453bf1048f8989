"""What shards hold of the things that are read back by layer: hidden states, and logit lenses."""

from collections.abc import Iterable
from typing import NamedTuple

from layercache.quantities import consecutive
from layercache.store.layout import ShardInfo, place


class StoredFeature(NamedTuple):
    """Hidden states that are stored: a site, a pooling and the layers there are."""

    site: str
    pooling: str
    layers: list[int]


class StoredLens(NamedTuple):
    """A logit lens that is stored: its output's name, the position it reads and the layers there are."""

    output: str
    position_name: str
    layers: list[int]


def features(shards: Iterable[ShardInfo]) -> list[StoredFeature]:
    """List the hidden states that shards hold, by site and pooling."""
    found: dict[tuple[str, str], set[int]] = {}
    for shard in shards:
        for output, layers in shard.outputs.items():
            where = place(output)
            if where is not None and where.table == "hidden":
                found.setdefault((where.where["site"], where.where["pooling"]), set()).update(layers or [])
    return [StoredFeature(site, pooling, sorted(layers)) for (site, pooling), layers in sorted(found.items())]


def lenses(shards: Iterable[ShardInfo]) -> list[StoredLens]:
    """List the logit lenses that shards hold, by output."""
    found: dict[str, set[int]] = {}
    for shard in shards:
        for output, layers in shard.outputs.items():
            if output.startswith("lens:"):
                found.setdefault(output, set()).update(layers or [])
    return [StoredLens(name, name.split(":")[1], sorted(layers)) for name, layers in sorted(found.items())]


def in_words(features: Iterable[StoredFeature]) -> str:
    """Say which states there are: `resid mean@prompt at layers 0–8, 12; …`, or `none`."""
    return "; ".join(f"{one.site} {one.pooling} at layers {_ranges(one.layers)}" for one in features) or "none"


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers as `0–8, 12`."""
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in consecutive(numbers))
