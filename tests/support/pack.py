"""Import modules of the node pack that need no host, as the host imports them: relative to the pack's folder."""

from __future__ import annotations

import importlib
import pathlib
import sys
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[2]
NAME = "pack_without_host"


def import_from_pack(module: str) -> ModuleType:
    """Import a module such as "nodes.guard.rules" without the packages' own __init__.py, which import the host."""
    for package, folder in ((NAME, ROOT), (f"{NAME}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(folder)]
    return importlib.import_module(f"{NAME}.{module}")
