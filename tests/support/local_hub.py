"""A Hugging Face hub on this machine: metadata, redirects, ranges, and faults to inject."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

COMMIT = "c" * 40


def git_hash(data: bytes) -> str:
    """Return git's hash of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The files by their path in the repository, and the faults to inject."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.address = ""
        self.damage = b""  # replaces the first bytes of a file
        self.surplus = b""  # sent after the end of a file, without stating a length
        self.cut_after = 0  # bytes after which a transfer breaks off, each time
        self.cuts = 10**9  # number of times that it does
        self.ranges = True
        self.seconds = 0.0  # duration of a transfer
        self.requests: list[tuple[str, str, str | None]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer as the hub does: HEAD describes a file, a large one is redirected to a storage host."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        """State a file's size and hash."""
        self.answer(with_body=False)

    def do_GET(self) -> None:
        """Send a file."""
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/bytes/"):
            self.send_file(self.hub.files[self.path.removeprefix("/bytes/")])
        else:
            self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        """Answer for a path of the repository, at the main branch or at the commit."""
        revision, _, file = self.path.partition("/resolve/")[2].partition("/")
        data = self.hub.files.get(file) if revision in ("main", COMMIT) else None
        headers = {"X-Repo-Commit": COMMIT}
        if data is None:
            self.send_head(404, {**headers, "X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        elif file.endswith(".json"):
            self.send_head(200, {**headers, "ETag": f'"{git_hash(data)}"', "Content-Length": str(len(data))})
            self.wfile.write(data if with_body else b"")
        else:
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            # The bytes are on another host than the hub, as in reality: the metadata must come from this answer.
            storage = self.hub.address.replace("127.0.0.1", "localhost")
            redirect = {"Location": f"{storage}/bytes/{file}", "Content-Length": "0", "ETag": '"of-the-redirect"'}
            self.send_head(302, {**headers, **linked, **redirect})

    def send_file(self, data: bytes) -> None:
        """Send bytes from the start that was requested."""
        hub = self.hub
        requested = self.headers.get("Range") if hub.ranges else None
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        body = (hub.damage + data[len(hub.damage) :])[start:] + hub.surplus
        self.send_head(206 if requested else 200, {} if hub.surplus else {"Content-Length": str(len(body))})
        if hub.surplus:
            self.close_connection = True
        if hub.cut_after and hub.cut_after < len(body) and hub.cuts:
            hub.cuts -= 1
            self.wfile.write(body[: hub.cut_after])
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            for k in range(0, len(body), block := 1 + len(body) // 100):
                self.wfile.write(body[k : k + block])
                time.sleep(hub.seconds / 100)

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        """Send a status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def running(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub with these files."""
    hub = Hub(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
