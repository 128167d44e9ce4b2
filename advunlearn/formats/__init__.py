"""Reads and writes text encoders, and reads whole models. Strict: keys and shapes are checked before a weight is used.

`weights` opens files, `encoders` finds text encoders in them and writes them, `parts` where a model has two,
`single_file` takes Stable Diffusion 1.x checkpoints apart, `convert` and `compare` are the commands of those names.
docs/formats.md lists what is read and written, and what is refused.
"""

from .text_encoders import (
    PREFIX,
    PROJECTION,
    encoder_hash,
    load_state,
    portable_state,
    read_encoder,
    save_encoder,
    save_folder,
)
from .weights import Weights, opened, weights_file

__all__ = [
    "PREFIX",
    "PROJECTION",
    "Weights",
    "encoder_hash",
    "load_state",
    "opened",
    "portable_state",
    "read_encoder",
    "save_encoder",
    "save_folder",
    "weights_file",
]
