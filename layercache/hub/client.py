"""A dataset repository on the Hub: its address, its files, their bytes, and one line for whatever goes wrong.

The token is whichever huggingface_hub finds (`hf auth login`, HF_TOKEN); it is never looked at here.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layercache.errors import StoreError
from layercache.store import sparse

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://datasets/([\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@([^@\s]+))?/?", re.ASCII)
THREADS = 8
"""Requests that read from a repository at once."""
CHUNK = 16 * 2**20
"""Bytes that one request asks for at most."""


class Address(NamedTuple):
    """Which repository, and which branch, tag or commit of it."""

    repository: str
    """`user/name`."""
    revision: str | None

    def __str__(self) -> str:
        return f"{SCHEME}datasets/{self.repository}{'' if self.revision is None else '@' + self.revision}"


class RemoteFile(NamedTuple):
    """A file of a repository: its size and, where it is one of the large ones, its sha256."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A repository at one commit, which does not change."""

    api: "HfApi"
    address: Address
    commit: str
    private: bool
    files: dict[str, RemoteFile]

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes [start, stop) of a file; to its end when there is no stop.

        Raises:
            StoreError: the Hub cannot be reached, or sends something else.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        size = self.files[path].size
        stop = size if stop is None else min(stop, size)
        if stop <= start:
            return b""
        url = hf_hub_url(
            self.address.repository, path, repo_type="dataset", revision=self.commit, endpoint=self.api.endpoint
        )
        # What is asked for are bytes of the file, so it must not come compressed.
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with one_line(self.address):
            response = http_backoff("GET", url, headers={**build_hf_headers(), **headers})
            hf_raise_for_status(response)
        content: bytes = response.content
        if response.status_code == 200 and len(content) == size:
            content = content[start:stop]
        if len(content) != stop - start:
            raise StoreError(f"{self.address}: {path} came with {len(content)} bytes, not {stop - start}: try again")
        return content

    def fetch(
        self,
        wanted: list[tuple[str, Path, int, int]],
        moved: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        """Fetch bytes [start, stop) of files into their places in files that are there, several at once.

        Args:
            wanted: path in the repository, file, start, stop.
            moved: is told of bytes as they come.
        """
        parts = [
            (path, file, first, min(first + CHUNK, stop))
            for path, file, start, stop in wanted
            for first in range(start, stop, CHUNK)
        ]

        def one(part: tuple[str, Path, int, int]) -> int:
            path, file, start, stop = part
            sparse.put(file, start, self.read(path, start, stop))
            return stop - start

        with ThreadPoolExecutor(THREADS) as pool:
            for nbytes in pool.map(one, parts):
                moved(nbytes)

    def read_all(self, paths: list[str]) -> dict[str, bytes]:
        """Return the content of small files, several at once."""
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(paths, pool.map(self.read, paths), strict=True))


def parse(text: str) -> Address:
    """Read `hf://datasets/user/name`, optionally with `@revision`.

    Raises:
        StoreError: it is something else.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise StoreError(f"{text!r} is no dataset repository: give hf://datasets/USER/NAME, optionally with @REVISION")
    return Address(match[1], match[2])


def connect() -> "HfApi":
    """Return a client.

    Raises:
        StoreError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    except ImportError:
        raise StoreError("the Hub needs huggingface_hub: pip install 'layercache[hub]'") from None
    disable_progress_bars()
    return HfApi()


def look_at(api: "HfApi", address: Address) -> Remote:
    """List a repository as it is now.

    Raises:
        StoreError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import RepoFile

    with one_line(address):
        info = api.dataset_info(address.repository, revision=address.revision)
        tree = api.list_repo_tree(address.repository, recursive=True, revision=info.sha, repo_type="dataset")
        files = {
            one.path: RemoteFile(one.size, None if one.lfs is None else one.lfs.sha256)
            for one in tree
            if isinstance(one, RepoFile)
        }
    return Remote(api, address, str(info.sha), bool(info.private), files)


def create(api: "HfApi", address: Address, *, private: bool) -> Remote:
    """Make a dataset repository.

    Raises:
        StoreError: this login may not, or the Hub cannot be reached.
    """
    with one_line(address):
        api.create_repo(address.repository, repo_type="dataset", private=private, exist_ok=True)
    return look_at(api, address)


class NoRepositoryError(StoreError):
    """There is no such repository, or it is not to be seen."""


@contextmanager
def one_line(address: Address) -> Iterator[None]:
    """Turn an error of the Hub or of the way to it into a StoreError of one line, which never holds a token."""
    from huggingface_hub.errors import HfHubHTTPError

    # The errors of whichever HTTP library huggingface_hub is built on.
    http_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except StoreError:
        raise
    except (http_error, RuntimeError, ValueError, OSError) as error:
        raise _told(address, error) from error


def _told(address: Address, error: BaseException) -> StoreError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cause = error
    # An upload in a thread of its own says what went wrong in its cause.
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OfflineModeIsEnabled):
        return StoreError(f"{address}: the Hub is switched off by HF_HUB_OFFLINE: unset it")
    if isinstance(cause, GatedRepoError):
        return StoreError(f"{address} is gated: ask for access on its page, then log in with `hf auth login`")
    if isinstance(cause, RepositoryNotFoundError):
        return NoRepositoryError(
            f"{address}: no such dataset repository at {constants.ENDPOINT}, or this login may not see it: check the"
            " name, or log in with `hf auth login`"
        )
    if isinstance(cause, RevisionNotFoundError):
        return StoreError(f"{address}: the repository has no such revision: give a branch, a tag or a commit")
    if isinstance(cause, HfHubHTTPError):
        return StoreError(f"{address}: {_status(cause.response.status_code)}")
    if isinstance(cause, ValueError) and "README" in str(cause):
        return StoreError(f"{address}: the Hub refuses the metadata of README.md: mend it there, then push again")
    if isinstance(cause, ValueError | RuntimeError):
        return StoreError(f"{address}: the Hub answered what huggingface_hub does not understand: try again later")
    return StoreError(
        f"{address}: cannot reach {constants.ENDPOINT}: check the network, then run the same command again"
    )


def _status(code: int) -> str:
    said = {
        401: "the Hub does not know this login: log in with `hf auth login`",
        403: "this login may not do that: log in with a token that may write to the repository (`hf auth login`)",
        409: "someone else is changing the repository: run the same command again",
        412: "someone else has committed in the meantime: run the same command again, it goes on where it was",
        429: "the Hub asks for a pause: run the same command again later, it goes on where it was",
    }
    return said.get(code, f"the Hub answered {code}: run the same command again later, it goes on where it was")
