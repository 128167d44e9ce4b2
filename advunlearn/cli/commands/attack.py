"""`advunlearn attack`: search for prompts that bring the concept back."""

from __future__ import annotations

from argparse import Namespace

from ...attacks.registry import ATTACKS
from ...evaluation.evaluator import Subject
from ...files import write_atomic
from ...formats.tensors import write_safetensors
from ...models.encoder_files import embedding_file
from ...reporting import images
from ...reporting.report import write_json
from ..folder_lock import lock_folder
from ..inputs import load_trained_encoder, load_trained_unet, make_out_folder
from .evaluate import make_evaluator, make_progress
from .output import print_result

SHOWN_PROMPTS = 10  # successful prompts printed on the terminal; all are in attack.json


def run(args: Namespace) -> None:
    """Attack one text encoder or UNet; write the counts, the images, and the embeddings of a continuous attack."""
    model, evaluator = make_evaluator(args)
    subject = Subject(load_trained_encoder(args.encoder, model), load_trained_unet(args.unet, model))
    folder = make_out_folder(args)
    with lock_folder(folder):
        bar, evaluator.on_progress = make_progress(args.method)
        measured = evaluator.measure(subject, (args.method,), utility=False)
        bar.close()
        settings = {"concept": evaluator.concept.to_dict(), "config": evaluator.config.to_dict()}
        result = measured.to_row() | settings | evaluator.describe()
        write_json(folder / "attack.json", result)
        for name, pictures in measured.images.items():
            write_atomic(folder / f"{name}.png", images.png(images.grid(pictures, 4), 2))
        embedding = measured.embeddings.get(args.method)
        if embedding is not None and not ATTACKS[args.method].discrete:
            tensors = embedding_file(embedding, model.text_encoder)
            write_safetensors(folder / f"{args.method}.safetensors", tensors, {"format": "pt"})
    counts = measured.attacks[args.method]
    prompts = [row["prompt"] for row in measured.prompts.get(args.method, [])[:SHOWN_PROMPTS]]
    text = (
        f"{args.method}: {counts['sum']['success']} of {counts['sum']['total']} (without attack "
        f"{counts['without_attack']['success']}); wrote {folder / 'attack.json'}"
    )
    print_result(args, result, "\n  ".join([text, *prompts, *(f"WARNING: {each}" for each in measured.warnings)]))
