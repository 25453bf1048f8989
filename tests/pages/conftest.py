"""What some pages need beside them: a bucket, a Hub, a Ray, all on this machine. Each says what it puts into the environment."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# One name for each thing: these folders have helpers of their own.
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("bucket", "transfer")]

from fake_hub import FakeHub
from served import served

Environment = dict[str, str]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Environment]:
    """An S3 server with the bucket that pages name."""
    with served() as server:
        server.call("PUT", "my-bucket")
        yield {**server.environment, "LAYERCACHE_CACHE": str(tmp_path / ".cache")}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """A Hub that huggingface_hub talks to in this process; it reads its endpoint from the environment on import."""
    from huggingface_hub import constants

    with FakeHub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield {"HF_TOKEN": server.token, "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def ray(ray_here: None) -> Environment:
    """The Ray of the tests: its address."""
    import ray as installed

    return {"RAY_HERE": installed.get_runtime_context().gcs_address}
