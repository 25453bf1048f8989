"""Every kind of damage a store can come with, each done to a copy of the frozen store by one small function."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layercache.store.layout import shard_name
from layercache.store.manifest import seal


class Damage(NamedTuple):
    """What is done to a store, what `verify` says of which file, and whether that takes `--deep`."""

    do: Callable[[Path], object]
    where: str
    says: str
    deep: bool = False
    cured: bool = True
    """Whether `--repair` leaves a store without problems."""


def shard(store: Path) -> Path:
    return sorted(store.glob("run=*/condition=*/shard=*"))[0]


def run_file(store: Path) -> Path:
    return shard(store).parents[1] / "run.json"


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def state(path: Path, **changes: Any) -> None:
    """Change fields of a manifest and let its own hash be right, as a careless or hostile writer would."""
    file = path / "manifest.json"
    value = {**json.loads(file.read_bytes()), **changes}
    value.pop("sha256")
    file.write_bytes(seal({**value, "sha256": ""}))


def stated(path: Path, field: str) -> Any:
    return json.loads((path / "manifest.json").read_bytes())[field]


def rewrite(store: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table and let the manifest state what is there, so that only the rows tell."""
    path = shard(store)
    file = path / f"{table}.parquet"
    pq.write_table(change(pq.read_table(file, partitioning=None)), file)
    data = file.read_bytes()
    info = {"bytes": len(data), "rows": pq.read_metadata(file).num_rows, "sha256": hashlib.sha256(data).hexdigest()}
    state(path, files={**stated(path, "files"), file.name: info})


def with_vectors(table: pa.Table, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    field = table.schema.field("vector")
    flat = change(table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, field.type.list_size).copy())
    kind = pa.list_(field.type.value_field, flat.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), field.type.value_type), type=kind)
    return table.set_column(table.schema.get_field_index("vector"), pa.field("vector", kind, False), column)


def one_infinite(states: np.ndarray) -> np.ndarray:
    states[0, 3] = np.inf
    return states


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, pa.field(name, kind, False), table[name].cast(kind))

    return change


def named_file(name: str) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        files = stated(shard(store), "files")
        state(shard(store), files={**files, name: files["hidden.parquet"]})

    return change


def linked(store: Path) -> None:
    file = shard(store) / "hidden.parquet"
    elsewhere = store.parent / "elsewhere.parquet"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def another_digest(store: Path) -> None:
    path = shard(store)
    samples = {**stated(path, "samples"), "sha256": "0" * 64}
    state(path, samples=samples)
    path.rename(path.with_name("shard=" + shard_name("0" * 64, stated(path, "outputs"), [])))


def replacing_more_than_it_holds(store: Path) -> None:
    """Let one shard's copy, of a run's two data sets in turn, say that it replaces a shard of other samples."""
    path = shard(store)
    empty = path.with_name("shard=" + shard_name(stated(path, "samples")["sha256"], {"tokens": None}, [path.name[6:]]))
    empty.mkdir()
    for name in ("samples.parquet", "tokens.parquet", "manifest.json"):
        (empty / name).write_bytes((path / name).read_bytes())
    files = {
        name: info for name, info in stated(path, "files").items() if name in ("samples.parquet", "tokens.parquet")
    }
    state(empty, files=files, outputs={"tokens": None}, replaces=[path.name[6:]])


def json_field(find: Callable[[Path], Path], **changes: Any) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        file = find(store)
        file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}, indent=1))

    return change


def newer_manifest(store: Path) -> None:
    state(shard(store), format=2, reader="9.9")


def sample_of(store: Path, pattern: str) -> Path:
    return sorted(store.glob(pattern))[0]


