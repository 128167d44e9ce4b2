"""Start the real ComfyUI as a user would, and talk to it over HTTP."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image

PACK = pathlib.Path(__file__).parents[2]


def find_host() -> pathlib.Path | None:
    """Return a ComfyUI checkout: $COMFYUI_PATH, the one around this pack, or comfy-cli's default location."""
    named = os.environ.get("COMFYUI_PATH")
    places = [pathlib.Path(named)] if named else []
    if PACK.parent.name == "custom_nodes":
        places.append(PACK.parents[1])
    places.append(pathlib.Path.home() / "comfy" / "ComfyUI")
    return next((p.resolve() for p in places if (p / "main.py").is_file() and (p / "comfy").is_dir()), None)


def host_python(host: pathlib.Path) -> str:
    """Return the host's own Python: $COMFYUI_PYTHON, or the virtual environment in its checkout."""
    for sub in ("bin/python", "Scripts/python.exe"):
        if (host / ".venv" / sub).is_file():
            return os.environ.get("COMFYUI_PYTHON") or str(host / ".venv" / sub)
    return os.environ.get("COMFYUI_PYTHON") or "python"


def required_packages() -> list[str]:
    """Return the names of the packages that the pack requires."""
    lines = (PACK / "requirements.txt").read_text().splitlines()
    return [re.split(r"[<>=!~ ]", line, maxsplit=1)[0] for line in lines if line and not line.startswith("#")]


def missing_packages(host: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Return those of some packages that the host's Python lacks."""
    script = (
        "import importlib.metadata, json, sys\n"
        "installed = {d.metadata['Name'].lower().replace('_', '-') for d in importlib.metadata.distributions()}\n"
        "print(json.dumps([name for name in sys.argv[1:] if name.lower().replace('_', '-') not in installed]))"
    )
    done = subprocess.run([host_python(host), "-c", script, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run_inside(host: pathlib.Path, script: str, *arguments: str) -> Any:
    """Run a script of this folder in the host's Python, without a server; return the JSON of its last line."""
    path = pathlib.Path(__file__).with_name(script)
    command = [host_python(host), str(path), str(host), str(PACK), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **MALLOC}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=host, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def preview(message: bytes) -> Image.Image | None:
    """Return the image in a binary message, which starts with a header of varying length; None if there is none."""
    start = max(message.find(b"\xff\xd8\xff"), message.find(b"\x89PNG"))
    return Image.open(io.BytesIO(message[start:])).convert("RGB") if start >= 0 else None


TEXT_EVENT = 3  # the host's BinaryEventTypes.TEXT


def read_text(message: bytes) -> tuple[str, str] | None:
    """Return the node and the text of a binary message, which holds both behind their lengths; None without a text."""
    event, length = struct.unpack(">II", message[:8])
    if event != TEXT_EVENT:
        return None
    return message[8 : 8 + length].decode(), message[8 + length :].decode()


# By default glibc returns large blocks to the system at once; allocating them again took a third of the tests' time.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


class HostError(Exception):
    """An error that the host reported for a prompt."""


class Server:
    """A host with its own base directory, in which the pack is linked into custom_nodes."""

    def __init__(self, host: pathlib.Path, base: pathlib.Path, *options: str, **environment: str) -> None:
        self.options = options  # of the command line
        self.host, self.base, self.log, self.environment = host, base, base / "server.log", environment
        models = [f"models/{kind}" for kind in ("checkpoints", "text_encoders", "embeddings")]
        for sub in (*models, "custom_nodes", "output", "input", "temp", "user"):
            (base / sub).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / PACK.name
        if not link.exists():
            link.symlink_to(PACK, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.client, self.heard = uuid.uuid4().hex, []
        self.last_picture: Image.Image | None = None
        self.texts: list[tuple[float, str, str]] = []  # when, the node, what it says

    def start(self, timeout: float = 180) -> None:
        """Start the host and wait until it answers. Raises HostError if it does not."""
        command = [
            host_python(self.host),
            "main.py",
            "--cpu",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            # Torch's attention, as on a GPU: faster, and counted faster by the memory estimate. The scripts that run
            # inside the host's Python use the host's default for a CPU.
            "--use-pytorch-cross-attention",
            *self.options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **MALLOC, **self.environment}
        environment.pop("PYTHONPATH", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.host, env=environment, stdout=log, stderr=log)
        end = time.time() + timeout
        while time.time() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("system_stats")
                self.listen()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        raise HostError(f"the host did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def request(self, path: str, data: Any = None) -> bytes:
        """Send a GET, or a POST of JSON; return the body."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise HostError(error.read().decode()) from error

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        return json.loads(self.request(path))

    def listen(self) -> None:
        """Receive the messages for an open page: JSON, nodes' texts, and the last preview image."""
        import websocket

        socket = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=600)

        def loop() -> None:
            while self.process is not None and self.process.poll() is None:
                try:
                    message = socket.recv()
                except (websocket.WebSocketException, OSError):
                    return
                if isinstance(message, str):
                    self.heard.append(json.loads(message))
                elif (said := read_text(message)) is not None:
                    self.texts.append((time.monotonic(), *said))
                else:
                    self.last_picture = preview(message) or self.last_picture

        threading.Thread(target=loop, daemon=True).start()

    def wait_for_progress(self, node_id: str, value: int, timeout: float = 300) -> dict[str, Any]:
        """Wait until a node's progress bar reaches a value; return the host's message."""
        end = time.time() + timeout
        while time.time() < end:
            for message in list(self.heard):
                data = message["data"]
                if message["type"] == "execution_error":
                    raise HostError(data.get("exception_message", "execution_error"))
                if message["type"] == "progress" and data.get("node") == node_id and data["value"] >= value:
                    return data
            time.sleep(0.02)
        raise HostError(f"node {node_id} did not reach {value}")

    def wait_for_log(self, text: str, start: int = 0, timeout: float = 300) -> None:
        """Wait until the log has a text, from a position on."""
        end = time.time() + timeout
        while text.encode() not in self.log.read_bytes()[start:]:
            if time.time() > end:
                raise HostError(f"the log does not say {text!r}")
            time.sleep(0.02)

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a graph; return its id. Raises HostError with the message of the validation."""
        self.heard.clear()
        self.texts.clear()
        return json.loads(self.request("prompt", {"prompt": prompt, "client_id": self.client}))["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """Wait for a graph's end; return its history. Raises HostError with the message of the node that failed."""
        end = time.time() + timeout
        while time.time() < end:
            history = self.get(f"history/{prompt_id}")
            if prompt_id in history:
                entry = history[prompt_id]
                for kind, detail in entry["status"]["messages"]:
                    if kind in ("execution_error", "execution_interrupted"):
                        raise HostError(f"{kind}: {detail.get('exception_message', '')}")
                return entry
            time.sleep(0.2)
        raise HostError(f"no result after {timeout} s:\n{self.log.read_text()[-2000:]}")

    def run(self, prompt: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        """Queue a graph and return its outputs, a dictionary for each output node."""
        return self.wait(self.queue(prompt), timeout)["outputs"]

    def image(self, entry: dict[str, str]) -> Image.Image:
        """Return an image that a node saved or previewed."""
        return Image.open(io.BytesIO(self.request("view?" + urllib.parse.urlencode(entry)))).convert("RGB")


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    """Return a node of a graph in the API's form; a link is ("id", output)."""
    return {"class_type": class_type, "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}}
