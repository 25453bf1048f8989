"""What is wrong is said in one line, within seconds, and nothing is half-written."""

import re
import socket
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import store_builder as build
import writing
from command import Call
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from served import Refusal, Server

import layercache
from layercache.errors import StoreError
from layercache.store import mirror
from layercache.store.remote import client, keys


def refused(call: Call, *arguments: object) -> str:
    called = call(*arguments)
    assert (called.code, called.out) == (2, "")
    (line,) = called.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:/x", r"^s3:/x names no bucket: write s3://bucket/prefix$"),
        ("s3://", r"names no bucket|is not the name of a bucket"),
        ("s3://UPPER_case!", r"^s3://UPPER_case! is not the name of a bucket: write s3://bucket/prefix"),
        ("s3://a", r"is not the name of a bucket"),
        ("ftp://host/x", r"^ftp://host/x is of a kind that is not known: give a folder, s3://"),
        ("s3://bucket/a//b", r"a prefix has no empty part"),
        ("s3://bucket/../b", r"a prefix has no empty part, no \. or \.\."),
        ("s3://me:password@bucket/b", r"^s3://…@bucket/b is not the name of a bucket"),
        ("s3://there-is-no-such-bucket/x", r"^there is no bucket s3://there-is-no-such-bucket: make it first"),
    ],
)
def test_a_name_that_is_no_bucket(call: Call, server: Server, url: str, said: str) -> None:
    line = refused(call, "ls", "--store", url)
    assert re.search(said, line)
    assert "password" not in line


def test_a_place_without_a_store(call: Call, server: Server, url: str) -> None:
    assert refused(call, "ls", "--store", url).startswith(f"no store at {url}: run `layercache extract` first")
    bucket = mirror.of(mirror.attach(url))
    assert bucket is not None
    bucket.client.put("holiday.jpg", b"x")
    assert refused(call, "ls", "--store", url) == f"{url} holds other things and is not a store: give another prefix"
    with pytest.raises(StoreError, match="holds other things"):
        build.make_run(bucket.root)
    assert [one.key for chunk in bucket.client.objects() for one in chunk] == ["holiday.jpg"]


@pytest.mark.parametrize("before", ["run=", "zebra"])
def test_many_other_things_are_not_all_listed(
    server: Server, url: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 20)
    bucket = mirror.of(mirror.attach(url))
    assert bucket is not None
    if before == "run=":
        writing.publish(url, 0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: bucket.client.put(f"other/{number}", b"x"), range(30)))
    if before == "run=":
        assert layercache.open(url).count_samples("org/tiny") == len(writing.NUMBERS)
    else:
        server.requests.clear()
        with pytest.raises(StoreError, match="holds other things"):
            layercache.open(url)
        assert len(server.requests) <= 5


