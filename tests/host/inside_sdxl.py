"""Runs inside the host's own Python: SDXL's MODEL and CLIP against the library on the same weights.

python inside_sdxl.py HOST_FOLDER PACK_FOLDER CHECKPOINT      prints one JSON object

The size conditioning and the pooled vector have no effect in the miniature, so the layer that adds them gets weights.
"""

from __future__ import annotations

import importlib
import itertools
import json
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import inside  # first: it finds the host

# isort: split
import comfy.model_management as management
import comfy.model_sampling
import comfy.sd
import folder_paths
import torch
from comfy.ldm.modules.attention import SpatialTransformer

PROMPTS = ["a church", "a dog, ink style"]
LABEL = "diffusion_model.label_emb.0."


def use_pooled(library: Any, model: Any) -> None:
    """Give the layers of the pooled vector and the sizes random weights, the same in the host and in the library."""
    generator = torch.Generator().manual_seed(3)
    for number, place in ((1, "0"), (2, "2")):
        layer = library.unet.get_submodule(f"add_embedding.linear_{number}")
        weight = torch.randn(layer.weight.shape, generator=generator).half() * 0.02
        layer.weight.data.copy_(weight)
        with torch.inference_mode():  # the host's weights are inference tensors
            model.model.get_submodule(LABEL + place).weight.data.copy_(weight)


