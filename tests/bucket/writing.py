"""A writer or a reader in a process of its own: `python writing.py publish|read URL …`, set up by its environment.

publish URL SALT    one shard of the samples 0 to 19, whose states and provenance depend on the salt
read URL            every layer's states; prints the sha256 of them all
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "store"))

import store_builder as build

import layercache
from layercache.errors import LayercacheError
from layercache.store import mirror
from layercache.store.writer import Shard

OUTPUTS: build.Outputs = {build.MEAN: build.LAYERS, build.LENS: build.LAYERS}
NUMBERS = range(20)


def publish(url: str, salt: int) -> str:
    run = build.make_run(mirror.located(url))
    ids = [build.sample_id(number) for number in NUMBERS]
    shard = Shard(run, OUTPUTS, provenance={"salt": salt})
    name = build.fill(shard, ids, OUTPUTS, salt).publish()
    assert name is not None
    return name


def read(url: str) -> str:
    store = layercache.open(url)
    digest = hashlib.sha256()
    for run in store.runs():
        for feature in store.features(run):
            for layer in feature.layers:
                matrix = store.matrix(run, layer, feature.pooling)
                digest.update("".join(matrix.sample_ids.tolist()).encode())
                digest.update(matrix.values.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        print(publish(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "publish" else read(sys.argv[2]))
    except LayercacheError as error:
        sys.exit(f"error: {error}")
