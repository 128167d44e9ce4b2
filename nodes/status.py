"""What a node says while it runs and when it ends: on itself, in the console, and as an error in the pack's own words.

The text on a node is the host's progress text, a widget that both of its renderers draw. `web/js/advunlearn.js` uses it
for what only the page learns: refused inputs, and the last text of a node whose result the host still has.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged, shorten_error

PAGE_SECONDS, CONSOLE_SECONDS = 0.5, 10.0  # between two texts of one phase
BEAT_SECONDS = 2.0  # without a text, after which a prediction of the model is a sign of life
SILENT_SECONDS = 5.0  # without a sign of life, after which the node says for how long it has been at a step
LAST_TEXT = "advunlearn_text"  # in a node's output to the page


class AdvUnlearnNodeError(ValueError):
    """An error whose message is for the user.

    The host shows the full name of an exception's class in front of its message, with the path of the pack's folder;
    it leaves the module out for built-in exceptions only.
    """


AdvUnlearnNodeError.__module__ = "builtins"


class Status:
    """Context in which a node runs: the text under its widgets, repeated in the console.

    At the end it says on the node what went wrong or that the user cancelled. The library's errors leave it as
    AdvUnlearnNodeError.

    Args:
        node_id: the node's id; None: the console alone.
    """

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id
        self.note = ""  # a second line under every text
        self.details = ""  # further lines on the node alone
        self.text = ""
        self.since = self.sent = time.monotonic()  # when the text changed, and when anything was sent
        self.logged = 0.0
        self.lock = threading.RLock()  # of the texts, which a thread of its own repeats
        self.ended = threading.Event()
        self.describe_stop = lambda: f"stopped: {self.text}" if self.text else "stopped"

    def __enter__(self) -> Status:
        # Imports, loading and estimating may take long in one call, which cannot report by itself.
        threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def _break_silence(self) -> None:
        """Repeat the text, with its seconds, whenever nothing has been sent for a while; until the node ends."""
        while not self.ended.wait(1.0):
            with self.lock:
                if not self.ended.is_set() and time.monotonic() - self.sent >= SILENT_SECONDS:
                    self._repeat()

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        from comfy.model_management import InterruptProcessingException

        self.ended.set()
        if error is not None:
            self.note = self.details = ""
        elif self.text:
            with self.lock:  # behind a repeated text that is being sent
                self._send(self.text)  # the last text sent may be an older one, or have the seconds of a step
        if isinstance(error, InterruptProcessingException):
            self.show(self.describe_stop())
        elif isinstance(error, AdvUnlearnError | TrainingDiverged):
            self.show(str(error))
            raise AdvUnlearnNodeError(str(error)) from error
        elif isinstance(error, Exception):
            self.show(f"{type(error).__name__}: {shorten_error(error)}")

    def show(self, text: str) -> None:
        """Show a text at once: a new phase, or the end."""
        with self.lock:
            self._change(text)
            self._send(text)
            self._log(text)

    def update(self, text: str) -> None:
        """Show a text of a phase that has many, unless the last one was shown a moment ago."""
        with self.lock:
            self._change(text)
            if self.since - self.sent >= PAGE_SECONDS:
                self._send(text)
            if self.since - self.logged >= CONSOLE_SECONDS:
                self._log(text)

    def beat(self) -> None:
        """Show that a long step is still at work; call it at every prediction of the model."""
        with self.lock:
            if time.monotonic() - self.sent >= BEAT_SECONDS:
                self._repeat()

    def _repeat(self) -> None:
        """Show the text with the seconds since it changed."""
        text = f"{self.text or 'starting'} (this step: {time.monotonic() - self.since:.0f} s)"
        self._send(text)
        if self.sent - self.logged >= CONSOLE_SECONDS:
            self._log(text)

    def _change(self, text: str) -> None:
        self.text, self.since = text, time.monotonic()

    def _log(self, text: str) -> None:
        logging.info("AdvUnlearn: %s", "; ".join(filter(None, [text, self.note])))
        self.logged = time.monotonic()

    def compose(self, text: str) -> str:
        """Return a text with the lines that stand under it on the node."""
        return "\n".join(filter(None, [text, self.note, self.details]))

    def _send(self, text: str) -> None:
        """Send a text to the page that queued the graph; without a server there is none."""
        self.sent = time.monotonic()
        server = sys.modules.get("server")  # the host imports it if it runs as one
        instance = server and getattr(server.PromptServer, "instance", None)
        if instance is not None and self.node_id is not None and instance.client_id is not None:
            instance.send_progress_text(self.compose(text), self.node_id, instance.client_id)


def with_status(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a node's `execute(cls, status, ...)`: run it in the context of its status, whose last text is kept."""

    @functools.wraps(execute)
    def wrapped(cls: Any, *args: Any, **values: Any) -> Any:
        with Status(cls.hidden.unique_id) as status:
            result = execute(cls, status, *args, **values)
            return keep_text(result, status.compose(status.text))

    return wrapped


def keep_text(result: Any, text: str) -> Any:
    """Return a node's output with its last text for the page.

    The host sends this part of an output again where it takes the output from its cache: the page then shows the text
    of that run, on a graph that was opened anew or in place of the text of another run.
    """
    if not text:
        return result
    shown = result.ui or {}
    result.ui = {**(shown if isinstance(shown, dict) else shown.as_dict()), LAST_TEXT: [text]}
    return result


def refuse(input_id: str, reason: object) -> str:
    """Return what `validate_inputs` returns for a wrong input.

    The host repeats the sentence for every argument of that method. The page keeps the one of the input whose name is
    the sentence's first word.
    """
    return f"{input_id}: {reason}"
