"""The shipped translations against the nodes' own texts."""

from __future__ import annotations

import json
import runpy

import pytest

from .server import PACK, Server

pytestmark = pytest.mark.host
MAKE = runpy.run_path(str(PACK / "tools" / "locales" / "make.py"))


def test_english_is_what_the_nodes_say(server: Server) -> None:
    shipped = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert shipped == MAKE["definitions"](server.get("object_info"))


def test_the_host_serves_every_language(server: Server) -> None:
    served = server.get("i18n")
    for language in ("en", "zh"):
        assert served[language]["nodeDefs"]["AdvUnlearnTrain"]["inputs"]["concept"]["tooltip"]
