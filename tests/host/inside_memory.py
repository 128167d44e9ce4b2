"""Runs inside the host's own Python, without a server: the estimate against a run, and runs without an estimate.

python inside_memory.py HOST_FOLDER PACK_FOLDER CHECKPOINT      prints one JSON object
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from inside import checkpoint, comfy, load_pack, torch

OPTIONS = {
    "train": {"iterations": 2, "warmup": 0, "batch": 4, "retain_batch": 2},
    "attack": {"steps": 1, "restarts": 2},
    "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2},
}


def count_peak(model: Any, run: Any) -> int:
    """Train and return the most bytes that its tensors held at a time."""
    fake_tensors = importlib.import_module("pack.advunlearn.memory.fake_tensors")
    trainer = importlib.import_module("pack.advunlearn.training.trainer")
    with fake_tensors.LiveMemory() as counter:
        for part in (model.text_encoder, model.denoiser.patcher.model):
            for tensor in (*part.parameters(), *part.buffers()):
                counter.follow(tensor)
        trainer.train(model, run, ["a dog"])
    return max(counter.peaks.values())


def main() -> dict[str, Any]:
    """Measure."""
    host = load_pack()
    memory = importlib.import_module("pack.nodes.memory")
    run = importlib.import_module("pack.advunlearn.config.training").RunConfig.from_dict(OPTIONS)
    out: dict[str, Any] = {}
    with torch.inference_mode():  # as every node runs
        model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=True)
        with host.enable_gradients():
            adapted = host.make_model(model, clip, resolution=128)
            out["device"] = str(adapted.denoiser.device)
            measure, estimates = memory._Check._measure, []
            memory._Check._measure = lambda check, plan: estimates.append(measure(check, plan)) or estimates[-1]
            out["line"] = memory.fit_run(adapted, run, ["a dog"])[1]
            out["predicted"] = estimates[0].peak
            out["counted"] = count_peak(adapted, run)
            for name, error in (
                ("broken", TypeError("no fake\nkernel")),
                ("cancelled", memory.host.InterruptProcessingException()),
            ):

                def fail(*_: Any, error: Exception = error, **__: Any) -> None:
                    raise error

                memory.Estimator.__call__ = fail
                try:
                    out[name] = memory.fit_run(adapted, run, ["a dog"])[1]
                except memory.host.InterruptProcessingException:
                    out[name] = "raised"
    return out


if __name__ == "__main__":
    print(json.dumps(main()))
