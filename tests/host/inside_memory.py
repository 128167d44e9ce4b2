"""Runs inside the host's own Python, without a server: the estimate against a run, and runs without an estimate.

python inside_memory.py HOST_FOLDER PACK_FOLDER CHECKPOINT      prints one JSON object
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from inside import checkpoint, comfy, load_pack, torch

OPTIONS = {
    "attack": ("AdversaryConfig", {"steps": 2, "restarts": 2}),
    "train": ("TrainConfig", {"iterations": 2, "warmup": 0, "batch": 4, "retain_batch": 2}),
    "bank": ("BankConfig", {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2}),
    "concept": ("ConceptConfig", {}),
}


def main() -> dict[str, Any]:
    """Measure."""
    host = load_pack()
    memory = importlib.import_module("pack.nodes.memory")
    config = importlib.import_module("pack.advunlearn.config.training")
    fake_tensors = importlib.import_module("pack.advunlearn.memory.fake_tensors")
    trainer = importlib.import_module("pack.advunlearn.training.trainer")
    settings = {name: getattr(config, kind)(**values) for name, (kind, values) in OPTIONS.items()}
    out: dict[str, Any] = {}
    with torch.inference_mode():  # as every node runs
        model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=True)
        with host.enable_gradients():
            adapted = host.make_model(model, clip, resolution=128)
            out["line"] = memory.check(adapted, ["a dog"], **settings)
            looked = memory._Check(adapted, ["a dog"])
            out["predicted"] = looked.measure(memory.Plan(resolution=128, **settings)).peak
            with fake_tensors.LiveMemory() as counter:
                for part in (adapted.text_encoder, adapted.denoiser.patcher.model):
                    for tensor in (*part.parameters(), *part.buffers()):
                        counter.follow(tensor)
                trainer.train(
                    adapted,
                    retain_prompts=["a dog"],
                    **{k: v for k, v in settings.items() if k != "train"},
                    config=settings["train"],
                )
            out["counted"] = max(counter.peaks.values())
            for name, error in (
                ("broken", TypeError("no fake\nkernel")),
                ("cancelled", memory.host.InterruptProcessingException()),
            ):

                def fail(*_: Any, error: Exception = error, **__: Any) -> None:
                    raise error

                memory.estimate = fail
                try:
                    out[name] = memory.check(adapted, ["a dog"], **settings)
                except memory.host.InterruptProcessingException:
                    out[name] = "raised"
    return out


if __name__ == "__main__":
    print(json.dumps(main()))