def differentiate(model: Any, denoiser: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the gradient (2, 77, 768 + 1280) of a prediction's sum of squares, through both encoders of a model."""
    text_encoder = importlib.import_module("pack.advunlearn.models.text_encoder")
    tokenizer = importlib.import_module("pack.advunlearn.models.tokenizer")
    ids = tokenizer.tokenize(model.tokenizer, PROMPTS)
    embeddings = text_encoder.embed(model.text_encoder, ids).requires_grad_(True)
    context = text_encoder.encode(model.text_encoder, ids, embeddings, slice(0, ids.shape[1]))
    return torch.autograd.grad(denoiser.noise_pred(x, t, context).square().sum(), embeddings)[0]


def compare_parts(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Return how far gradients are apart in the columns of each encoder, relative to the largest there."""
    parts = {"clip_l": slice(0, 768), "clip_g": slice(768, None)}
    return {
        name: ((ours - theirs)[..., part].abs().max() / ours[..., part].abs().max()).item()
        for name, part in parts.items()
    }


def compare(ours: Any, theirs: Any, where: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Return how far predictions and gradients are apart, relative to the largest."""
    (p, g), (q, h) = (inside.gradient(denoiser, *where) for denoiser in (ours, theirs))
    return {
        "prediction": ((p - q).abs().max() / p.abs().max()).item(),
        "gradient": ((g - h).abs().max() / g.abs().max()).item(),
        "pooled_gradient": g[:, -1].abs().max().item(),
    }


def as_v(model: Any, zero_snr: bool) -> Any:
    """Return a clone of a MODEL that predicts v, as the host makes one of a checkpoint with `v_pred` and `ztsnr`."""

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    patched = model.clone()
    settings = {**model.model.model_config.sampling_settings, "zsnr": zero_snr}
    patched.add_object_patch("model_sampling", Sampling(SimpleNamespace(sampling_settings=settings)))
    return patched


def with_lora(model: Any, clip: Any) -> tuple[Any, Any]:
    """Return clones with a LoRA on the UNet and on both encoders."""
    generator = torch.Generator().manual_seed(4)
    file = {}
    names = (
        "lora_unet_input_blocks_5_1_transformer_blocks_0_attn2_to_k",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    )
    for name, (rows, columns) in zip(names, ((640, 2048), (3072, 768), (5120, 1280)), strict=True):
        file[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
        file[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.1
        file[f"{name}.alpha"] = torch.tensor(4.0)
    return comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)


def encode(clip: Any) -> list[torch.Tensor]:
    """Return the host's conditioning (B, 77, 2048) and pooled vectors (B, 1280)."""
    pairs = [clip.encode_from_tokens(clip.tokenize(p), return_pooled=True)[:2] for p in PROMPTS]
    return [torch.cat(each) for each in zip(*pairs, strict=True)]


def distance(adapted: Any, clip: Any) -> float:
    """Return how far the adapter's conditioning is from the host's, pooled vectors included."""
    hidden, pooled = encode(clip)
    own = adapted.encode(PROMPTS)
    return max((own[:, :-1] - hidden).abs().max().item(), (own[:, -1, :1280] - pooled).abs().max().item())


def replace_both(parts: Any, clip: Any) -> dict[str, float]:
    """Replace both encoders at a strength of their own; return how far each is from what it is to be."""
    strengths = {"clip_l": 0.5, "clip_g": 1.0}
    robust = {name: {k: v.half() * 2 for k, v in parts.clip_l.read_state(clip, name).items()} for name in strengths}
    replaced = parts.replace_parts(clip, robust, "test", strengths)
    out = {}
    for name, strength in strengths.items():
        actual, factor = parts.clip_l.read_state(replaced, name), (1 + strength) / 2  # of twice the weights
        out[name] = max((actual[k] - factor * v.float()).abs().max().item() for k, v in robust[name].items())
    return out


def compare_with_library(
    host: Any, model: Any, clip: Any, library: Any, where: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, Any]:
    """Compare predictions and gradients on the same weights, of noise, of v, and of v with zero terminal SNR.

    The library's encoders, 3 GB, are let go of before the host's are read.
    """
    models = {"eps": model, "v": as_v(model, False), "ztsnr": as_v(model, True)}
    denoisers = {name: host.HostDenoiser(each, 8) for name, each in models.items()}
    denoiser, expected = library.denoiser, {}
    for name in models:
        select(denoiser, denoisers[name], name)
        expected[name] = differentiate(library, denoiser, *where)
    context = library.encode(PROMPTS)
    library.text_encoder.clip_l = library.text_encoder.clip_g = None
    adapted = host.make_model(model, clip)
    out: dict[str, Any] = {"library_encode": (adapted.encode(PROMPTS) - context).abs().max().item()}
    for name, ours in denoisers.items():
        ours.load()
        select(denoiser, ours, name)
        out[name] = compare(denoiser, ours, (*where, context)) | {"last_alpha": ours.alphas_cumprod[-1].item()}
        out[name]["parts"] = compare_parts(expected[name], differentiate(adapted, ours, *where))
    return out


def select(library: Any, denoiser: Any, kind: str) -> None:
    """Let the library's denoiser predict what the host's does, on the same schedule."""
    library.prediction_type = "epsilon" if kind == "eps" else "v_prediction"
    library.alphas_cumprod = denoiser.alphas_cumprod


def use_lora_and_cancel(
    host: Any, model: Any, clip: Any, where: tuple[torch.Tensor, torch.Tensor], plain: tuple[Any, torch.Tensor]
) -> dict[str, Any]:
    """Predict with LoRAs on MODEL and CLIP, then cancel a prediction. `plain` is a prediction and the conditioning."""
    prediction, context = plain
    model_lora, clip_lora = with_lora(model, clip)
    patched = host.make_model(model_lora, clip_lora)
    out = {
        "encode_lora": distance(patched, clip_lora),
        "lora_changes": (patched.encode(PROMPTS) - context).abs().max().item(),
        "lora_seen": not torch.allclose(inside.gradient(patched.denoiser, *where, context)[0], prediction, rtol=1e-3),
    }
    management.interrupt_current_processing(True)
    try:
        cancelled = inside.gradient(patched.denoiser, *where, context) and "not raised"
    except management.InterruptProcessingException:
        cancelled = "raised"
    return out | {"cancelled": str(cancelled)}


def act_in_training(model: Any, act: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a clone of a MODEL with an attention patch, as other packs set them, that acts in the second iteration.

    `act` takes and returns the UNet's activations (B, tokens, channels).
    """
    transformers = (module for module in model.model.modules() if isinstance(module, SpatialTransformer))
    blocks = sum(len(module.transformer_blocks) for module in transformers)  # calls of one prediction
    calls = itertools.count()

    def patch(n: torch.Tensor, context: Any, value: Any, _: Any) -> tuple[Any, Any, Any]:
        # Not in the estimate of the memory, whose tensors are fake, nor while the bank is filled.
        is_training = type(context) is torch.Tensor and context.requires_grad
        return act(n) if is_training and next(calls) >= blocks else n, context, value

    patched = model.clone()
    patched.set_model_attn2_patch(patch)
    return patched


def train_with_node(model: Any, clip: Any, **training: Any) -> str:
    """Run the training node, which is to be stopped; return the class of what it raises, and the message."""
    node = importlib.import_module("pack.nodes.train").TrainAdvUnlearnEncoder
    alone = type("Alone", (node,), {"hidden": SimpleNamespace(unique_id=None, prompt=None)})  # without a graph
    train = {"mode": "esd", "batch": 1, "num_layers": 1, "retain_weight": 0.0} | training
    values = {"concept": "church", "kind": "object", "preset": "custom", "iterations": 3, "seed": 0}
    values |= {"retain_set": "none", "retain_prompts": "", "resolution": 0, "memory": "fast"}
    values |= {"save_name": "stopped", "resume": False, "bank": {"bank": {"trajectories": 1, "sampling_steps": 2}}}
    try:
        alone.execute(model=model, clip=clip, training={"train": train, "node": {"sample_every": 0}}, **values)
    except (Exception, management.InterruptProcessingException) as error:
        return f"{type(error).__name__}: {error}"
    return "not stopped"


def fill_memory(n: torch.Tensor) -> torch.Tensor:
    """Fail as torch does on a full GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def overflow(n: torch.Tensor) -> torch.Tensor:
    """Return what is left of activations too large for their dtype."""
    return n * torch.nan


def press_cancel(n: torch.Tensor) -> torch.Tensor:
    """Cancel as the page does; the next prediction raises."""
    management.interrupt_current_processing(True)
    return n


def stop_training(model: Any, clip: Any, read: Callable[[], tuple[str, str]]) -> dict[str, Any]:
    """Stop the training node in mid-run in three ways; return what each raised, and whether `read` is as before."""
    ways = {"error": fill_memory, "divergence": overflow, "cancel": press_cancel}
    before, out = read(), {}
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        for name, act in ways.items():
            # The last good weights of a diverged run are saved: those of CLIP-G have 3 GB.
            training = {"encoders": "clip_l"} if name == "divergence" else {}
            said = train_with_node(act_in_training(model, act), clip, **training)
            out[name] = {"raised": said, "unchanged": read() == before}
    return out


def main() -> dict[str, Any]:
    """Measure."""
    host = inside.load_pack()
    parts = importlib.import_module("pack.nodes.text_encoders")
    library = importlib.import_module("pack.advunlearn.models.loading").load(inside.checkpoint)
    generator = torch.Generator().manual_seed(0)
    where = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([300, 700])
    with torch.inference_mode():  # as every node runs
        model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(inside.checkpoint, output_vae=True, output_clip=True)
        out: dict[str, Any] = {"model": (type(model.model).__name__, type(model.model.model_config).__name__)}
        with host.enable_gradients():
            use_pooled(library.denoiser, model)
            before = inside.digest(model.model), inside.digest(clip.cond_stage_model)
            out |= compare_with_library(host, model, clip, library, where)
            del library
            adapted = host.make_model(model, clip)
            out["resolution"], out["encode"] = adapted.resolution, distance(adapted, clip)
            context = adapted.encode(PROMPTS)
            plain = inside.gradient(adapted.denoiser, *where, context)[0], context
            del adapted
            out |= use_lora_and_cancel(host, model, clip, where, plain)
            out["replaced"] = replace_both(parts, clip)
        model_again = host.HostDenoiser(model, 8)
        model_again.load()  # the host removes the patches from the weights that the clones share
        clip.encode("a church")
        del model_again

        def read() -> tuple[str, str]:
            return inside.digest(model.model), inside.digest(clip.cond_stage_model)

        out["untouched"] = before == read()
        out["stopped"] = stop_training(model, clip, read)
    return out


if __name__ == "__main__":
    print(json.dumps(main()))
