"""A Hugging Face Hub in one thread: the requests that huggingface_hub makes of dataset repositories, and no others.

Written from what `huggingface_hub` (2.4) sends and reads. Large files go by LFS, through a redirect as on the Hub.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 7
LARGE = (".parquet", ".safetensors")


class Blob(NamedTuple):
    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        text = self.data
        if self.lfs:
            oid = hashlib.sha256(self.data).hexdigest()
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": Blob(b"*.parquet filter=lfs\n", False)})

    def commit(self, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class FakeHub:
    """Attributes: url, token, repositories, stored (LFS objects), requests (a count of each), sent (bytes of files)."""

    token = "hf_" + "secret" * 5
    reader_token = "hf_" + "reader" * 5

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.fail_after: dict[str, int] = {}
        """Requests of a kind that still succeed; then the server answers 403."""
        handler = type("Handler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """Make a repository with these files, as somebody might who does not use layercache."""
        repository = Repository(private)
        repository.commit(
            {**repository.files, **{path: Blob(data, path.endswith(LARGE)) for path, data in files.items()}}
        )
        for data in files.values():
            self.stored[hashlib.sha256(data).hexdigest()] = data
        self.repositories[name] = repository
        return repository


_ROUTES = {
    "create": ("POST", r"/api/repos/create"),
    "yaml": ("POST", r"/api/validate-yaml"),
    "info": ("GET", r"/api/datasets/(?P<name>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?"),
    "tree": ("GET", r"/api/datasets/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    "preupload": ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    "commit": ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    "batch": ("POST", r"/datasets/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "verify": ("POST", r"/lfs-verify"),
    "upload": ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    "resolve": ("GET", r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    "object": ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})"),
}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        self.body = self._body()
        path = urlsplit(self.path).path
        for name, (wanted, pattern) in _ROUTES.items():
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                self.hub.requests[name] += 1
                if self.hub.requests[name] > self.hub.fail_after.get(name, 10**9):
                    return self._answer(403, {"error": "no"})
                return getattr(self, name)(
                    **{key: value and unquote(value) for key, value in match.groupdict().items()}
                )
        return self._answer(404, {"error": f"not a request of the Hub: {method} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, value: Any = None, data: bytes | None = None, **headers: str) -> None:
        content = json.dumps(value).encode() if data is None else data
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    @property
    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return None if header is None else header.removeprefix("Bearer ")

    def _repository(self, name: str, *, write: bool = False) -> Repository | None:
        """Find a repository, or answer why not, as the Hub does: what may not be seen is not there."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self._token not in (self.hub.token, self.hub.reader_token)):
            self._answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if write and self._token != self.hub.token:
            self._answer(403, {"error": "Forbidden"})
            return None
        return found

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, Blob]] | None:
        repository = self._repository(name)
        found = None if repository is None else repository.at(revision)
        if repository is not None and found is None:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found

    def create(self) -> None:
        value = json.loads(self.body)
        assert value["type"] == "dataset"
        name = f"{value['organization']}/{value['name']}"
        if self._token != self.hub.token:
            return self._answer(403, {"error": "Forbidden"})
        if name in self.hub.repositories:
            return self._answer(409, {"error": "exists"})
        self.hub.repositories[name] = Repository(value["visibility"] == "private")
        return self._answer(200, {"url": f"{self.hub.url}/datasets/{name}"})

    def yaml(self) -> None:
        self._answer(200, {"errors": [], "warnings": [{"message": "empty or missing license"}]})

    def info(self, name: str, revision: str | None) -> None:
        found = self._at(name, revision or "main")
        if found is not None:
            private = self.hub.repositories[name].private
            self._answer(200, {"id": name, "sha": found[0], "private": private, "siblings": []})

    def tree(self, name: str, revision: str) -> None:
        found = self._at(name, revision)
        if found is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        files = sorted(found[1].items())
        folders = sorted({path.rpartition("/")[0] for path in found[1] if "/" in path})
        entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
        entries += [self._entry(path, blob) for path, blob in files]
        headers = {}
        if start + PAGE < len(entries):
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.url}{path}?recursive=true&cursor={start + PAGE}>; rel="next"'
        self._answer(200, entries[start : start + PAGE], **headers)

    @staticmethod
    def _entry(path: str, blob: Blob) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.data)}
        if blob.lfs:
            oid = hashlib.sha256(blob.data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(blob.data), "pointerSize": 134}
        return entry

    def preupload(self, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        if repository is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                **({"oid": self._local_oid(blob)} if (blob := repository.files.get(file["path"])) else {}),
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    @staticmethod
    def _local_oid(blob: Blob) -> str:
        return hashlib.sha256(blob.data).hexdigest() if blob.lfs else blob.git_oid

    def batch(self, name: str) -> None:
        if self._repository(name, write=True) is None:
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = {
                "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs-verify"},
            }
            objects.append({**one, **({} if one["oid"] in self.hub.stored else {"actions": href})})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        # The address is signed: it needs no token, and must not get one.
        assert self._token is None
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.stored[oid] = self.body
        self._answer(200, data=b"")

    def verify(self) -> None:
        value = json.loads(self.body)
        self._answer(200 if len(self.hub.stored[value["oid"]]) == value["size"] else 404, {})

    def commit(self, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        if repository is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repository.commits[-1][0]) != repository.commits[-1][0]:
            return self._answer(412, {"error": "A commit has happened since"})
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], True)
        oid = repository.commit(files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self._at(name, revision)
        if found is None:
            return
        blob = found[1].get(path)
        if blob is None:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        elif blob.lfs:
            oid = hashlib.sha256(blob.data).hexdigest()
            self.hub.stored[oid] = blob.data
            self._answer(302, data=b"", Location=f"{self.hub.url}/lfs/{oid}")
        else:
            self._content(blob.data)

    def object(self, oid: str) -> None:
        self._content(self.hub.stored[oid])

    def _content(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self.hub.sent += len(data)
            return self._answer(200, data=data)
        start, stop = int(match[1]), int(match[2]) + 1
        part = data[start:stop]
        self.hub.sent += len(part)
        return self._answer(206, data=part, Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")
