"""Push to and pull from a dataset repository, against a Hub on this machine."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import full_store
import pytest
from command import Call
from fake_hub import FakeHub
from full_store import files, wide_store
from store_builder import LAYERS, MEAN, content, make_run, put_shard

from layercache import transfer
from layercache.errors import StoreError
from layercache.hub import card, client
from layercache.hub import push as hub_push
from layercache.store import compact, reader
from layercache.store.known_paths import is_known
from layercache.store.layout import Run
from layercache.store.selection import Selection
from layercache.store.verify import verify

WHERE = "hf://datasets/me/films-layers"
NAME = "me/films-layers"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_store.make(tmp_path_factory.mktemp("made") / "store").store


@pytest.fixture
def source(tmp_path: Path, made: Path) -> Run:
    return reader.open(shutil.copytree(made, tmp_path / "source")).run("org/tiny")


def on_hub(hub: FakeHub) -> dict[str, bytes]:
    return {path: blob.data for path, blob in hub.repositories[NAME].files.items() if is_known(path)}


def test_a_store_goes_there_and_back_byte_for_byte(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    done = transfer.push(source.store, WHERE)
    assert (done.runs, done.shards, done.there, done.files, done.results) == (2, 7, 0, 4, 2)
    assert hub.repositories[NAME].private
    assert on_hub(hub) == files(source.store)
    target = tmp_path / "target"
    back = transfer.pull(WHERE, target)
    assert files(target) == files(source.store)
    assert back.shards == 7
    assert verify(target, deep=True) == []
    assert list((target / ".tmp").iterdir()) == []


def test_nothing_is_sent_twice(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    transfer.push(source.store, WHERE)
    transfer.pull(WHERE, tmp_path / "target")
    commits, uploads, sent = len(hub.repositories[NAME].commits), hub.requests["upload"], hub.sent
    again = transfer.push(source.store, WHERE)
    assert (again.shards, again.there, again.bytes) == (0, 7, 0)
    assert (len(hub.repositories[NAME].commits), hub.requests["upload"]) == (commits, uploads)
    back = transfer.pull(WHERE, tmp_path / "target")
    assert (back.shards, back.there, back.bytes) == (0, 7, 0)
    # Of the second pull only what is small came: no table, no head.
    small = sum(len(data) for path, data in on_hub(hub).items() if path.endswith(".json"))
    assert hub.sent - sent <= 3 * small + 10_000


def test_no_commit_shows_a_manifest_without_its_data(
    tmp_path: Path, source: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "COMMIT_FILES", 5)
    transfer.push(source.store, WHERE)
    commits = hub.repositories[NAME].commits
    assert len(commits) > 8
    for number, (_, there) in enumerate(commits[1:]):
        assert len(there) - len(commits[number][1]) <= 5
        for path, blob in there.items():
            if path.endswith("/manifest.json"):
                folder = path.rpartition("/")[0]
                for name, info in json.loads(blob.data)["files"].items():
                    data = there[f"{folder}/{name}"].data
                    assert (len(data), hashlib.sha256(data).hexdigest()) == (info["bytes"], info["sha256"])
                if path.startswith("run="):
                    assert f"{path.partition('/')[0]}/run.json" in there


def test_a_push_that_was_stopped_goes_on(
    tmp_path: Path, source: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "COMMIT_FILES", 5)
    hub.fail_after["commit"] = 3
    with pytest.raises(StoreError, match="this login may not do that"):
        transfer.push(source.store, WHERE)
    assert not any(path.endswith("manifest.json") for path in on_hub(hub))
    with pytest.raises(StoreError, match="holds no store"):
        transfer.pull(WHERE, tmp_path / "early")
    assert not (tmp_path / "early").exists()
    hub.fail_after.clear()
    uploads = hub.requests["upload"]
    transfer.push(source.store, WHERE)
    assert on_hub(hub) == files(source.store)
    distinct = {
        hashlib.sha256(data).hexdigest()
        for path, data in files(source.store).items()
        if path.endswith((".parquet", ".safetensors"))
    }
    assert 0 < hub.requests["upload"] - uploads < len(distinct)
    assert hub.requests["upload"] == len(distinct)


def test_two_layers_come_alone(tmp_path: Path, hub: FakeHub, call: Call) -> None:
    """Of a store of 12 layers, of which each is larger than what has to be fetched to know where it is."""
    run = wide_store(tmp_path / "wide", layers=12, samples=600, width=256)
    transfer.push(run.store, WHERE)
    before = hub.sent
    asked = ("--outputs", "mean", "--layers", "3,9")
    said = call("pull", WHERE, *asked, "--dry-run", "--json", "--store", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    looked = hub.sent - before
    done = call("pull", WHERE, *asked, "--json", "--store", tmp_path / "target")
    assert {**json.loads(said.out), "dry_run": False} == json.loads(done.out)
    (table,) = (run.store).rglob("hidden.parquet")
    layers = table.stat().st_size * 2 / 12
    assert layers * 0.95 < hub.sent - before - 2 * looked < layers * 1.05
    assert looked < layers / 2
    assert verify(tmp_path / "target", deep=True) == []
    for layer in (3, 9):
        mine, theirs = (reader.open(store).matrix(run.id, layer) for store in (run.store, tmp_path / "target"))
        assert mine.values.tobytes() == theirs.values.tobytes()
    assert reader.open(tmp_path / "target").features(run.id)[0].layers == [3, 9]


@pytest.mark.parametrize(
    "asked",
    [
        Selection(outputs=("mean@prompt", "lens"), layers=(1, 3)),
        Selection(data=("films",)),
        Selection(tables=("tokens", "rows")),
        Selection(runs=("org/other",)),
    ],
)
def test_a_part_from_the_hub_is_the_part_from_the_folder(
    tmp_path: Path, source: Run, hub: FakeHub, asked: Selection
) -> None:
    transfer.push(source.store, WHERE)
    transfer.pull(WHERE, tmp_path / "hub", asked)
    transfer.pull(str(source.store), tmp_path / "folder", asked)
    assert files(tmp_path / "hub") == files(tmp_path / "folder")
    # And the other way round: the part is pushed, and is the whole of the repository.
    transfer.push(source.store, "hf://datasets/me/part", asked)
    there = {path: blob.data for path, blob in hub.repositories["me/part"].files.items() if is_known(path)}
    assert there == files(tmp_path / "folder")


def test_a_run_of_another_name_is_the_same_run(tmp_path: Path, hub: FakeHub) -> None:
    one, other = make_run(tmp_path / "a", "org/tiny"), make_run(tmp_path / "b", "/models/mine")
    put_shard(one, range(3), {MEAN: LAYERS})
    put_shard(other, range(3, 6), {MEAN: LAYERS})
    assert one.id != other.id
    transfer.push(one.store, WHERE)
    assert transfer.push(other.store, WHERE).runs == 0
    transfer.pull(WHERE, tmp_path / "both")
    assert verify(tmp_path / "both", deep=True) == []
    (run,) = reader.open(tmp_path / "both").runs()
    assert run.id == one.id
    assert len(reader.open(tmp_path / "both").matrix(run, 0).sample_ids) == 6


def test_what_was_compacted_replaces_the_rest_there_too(tmp_path: Path, hub: FakeHub) -> None:
    run = make_run(tmp_path / "a")
    put_shard(run, range(3), {MEAN: LAYERS})
    put_shard(run, range(3, 6), {MEAN: LAYERS})
    transfer.push(run.store, WHERE)
    opened = reader.open(run.store)
    compact.compact(opened, run, "clean")
    assert transfer.push(run.store, WHERE).shards == 1
    transfer.pull(WHERE, tmp_path / "b")
    assert content(tmp_path / "b") == content(run.store)
    assert len(list((tmp_path / "b").rglob("shard=*/manifest.json"))) == 1
    # A pattern would find the old shards too: the page names the files.
    (hidden,) = (one for one in _configs(hub) if one["config_name"].endswith(".clean.hidden"))
    (shard,) = reader.open(run.store).shards(run)
    assert hidden["data_files"] == [f"run={run.id}/condition=clean/shard={shard.name}/hidden.parquet"]


def _configs(hub: FakeHub, name: str = NAME) -> list[dict[str, object]]:
    from huggingface_hub import RepoCard

    page = hub.repositories[name].files["README.md"].data.decode()
    configs: list[dict[str, object]] = RepoCard(page).data.to_dict()["configs"]
    return configs


HOSTILE = {
    "../escaped.txt": b"out",
    "/absolute.txt": b"out",
    "run=../run.json": b"{}",
    "run=x/../../escaped.txt": b"out",
    "run=x/run.json/..": b"out",
    "FROZEN": b"stay out",
    ".tmp/x": b"x",
    "setup.py": b"import os",
    "run=x/rows/../../../escaped-000000-0123456789abcdef.parquet": b"out",
    "run=tiny/condition=clean/shard=s1/../../../../escaped.parquet": b"out",
    "run=tiny\\..\\x/run.json": b"{}",
    "recipes/a/b-000000-0123456789abcdef.json": b"{}",
    "results/../x/manifest.json": b"{}",
    "run=tiny/head-0123456789abcdef.safetensors.sh": b"x",
}


def test_only_names_of_the_format_are_written(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    hub.put(NAME, {**files(source.store), **HOSTILE})
    target = tmp_path / "in" / "target"
    target.parent.mkdir()
    transfer.pull(WHERE, target)
    assert files(target) == files(source.store)
    assert not list(tmp_path.rglob("escaped*"))
    assert not any(path.is_symlink() for path in target.rglob("*"))
    for path in HOSTILE:
        assert not is_known(path), path
    for path in files(source.store):
        assert is_known(path), path


def test_a_manifest_that_points_elsewhere_is_refused(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    given = files(source.store)
    path = next(path for path in given if path.endswith("/manifest.json") and "shard=" in path)
    for name in ("../../run.json", "/etc/passwd", "x/y.parquet"):
        value = json.loads(given[path])
        value["files"][name] = value["files"]["samples.parquet"]
        hub.put(NAME, {**given, path: json.dumps(value).encode()})
        with pytest.raises(StoreError, match=r"manifest\.json is malformed .*file name"):
            transfer.pull(WHERE, tmp_path / "target")
        assert not (tmp_path / "target").exists()


def test_bytes_that_are_not_the_manifests_are_not_published(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    given = files(source.store)
    path = next(path for path in given if path.endswith("/hidden.parquet"))
    data = bytearray(given[path])
    data[len(data) // 3] ^= 1
    hub.put(NAME, {**given, path: bytes(data)})
    with pytest.raises(StoreError, match=r"hidden\.parquet: its sha256 is not the manifest's"):
        transfer.pull(WHERE, tmp_path / "target")
    assert verify(tmp_path / "target", deep=True) == []
    hub.put(NAME, {**given, path: given[path][:-1]})
    with pytest.raises(StoreError, match="is damaged"):
        transfer.pull(WHERE, tmp_path / "cut")
    hub.put(NAME, {**given, path: b"PAR2" * (len(given[path]) // 4) + given[path][: len(given[path]) % 4]})
    with pytest.raises(StoreError, match="does not end as a Parquet file does"):
        transfer.pull(WHERE, tmp_path / "none", Selection(layers=(0,)))


def test_a_damaged_store_is_not_pushed(source: Run, hub: FakeHub) -> None:
    path = next(source.store.rglob("hidden.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"hidden\.parquet: its sha256 is not the manifest's"):
        transfer.push(source.store, WHERE)
    assert not any(path.endswith("manifest.json") for path in on_hub(hub))


def test_the_page_keeps_what_the_user_wrote(source: Run, hub: FakeHub) -> None:
    page = "---\nlicense: cc-by-4.0\nconfigs:\n- config_name: mine\n  data_files: mine.csv\n---\n# Films\n\nMine, all mine.\n"
    hub.put(NAME, {"README.md": page.encode()})
    done = transfer.push(source.store, WHERE)
    assert done.notes == [f"{WHERE} is there already, and is public"]
    first = hub.repositories[NAME].files["README.md"].data.decode()
    assert "license: cc-by-4.0" in first
    assert "Mine, all mine." in first
    assert [one for one in _configs(hub) if one["config_name"] == "mine"] == [
        {"config_name": "mine", "data_files": "mine.csv"}
    ]
    edited = first.replace("Mine, all mine.", "Yours.").replace("| run | model |", "| scribble | model |")
    hub.put(NAME, {**on_hub(hub), "README.md": edited.encode()})
    transfer.push(source.store, WHERE)
    last = hub.repositories[NAME].files["README.md"].data.decode()
    assert last == first.replace("Mine, all mine.", "Yours.")
    hub.put(NAME, {"README.md": b"---\nlicense: [\n---\n"})
    with pytest.raises(StoreError, match=r"the metadata of its README\.md cannot be read"):
        transfer.push(source.store, WHERE)


def test_names_in_the_page_are_text(tmp_path: Path, hub: FakeHub) -> None:
    run = make_run(tmp_path / "a", "org/<script>alert(1)</script> | [x](http://x) `y`\n# head")
    put_shard(run, range(2))
    transfer.push(run.store, WHERE)
    page = hub.repositories[NAME].files["README.md"].data.decode()
    (line,) = [line for line in page.splitlines() if "script" in line and line.startswith("|")]
    assert "<script>" not in page
    assert "](http" not in page
    assert line.count(" | ") == 6
    assert card.plain("a|b\n`c`") == r"a\|b \`c\`"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_datasets_reads_every_table_as_the_page_says(
    tmp_path: Path, source: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    transfer.push(source.store, WHERE)
    repository = tmp_path / "repository"
    for path, blob in hub.repositories[NAME].files.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_bytes(blob.data)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    names = set(datasets.get_dataset_config_names(str(repository)))
    wanted = {f"{source.id}.clean.{table}" for table in ("samples", "hidden", "lens", "tokens")}
    assert {*wanted, "results", f"{source.id}.rows.films", f"{source.id}.rows.a%20b%2F%C3%BC"} <= names
    for name in sorted({*wanted, f"{source.id}.rows.a%20b%2F%C3%BC"}):
        found = datasets.load_dataset(str(repository), name, split="train", cache_dir=str(tmp_path / "cache"))
        table = name.rpartition(".")[2]
        if table in ("samples", "hidden", "lens", "tokens"):
            rows = sum(
                shard.files[f"{table}.parquet"].rows
                for shard in reader.open(source.store).shards(source.id)
                if shard.file(table)
            )
            assert len(found) == rows
    assert found.column_names[:2] == ["row", "sample_id"] or "sample_id" in found.column_names


def test_bad_repositories(
    tmp_path: Path, source: Run, hub: FakeHub, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: object) -> str:
        done = call(*arguments, "--store", source.store)
        assert done.code == 2
        assert done.out == ""
        assert hub.token not in done.err
        (line,) = done.err.splitlines()
        return line

    assert "no such dataset repository" in said("pull", WHERE)
    hub.put(NAME, {"data.csv": b"a"})
    assert "holds no store: push one" in said("pull", WHERE)
    assert "the repository has no such revision" in said("pull", f"{WHERE}@v9")
    hub.put("me/private", files(source.store), private=True)
    monkeypatch.setenv("HF_TOKEN", hub.reader_token)
    assert "this login may not do that: log in with a token that may write" in said("push", WHERE)
    assert "this login may not do that" in said("push", "hf://datasets/me/new")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "or this login may not see it" in said("pull", "hf://datasets/me/private")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off by HF_HUB_OFFLINE" in said("pull", WHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9: check the network" in said("push", WHERE)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'layercache[hub]'" in said("pull", WHERE)


def test_two_who_push_at_once_do_not_lose_each_others_commits(
    source: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.look_at

    def look_at(api: object, address: client.Address) -> client.Remote:
        remote = real(api, address)  # type: ignore[arg-type]
        repository = hub.repositories[NAME]
        repository.commit({**repository.files, "their.txt": repository.files[".gitattributes"]})
        return remote

    hub.put(NAME, {})
    monkeypatch.setattr(client, "look_at", look_at)
    with pytest.raises(StoreError, match="someone else has committed in the meantime: run the same command again"):
        transfer.push(source.store, WHERE)
    monkeypatch.setattr(client, "look_at", real)
    transfer.push(source.store, WHERE)
    assert "their.txt" in hub.repositories[NAME].files
    assert on_hub(hub) == files(source.store)


def test_a_revision_stays_what_it_was(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    transfer.push(source.store, WHERE, Selection(runs=("org/other",)))
    early = hub.repositories[NAME].commits[-1][0]
    transfer.push(source.store, WHERE)
    transfer.pull(f"{WHERE}@{early}", tmp_path / "early")
    assert [run.model for run in reader.open(tmp_path / "early").runs()] == ["org/other"]


def test_the_endpoint_of_the_environment_is_used(tmp_path: Path, source: Run, hub: FakeHub) -> None:
    """huggingface_hub reads HF_ENDPOINT when it is imported, so a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.token,
        "OMP_NUM_THREADS": "1",
    }
    for arguments in (
        ("push", WHERE, "--store", source.store, "--public"),
        ("pull", WHERE, "--store", tmp_path / "there"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "layercache", *map(str, arguments)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert hub.token not in done.stdout + done.stderr
    assert not hub.repositories[NAME].private
    assert files(tmp_path / "there") == files(source.store)


def test_requests_are_few(tmp_path: Path, source: Run, hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    transfer.push(source.store, WHERE)
    hub.requests.clear()
    with caplog.at_level(logging.WARNING):
        transfer.pull(WHERE, tmp_path / "target")
    assert caplog.records == []
    # A request a file, and no second look at any; listing is paged.
    assert hub.requests["resolve"] == len(files(source.store))
    assert hub.requests["info"] == 1
