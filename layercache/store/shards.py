"""Which shards of a run count, whose samples they hold, and which rows two of them hold.

    known = KnownShards()
    counting = known.counting(run, CLEAN)
    known.overlaps(counting)

A published shard never changes, so what was read of one is remembered; those that are new are seen at the next call.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from layercache.errors import StoreError
from layercache.store import manifest
from layercache.store.holdings import Exclusion, exclusions
from layercache.store.ids import read_ids
from layercache.store.layout import CLEAN, CONDITION, MANIFEST, SHARD, Run, ShardInfo, is_gone, listed


class KnownShards:
    """What has been read of a store's shards: their manifests, their sample ids, what is held twice."""

    def __init__(self) -> None:
        self._infos: dict[Path, dict[str, ShardInfo]] = {}
        self._ids: dict[Path, pa.Array] = {}
        self._overlaps: dict[tuple[Path, ...], list[Exclusion]] = {}

    def counting(self, run: Run, condition: str) -> list[ShardInfo]:
        """List the shards that count, sorted by name; those that another one replaces are left out.

        Raises:
            StoreError: a manifest is malformed, or a file is missing or not of the size it states.
        """
        folder = run.path / f"{CONDITION}{condition}"
        known = self._infos.setdefault(folder, {})
        found = []
        for name in listed(folder, SHARD):
            if name not in known:
                path = folder / name
                try:
                    shard = manifest.read(path, run)
                    manifest.check_sizes(shard)
                except StoreError:
                    # Without a manifest it is no shard: one that `gc` has just taken, or that is being copied here.
                    if is_gone(path / MANIFEST):
                        continue
                    raise
                known[name] = shard
            found.append(known[name])
        replaced = {name for shard in found for name in shard.replaces}
        return [shard for shard in found if shard.name not in replaced]

    def sample_ids(self, shards: Sequence[ShardInfo]) -> list[pa.Array]:
        """Return the sample ids of every shard, in the order of its file.

        Raises:
            StoreError: a file cannot be read, or is not the one its manifest was written for.
        """
        new = [shard for shard in shards if shard.path not in self._ids]
        self._ids.update(zip((shard.path for shard in new), read_ids(new), strict=True))
        return [self._ids[shard.path] for shard in shards]

    def overlaps(self, shards: Sequence[ShardInfo]) -> list[Exclusion]:
        """List the rows that do not count because a shard with a smaller name holds them.

        Costs a read of every shard's sample ids where there is more than one; nothing more unless a sample is in two.

        Args:
            shards: those of a condition that count, sorted by name.

        Raises:
            StoreError: as `sample_ids`.
        """
        key = tuple(shard.path for shard in shards)
        if key not in self._overlaps:
            self._overlaps[key] = self._find_overlaps(shards)
        return self._overlaps[key]

    def _find_overlaps(self, shards: Sequence[ShardInfo]) -> list[Exclusion]:
        if len(shards) < 2:
            return []
        ids = self.sample_ids(shards)
        together = pa.chunked_array(ids)
        if len(together.unique()) == len(together):
            return []
        return exclusions(shards, [array.to_pylist() for array in ids])


def conditions(run: Run) -> list[str]:
    """List the conditions under which a shard is published, `clean` first."""
    folders = [run.path / name for name in listed(run.path, CONDITION)]
    names = [
        folder.name.removeprefix(CONDITION)
        for folder in folders
        if any(not is_gone(folder / name / MANIFEST) for name in listed(folder, SHARD))
    ]
    return sorted(names, key=lambda name: (name != CLEAN, name))


def excluded(overlaps: Iterable[Exclusion], output: str, layer: int) -> dict[str, frozenset[str]]:
    """Return, by shard, the samples whose rows of an output and layer do not count."""
    found: dict[str, frozenset[str]] = {}
    for shard, outputs, ids in overlaps:
        layers = outputs.get(output, [])
        if layers is None or layer in layers:
            found[shard] = found.get(shard, frozenset()) | frozenset(ids)
    return found