DAMAGES: dict[str, Damage] = {
    "truncated-parquet": Damage(
        lambda s: cut(shard(s) / "hidden.parquet"), "hidden.parquet", "bytes, the manifest says"
    ),
    "flipped-byte-in-a-page": Damage(
        lambda s: flip(shard(s) / "hidden.parquet", 0.3), "hidden.parquet", "its sha256 is not the manifest's", True
    ),
    "flipped-byte-in-a-footer": Damage(
        lambda s: flip(shard(s) / "lens.parquet", 0.9999), "lens.parquet", "cannot be read: "
    ),
    "flipped-byte-in-a-manifest": Damage(
        lambda s: (shard(s) / "manifest.json").write_bytes(
            (shard(s) / "manifest.json").read_bytes().replace(b'"device": "cpu', b'"device": "gpu')
        ),
        "manifest.json",
        "its own sha256 is wrong",
    ),
    "manifest-is-not-json": Damage(lambda s: cut(shard(s) / "manifest.json"), "manifest.json", "cannot be read ("),
    "flipped-byte-in-run-json": Damage(
        lambda s: run_file(s).write_bytes(run_file(s).read_bytes().replace(b'"name": "', b'"name": "x', 1)),
        "run.json",
        "its sha256 is not the one in the manifests of its shards",
        cured=False,
    ),
    "changed-settings": Damage(
        json_field(run_file, hash="0" * 64), "run.json", "the hash is not that of the spec", cured=False
    ),
    "truncated-run-json": Damage(lambda s: cut(run_file(s)), "run.json", "cannot be read (", cured=False),
    "missing-run-json": Damage(
        lambda s: run_file(s).unlink(), "run=", "has no run.json: extract the same model", cured=False
    ),
    "missing-file": Damage(lambda s: (shard(s) / "tokens.parquet").unlink(), "tokens.parquet", "is missing"),
    "missing-manifest": Damage(
        lambda s: (shard(s) / "manifest.json").unlink(), "shard=", "has no manifest.json: it is not a shard"
    ),
    "extra-file": Damage(lambda s: (shard(s) / "notes.txt").write_text("x"), "notes.txt", "is not in the manifest"),
    "wrong-sha256": Damage(
        lambda s: state(
            shard(s),
            files={
                name: {**info, "sha256": "0" * 64} if name == "lens.parquet" else info
                for name, info in stated(shard(s), "files").items()
            },
        ),
        "lens.parquet",
        "its sha256 is not the manifest's",
        True,
    ),
    "path-with-dots": Damage(named_file("../../../x.parquet"), "manifest.json", "file name '../../../x.parquet'"),
    "absolute-path": Damage(named_file("/etc/x.parquet"), "manifest.json", "file name '/etc/x.parquet'"),
    "path-in-a-folder": Damage(named_file("a/x.parquet"), "manifest.json", "file name 'a/x.parquet'"),
    "symlink": Damage(linked, "shard=", "is a symbolic link"),
    "newer-manifest": Damage(newer_manifest, "manifest.json", "is in store format 2, this version reads 1"),
    "newer-run": Damage(
        json_field(run_file, format=2, reader="9.9"), "run.json", "install layercache 9.9", cured=False
    ),
    "other-run": Damage(lambda s: state(shard(s), run="0" * 64), "manifest.json", "belongs to another run"),
    "other-condition": Damage(
        lambda s: state(shard(s), condition="x"), "manifest.json", "condition 'x' in the folder of"
    ),
    "wrong-name": Damage(
        lambda s: shard(s).rename(shard(s).with_name("shard=s0123456789abcdef")),
        "shard=s0123456789abcdef",
        "its name is not the hash of its sample ids and outputs",
    ),
    "wrong-digest-of-sample-ids": Damage(
        another_digest, "samples.parquet", "its sample ids are not the manifest's", True
    ),
    "infinite-state": Damage(
        lambda s: rewrite(s, "hidden", lambda t: with_vectors(t, one_infinite)),
        "hidden.parquet",
        "holds states that are not finite",
        True,
    ),
    "doubled-row": Damage(
        lambda s: rewrite(s, "hidden", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
        "hidden.parquet",
        "2 rows share a key",
        True,
    ),
    "wrong-width": Damage(
        lambda s: rewrite(s, "hidden", lambda t: with_vectors(t, lambda states: states[:, :64])),
        "hidden.parquet",
        "column vector is fixed_size_list<element: float not null>[64], not",
    ),
    "sample-without-rows": Damage(
        lambda s: rewrite(s, "hidden", lambda t: t.slice(1)), "hidden.parquet", "expected (0 absent)", True
    ),
    "wrong-column-type": Damage(
        lambda s: rewrite(s, "lens", retyped("layer", pa.int64())), "lens.parquet", "column layer is int64, not int32"
    ),
    "missing-column": Damage(
        lambda s: rewrite(s, "lens", lambda t: t.drop(["entropy"])), "lens.parquet", "has no column entropy"
    ),
    "rows-of-no-output": Damage(
        lambda s: state(shard(s), outputs={**stated(shard(s), "outputs"), "hidden:resid:mean@prompt": [0]}),
        "shard=",
        "its name is not the hash",
    ),
    "replaces-what-it-does-not-hold": Damage(replacing_more_than_it_holds, "shard=", "without holding all of it"),
    "flipped-byte-in-rows": Damage(
        lambda s: flip(sample_of(s, "run=*/rows/*")), ".parquet", "its sha256 is not the one in its name"
    ),
    "flipped-byte-in-a-recipe": Damage(
        lambda s: flip(sample_of(s, "recipes/*")), ".json", "its sha256 is not the one in its name"
    ),
    "flipped-byte-in-a-result": Damage(
        lambda s: flip(sample_of(s, "results/*/results.parquet")), "results.parquet", "its sha256 is not", True
    ),
    "result-without-manifest": Damage(
        lambda s: sample_of(s, "results/*/manifest.json").unlink(), "results/", "is damaged: delete it"
    ),
}
