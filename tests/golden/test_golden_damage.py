"""The frozen store is whole; any damage done to a copy of it is named, refused, and can be put aside."""

import json
import random
import shutil
from pathlib import Path

import pytest
from damages import DAMAGES, run_file, shard

from layercache.errors import StoreError
from layercache.store import reader, repair
from layercache.store.verify import verify

FROZEN = Path(__file__).parents[2] / "store"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the frozen store, with its recipes and results."""
    store = tmp_path_factory.mktemp("golden") / "store"
    keep = shard(FROZEN).parents[1].name
    drop = [path.name for path in FROZEN.iterdir() if path.name.startswith("run=") and path.name != keep]
    return Path(shutil.copytree(FROZEN, store, ignore=shutil.ignore_patterns("FROZEN", "FORMAT.md", *drop)))


@pytest.fixture
def store(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "store"))


def test_the_frozen_store_is_whole() -> None:
    assert verify(FROZEN, deep=True) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_put_aside(store: Path, name: str) -> None:
    damage = DAMAGES[name]
    damage.do(store)
    problems = verify(store, deep=damage.deep)
    assert any(damage.where in str(problem.path) and damage.says in problem.what for problem in problems), problems
    assert all("\n" not in str(problem) for problem in problems)
    if damage.deep:
        assert verify(store) == [], "what a quick look finds needs no --deep here"
    moved = repair.repair(store, problems)
    assert all(one.to.exists() and not one.path.exists() for one in moved)
    left = verify(store, deep=True)
    if damage.cured:
        assert moved
        assert left == []
        reader.open(store).connect().close()
    else:
        assert [(problem.path.name[:4], problem.what[:15]) for problem in left] == [("run=", "has no run.json")]


def test_every_damage_has_a_message_of_its_own() -> None:
    said = [(damage.where.rpartition(".")[2], damage.says) for damage in DAMAGES.values()]
    shared = {one for one in said if said.count(one) > 1}
    # A changed byte and a wrong hash of it cannot be told apart; nor two names that are not the hash.
    assert {says for _, says in shared} <= {
        "its sha256 is not the manifest's",
        "cannot be read (",
    }


@pytest.mark.parametrize(
    "name", [name for name in DAMAGES if name.startswith(("truncated-parquet", "missing-file", "path", "symlink"))]
)
def test_reading_damage_is_refused_with_what_to_do(store: Path, name: str) -> None:
    DAMAGES[name].do(store)
    (run,) = reader.open(store).runs()
    with pytest.raises(StoreError, match="layercache verify"):
        reader.open(store).shards(run)


def places(store: Path, count: int) -> list[tuple[Path, int]]:
    """Random bytes of the store, as many of small files (manifests, run.json, …) as of large ones."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    small = [path for path in files if path.suffix == ".json"]
    rng = random.Random(0)
    chosen = [rng.choice(small if number % 2 else files) for number in range(count)]
    return [(path, rng.randrange(path.stat().st_size)) for path in [*chosen, run_file(store)]]


def flipped_bytes(store: Path, count: int) -> None:
    for path, place in places(store, count):
        good = path.read_bytes()
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        found = verify(store, deep=True)
        if not found:
            # The frozen results are older than their manifests' own hash, which newer ones have.
            assert path.match("results/*/manifest.json"), f"{path} byte {place}"
            assert "sha256" not in json.loads(good)
        path.write_bytes(good)
    assert verify(store, deep=True) == []


def test_a_flipped_byte_anywhere_is_reported(store: Path) -> None:
    flipped_bytes(store, 20)


@pytest.mark.torture
def test_two_hundred_flipped_bytes_are_reported(store: Path) -> None:
    flipped_bytes(store, 200)
