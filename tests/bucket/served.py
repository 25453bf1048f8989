"""An S3 server on loopback (moto's), which counts what it answers and can be told to answer otherwise."""

import logging
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "AWS_REGION": "us-east-1"}


class Request(NamedTuple):
    """A request that was answered, and the bytes of the answer's body."""

    method: str
    path: str
    query: str
    bytes: int


class Refusal(NamedTuple):
    """An answer in place of the server's own."""

    status: str
    code: str
    message: str = "as the test wants it"


Hook = Callable[[str, str, str], Refusal | None]
"""Given method, path and query: None lets the request through."""


@dataclass
class Server:
    """The server, what it was asked, and what it does beside answering."""

    port: int
    requests: list[Request] = field(default_factory=list)
    hook: Hook | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def bucket(self) -> str:
        """Make a bucket of its own and return its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.call("PUT", name)
        return name

    def call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """Ask the server without a client, so that a key may have any name."""
        request = urllib.request.Request(f"{self.url}/{path}", data=data, method=method)
        with urllib.request.urlopen(request) as answer:
            body: bytes = answer.read()
            return body

    def of(self, *methods: str) -> list[Request]:
        """Return the requests with one of these methods."""
        return [one for one in self.requests if one.method in methods]

    @property
    def fetched(self) -> int:
        """Bytes of the bodies of all answers to GET."""
        return sum(one.bytes for one in self.of("GET"))


@contextmanager
def served() -> Iterator[Server]:
    """Serve S3 on a free port of this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    server = Server(0)

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        refusal = server.hook(method, path, query) if server.hook is not None else None
        if refusal is not None:
            body = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>".encode()
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(refusal.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            parts: Iterable[bytes] = [body]
        else:
            parts = list(app(environ, start_response))
        server.requests.append(Request(method, path, query, sum(len(part) for part in parts)))
        return parts

    http = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=MotoRequestHandler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
