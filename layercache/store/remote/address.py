"""Where a store in a bucket is: `s3://bucket/prefix` and the like, read from what a user wrote."""

import hashlib
import json
import os
import re
from typing import NamedTuple

from layercache.errors import StoreError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "file": "file"}
_BUCKETS = {
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){2,62}"),
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
"""How the environment variables begin that say where a bucket is served and who asks."""


class Address(NamedTuple):
    """A place in a bucket; `file` is a folder of this machine, read and written as if it were a bucket."""

    scheme: str
    """s3, gs, az or file."""
    bucket: str
    """Empty for `file`."""
    prefix: str
    """The part of every key before the store's own, without slashes round it; of `file` the folder's path."""

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file:///{self.prefix}"
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def endpoint(self) -> str:
        """Where the bucket is served, as the environment says; empty for the provider's own."""
        return next((os.environ[name] for name in _ENDPOINTS.get(self.scheme, ()) if os.environ.get(name)), "")

    @property
    def folder(self) -> str:
        """What the store's mirror is called: readable, and another one for every bucket, prefix and endpoint."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.bucket}-{self.prefix}").strip("-.")[:60]
        identity = json.dumps([*self, self.endpoint]).encode()
        return f"{readable or self.scheme}-{hashlib.sha256(identity).hexdigest()[:16]}"


def is_url(text: str) -> bool:
    """Tell whether a text is meant as a URL rather than a path (`C:/x` is a path, `s3:/x` a mistake in a URL)."""
    return _URL.match(text) is not None


def parse(text: str) -> Address:
    """Read a URL.

    Raises:
        StoreError: its scheme is not known here, or it does not name a bucket.
    """
    match = _URL.fullmatch(text)
    # What stands before an @ may be a password.
    shown = re.sub(r"//[^/]*@", "//…@", text)
    scheme = _SCHEMES.get(match["scheme"].lower()) if match else None
    if match is None or scheme is None:
        raise StoreError(f"{shown} is of a kind that is not known: give a folder, s3://…, gs://… or az://…")
    rest = match["rest"]
    if not rest.startswith("/"):
        raise StoreError(f"{shown} names no bucket: write {scheme}://bucket/prefix")
    if scheme == "file":
        return Address(scheme, "", _prefix(rest.strip("/"), shown))
    bucket, _, prefix = rest[1:].partition("/")
    if not _BUCKETS[scheme].fullmatch(bucket):
        raise StoreError(
            f"{shown} is not the name of a bucket: write {scheme}://bucket/prefix, a bucket in 3 to 63 small letters,"
            " digits, - and ."
        )
    return Address(scheme, bucket, _prefix(prefix.strip("/"), shown))


def _prefix(prefix: str, shown: str) -> str:
    parts = prefix.split("/") if prefix else []
    if any(part in {"", ".", ".."} or not part.isprintable() or "\\" in part for part in parts):
        raise StoreError(f"{shown}: a prefix has no empty part, no . or .., no backslash and no control characters")
    return prefix


def settings() -> tuple[tuple[str, str], ...]:
    """Return the environment variables that say where a bucket is served and who asks; secrets are among them."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS)))


def without_settings(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment without what `settings` returns: for a process that has no business with a bucket."""
    return {name: value for name, value in environment.items() if not name.startswith(_SETTINGS)}