def test_an_endpoint_that_does_not_answer(
    call: Call, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    line = refused(call, "ls", "--store", "s3://bucket/x")
    assert line.startswith(f"cannot list s3://bucket/x at http://127.0.0.1:{port} (")
    assert line.endswith("check the network and AWS_ENDPOINT_URL")
    build.make_run(tmp_path / "local")
    line = refused(call, "merge", tmp_path / "local", "--store", "s3://bucket/x")
    assert line.startswith("cannot list s3://bucket/x at ")


def test_http_without_encryption_has_to_be_allowed(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.invalid:9000")
    line = refused(call, "ls", "--store", "s3://bucket/x")
    assert line.startswith("http://elsewhere.invalid:9000 speaks HTTP without encryption: set AWS_ALLOW_HTTP=true")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert refused(call, "ls", "--store", "s3://bucket/x").startswith("cannot list s3://bucket/x at http://elsewhere")


def test_a_server_that_only_fails_is_given_up_after_three_attempts(call: Call, server: Server, url: str) -> None:
    server.hook = lambda method, path, query: Refusal(
        "503 Service Unavailable", "SlowDown", "Reduce your request rate."
    )
    server.requests.clear()
    line = refused(call, "ls", "--store", url)
    assert line.startswith(f"cannot list {url} at {server.url} (Reduce your request rate.)")
    assert len(server.requests) == 3


@pytest.fixture
def strict(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server checks who asks, as AWS does; of this tester it knows nothing."""
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)


def test_no_permission_by_the_servers_own_rules(call: Call, url: str, strict: None) -> None:
    line = refused(call, "ls", "--store", url)
    assert line == f"no permission to list {url}: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def test_no_permission_to_read_one_object_or_to_write(call: Call, server: Server, url: str, tmp_path: Path) -> None:
    writing.publish(url, 0)
    denied = Refusal("403 Forbidden", "AccessDenied", "no")
    server.hook = lambda method, path, query: denied if path.endswith("hidden.parquet") else None
    line = refused(call, "sql", "SELECT sum(norm(vector)) FROM hidden", "--store", url)
    assert f"no permission to read {url}/run=tiny-" in line
    with pytest.raises(StoreError, match=r"^no permission to read s3://.*hidden.parquet: check AWS_ACCESS_KEY_ID"):
        layercache.open(url).matrix("org/tiny", 1)
    server.hook = lambda method, path, query: denied if method == "PUT" else None
    build.make_run(tmp_path / "local")
    line = refused(call, "merge", tmp_path / "local", "--store", url)
    assert line == f"cannot write {url}: permission denied: choose another --store or change its permissions"


def test_without_the_extra(call: Call, server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    line = refused(call, "ls", "--store", f"{url}/anew")
    assert "install layercache with the extra s3 (`layercache[s3]`)" in line


def test_the_store_may_come_from_the_environment(
    call: Call, server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing.publish(url, 0)
    monkeypatch.setenv("LAYERCACHE_STORE", url)
    called = call("sql", "SELECT count(*) AS n FROM samples", "--format", "csv")
    assert (called.code, called.out, called.err) == (0, "n\n20\n", "")
    assert call("verify", "--deep").code == 0
    assert refused(call, "show", "nothing").startswith(f"no run 'nothing' in {url}: ")


HOSTILE = [
    "../outside.json",
    "../../../../outside.json",
    "/absolute.json",
    "run=tiny-1/../../../outside.json",
    "run=../run.json",
    "run=x/condition=c/shard=../../../../outside.json",
    "run=x/condition=clean/shard=s/..",
    "results/../../outside.json",
    "recipes/..\\outside.json",
    "recipes/a\nb.json",
    ".bucket",
    ".index",
    ".tmp/x/y",
    "C:/outside.json",
    "recipes/" + "x" * 250,
]


@pytest.mark.parametrize("key", HOSTILE)
def test_no_key_has_a_place_outside_its_mirror(key: str) -> None:
    assert keys.kind(key) is None


def test_hostile_keys_in_a_bucket_are_never_written(server: Server, url: str, tmp_path: Path) -> None:
    taken = opened = 0
    for number, key in enumerate(HOSTILE):
        bucket = mirror.of(mirror.attach(f"{url}-{number}"))
        assert bucket is not None
        bucket.client.put("FROZEN", b"a store")
        marker = (bucket.root / ".bucket").read_bytes()
        try:
            server.call("PUT", f"{url.removeprefix('s3://')}-{number}/{quote(key, safe='')}", b"{}")
        except urllib.error.URLError:
            continue  # The server itself does not take such a key.
        taken += 1
        # Some keys obstore refuses, and with them the listing: then nothing of the bucket is taken.
        with suppress(StoreError):
            assert layercache.open(f"{url}-{number}").runs() == []
            opened += 1
        assert (bucket.root / ".bucket").read_bytes() == marker
        there = {path.name for path in bucket.root.rglob("*")}
        assert there <= {".bucket", ".index", ".lock", ".tmp", "FROZEN"}
    assert 3 < opened < taken
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"cache"}
    assert not list(tmp_path.rglob("*outside*"))


def test_a_key_that_is_no_path_is_named(server: Server, url: str) -> None:
    server.call("PUT", f"{url.removeprefix('s3://')}/{quote('../outside.json', safe='')}", b"{}")
    with pytest.raises(StoreError, match=r"holds a key that is no path .*\.\./outside\.json.*remove it$"):
        layercache.open(url)
