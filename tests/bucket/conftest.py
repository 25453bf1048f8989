"""Stores in buckets of an S3 server on loopback, each with a cache of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, served

sys.path.insert(0, str(Path(__file__).parent.parent / "store"))


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server, this process set up to ask it, and an empty cache."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAYERCACHE_CACHE", str(tmp_path / "cache"))
    running.requests.clear()
    yield running
    running.hook = None


@pytest.fixture
def url(server: Server) -> str:
    """A place for a store, in a bucket of its own."""
    return f"s3://{server.bucket()}/a/store"
