"""`advunlearn fetch`: download a text encoder released by the authors of AdvUnlearn."""

from __future__ import annotations

from argparse import Namespace

from ...formats import released
from ..progress_bar import ProgressBar
from .output import print_result


def run(args: Namespace) -> None:
    """Download an encoder."""
    bar = ProgressBar(args.name)
    try:
        path = released.fetch_encoder(args.name, args.to, lambda done, total: bar.update("bytes", done, total))
    finally:
        bar.close()
    print_result(
        args, {"file": str(path)}, f"{path}: pass it to --encoder, or move its folder to ComfyUI's models/text_encoders"
    )
