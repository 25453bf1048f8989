"""Hashes of files by their content, remembered in the user's cache: a model is what its files hold, not what it is called.

Hashing weights is slow, so a file's hash is remembered by its path, size, time of change and inode.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return a file's sha256, from the user's cache when the file has not changed since it was hashed."""
    key = _identity(path)
    known = _read_cache().get(key)
    if known is not None:
        return known
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 24):
            sha.update(block)
    if _identity(path) == key:
        _remember(key, sha.hexdigest())
    return sha.hexdigest()


def cache_file() -> Path:
    """Return where hashes of weight files are remembered."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "layercache" / "weights.json"


def _identity(path: Path) -> str:
    real = path.resolve()
    info = real.stat()
    return f"{real}|{info.st_size}|{info.st_mtime_ns}|{info.st_ino}"


def _read_cache() -> dict[str, str]:
    """Read what is remembered; anything unreadable counts as nothing, since it can be hashed again."""
    try:
        cache = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(cache, dict):
        return {}
    return {key: sha for key, sha in cache.items() if isinstance(sha, str) and len(sha) == 64}


def _remember(key: str, sha: str) -> None:
    """Add one hash. Another process writing at the same moment may win: then one file is hashed again later."""
    path = cache_file()
    # A file that was changed in place leaves an entry that no file matches any more.
    stem = key.split("|")[0] + "|"
    cache = {old: value for old, value in _read_cache().items() if not old.startswith(stem)}
    cache[key] = sha
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(cache, file)
        Path(temporary).replace(path)
    except OSError:
        return  # A read-only home only costs the time of hashing again.
