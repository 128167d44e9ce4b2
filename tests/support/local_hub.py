"""A Hugging Face hub on this machine, as far as fetching goes: metadata, redirects, ranges, and what goes wrong."""

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
    """Files by their path in the repository, and what to do wrong with them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.address = files, ""
        self.damage = b""  # sent in place of a file's first bytes
        self.cut_after = 0  # bytes after which a transfer breaks off, each time
        self.cuts = 10**9  # how many times it does
        self.ranges = True
        self.seconds = 0.0  # how long a file takes
        self.heard: list[tuple[str, str, str | None]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: HEAD tells of a file, a large one is redirected to where the bytes are."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Tell a file's size and hash."""
        self.reply(b"")

    def do_GET(self) -> None:
        """Send a file."""
        self.hub.heard.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/bytes/"):
            self.send(self.hub.files[self.path.removeprefix("/bytes/")])
        else:
            self.reply(None)

    def reply(self, body: bytes | None) -> None:
        """Answer for a path of the repository; `body` is None where the file itself is asked for."""
        file = self.path.partition("/resolve/main/")[2]
        data = self.hub.files.get(file)
        headers = {"X-Repo-Commit": COMMIT}
        if data is None:
            self.head(404, {**headers, "X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        elif file.endswith(".json"):
            self.head(200, {**headers, "ETag": f'"{git_hash(data)}"', "Content-Length": str(len(data))})
            self.wfile.write(data if body is None else b"")
        else:
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            # The bytes are on another host than the hub, as in the world: the metadata must come from this answer.
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")
            place = {"Location": f"{elsewhere}/bytes/{file}", "Content-Length": "0", "ETag": '"of-the-redirect"'}
            self.head(302, {**headers, **linked, **place})

    def send(self, data: bytes) -> None:
        """Send bytes, from where they are asked for."""
        hub = self.hub
        asked = self.headers.get("Range") if hub.ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        sent = (hub.damage + data[len(hub.damage) :])[start:]
        self.head(206 if asked else 200, {"Content-Length": str(len(sent))})
        if hub.cut_after and hub.cut_after < len(sent) and hub.cuts:
            hub.cuts -= 1
            self.wfile.write(sent[: hub.cut_after])
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):  # who asked has gone
            for k in range(0, len(sent), block := 1 + len(sent) // 100):
                self.wfile.write(sent[k : k + block])
                time.sleep(hub.seconds / 100)

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Send a status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def running(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub with these files."""
    hub = Hub(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
