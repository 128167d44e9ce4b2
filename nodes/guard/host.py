"""The guard in the host: see every submitted graph, and refuse those that the rules do not let through."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import folder_paths
from comfy import cli_args
from comfy_api.latest import io

from ...advunlearn.errors import AdvUnlearnError
from .. import folders
from ..widgets import schema
from .rules import GraphRefused, NodeKind, guard_graph
from .settings import ENCODER_ID, GuardConfig, find_settings, read_settings

logger = logging.getLogger("AdvUnlearn guard")
PACK = pathlib.Path(__file__).parents[2]
REFUSAL = "AdvUnlearnRefusal"
Request = dict[str, Any]
Handler = Callable[[Any], Request]


class Refusal(io.ComfyNode):
    """The only node of a graph that was refused: its validation fails with the reason."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=REFUSAL,
            display_name="Refused by the server",
            description="Takes the place of a graph that the server does not accept. Its validation says why.",
            is_output_node=True,
            is_dev_only=True,
            inputs=[io.String.Input("reason", tooltip="why the graph was refused")],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, reason: str) -> str:
        """Return the reason, which the host answers with status 400."""
        return reason

    @classmethod
    def execute(cls, reason: str) -> io.NodeOutput:
        raise AdvUnlearnError(reason)


def install() -> list[type[io.ComfyNode]]:
    """Turn the guard on if the operator has; return the nodes that it needs.

    Settings that cannot be used do not turn it off: then every graph is refused.
    """
    path = find_settings(PACK)
    if path is None:
        return []
    try:
        require_read_only_models()
        config = read_settings(path)
        drop_writable_folders()
        encoder = folders.find_encoder(config.encoder)
    except Exception as error:  # an exception here would cost the host this pack, and with it the guard
        logger.error("every graph is refused: %s", error)
        register(make_handler(None, f"the guard's settings cannot be used: {error}"))
        return [Refusal]
    register(make_handler(config))
    logger.info("on, with %s: all text goes through %s", path, encoder)
    return [Refusal]


def make_handler(config: GuardConfig | None, fault: str = "") -> Handler:
    """Return the function that the host calls with every submitted graph; without settings it refuses all.

    It never raises: the host would log the exception and run the graph as it was submitted.
    """

    def handle(request: Any) -> Request:
        if config is None:
            return refuse(request, fault)
        try:
            graph, changes = guard_graph(request.get("prompt"), find_kind, config)
        except GraphRefused as error:
            return refuse(request, str(error), error.node_id)
        except Exception as error:  # anything else that the graph may cause must not let it through either
            logger.exception("a graph could not be checked")
            return refuse(request, f"the graph could not be checked ({type(error).__name__}: {error})")
        for change in changes:
            logger.info(change)
        return {**request, "prompt": graph}

    return handle


def refuse(request: Any, reason: str, node_id: str = "") -> Request:
    """Return a request whose graph only fails, at the node that is to blame if there is one."""
    logger.warning("refused: %s", reason)
    kept = {name: request[name] for name in ("client_id", "prompt_id") if isinstance(request, dict) and name in request}
    return {**kept, "prompt": {node_id or ENCODER_ID: {"class_type": REFUSAL, "inputs": {"reason": reason}}}}


def find_kind(class_type: str) -> NodeKind | None:
    """Return what the host says about a node class; None if it has none of this name."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if node is None:
        return None
    inputs = node.INPUT_TYPES()
    # The host notes where it loaded a class from, except for those of its own module `nodes`.
    module = getattr(node, "RELATIVE_PYTHON_MODULE", node.__module__)
    return NodeKind(
        inputs={
            name: describe_type(options[0])
            for part in ("required", "optional")
            for name, options in inputs.get(part, {}).items()
        },
        outputs=tuple(describe_type(output) for output in node.RETURN_TYPES),
        builtin=module == "nodes" or module.startswith("comfy_extras."),
        is_output=bool(getattr(node, "OUTPUT_NODE", False)),
    )


def describe_type(kind: Any) -> str:
    """Return the name of an input's or an output's type; a list of choices is a COMBO."""
    return kind if isinstance(kind, str) else io.Combo.io_type


def require_read_only_models() -> None:
    """Raise AdvUnlearnError if the host takes uploads into the folders of models, with which it would load them."""
    if getattr(cli_args.args, "enable_assets", False):
        raise AdvUnlearnError(
            "ComfyUI was started with --enable-assets, so that a user can upload models; start it without"
        )


def drop_writable_folders() -> None:
    """Let the host load no models from folders into which the page can write: a user could upload an encoder there."""
    writable = [
        pathlib.Path(folder).resolve()
        for folder in (
            folder_paths.get_output_directory(),
            folder_paths.get_input_directory(),
            folder_paths.get_temp_directory(),
            folder_paths.get_user_directory(),
        )
    ]
    for name, (paths, extensions) in folder_paths.folder_names_and_paths.items():
        kept = [path for path in paths if not any(pathlib.Path(path).resolve().is_relative_to(w) for w in writable)]
        for path in set(paths) - set(kept):
            logger.info("no %s are loaded from %s, into which the page can write", name, path)
        folder_paths.folder_names_and_paths[name] = (kept, extensions)


def register(handler: Handler) -> None:
    """Let the host call the handler with every graph, behind the handlers of other packs, whenever they register them.

    The host's own list of handlers has an order, and a pack may append to it when the server starts.
    """
    import server

    instance = getattr(server.PromptServer, "instance", None)  # there is none where the host runs without a server
    if instance is None:
        return
    trigger = instance.trigger_on_prompt
    instance.trigger_on_prompt = lambda request: handler(trigger(request))

    async def drop_again(_: Any) -> None:
        drop_writable_folders()  # a pack that was loaded later may have added some

    instance.app.on_startup.append(drop_again)
