"""Runs inside the host's own Python, without a server: the adapter against the library on the same weights.

python inside.py HOST_FOLDER PACK_FOLDER CHECKPOINT      prints one JSON object
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
import time
from typing import Any

host_folder, pack_folder, checkpoint = sys.argv[1:4]
sys.argv = ["main.py", *os.environ.get("ADVUNLEARN_HOST_FLAGS", "--cpu").split()]
sys.path.insert(0, host_folder)

import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_management as management
import comfy.model_sampling
import comfy.sample
import comfy.sd
import torch


def load_pack() -> Any:
    """Import the pack as the host does: under its folder, as a package."""
    spec = importlib.util.spec_from_file_location(
        "pack", f"{pack_folder}/__init__.py", submodule_search_locations=[pack_folder]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes.host")


def digest(module: torch.nn.Module) -> str:
    """Return a hash of all weights."""
    bits = hashlib.blake2b()
    for weight in module.state_dict().values():
        bits.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return bits.hexdigest()


def gradient(denoiser: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a prediction and the gradient of its sum of squares with respect to the conditioning."""
    context = context.clone().requires_grad_(True)
    predicted = denoiser.noise_pred(x, t, context)
    return predicted.detach(), torch.autograd.grad(predicted.square().sum(), context)[0]


def other_arithmetic(host: Any, model: Any, clip: Any, where: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Compare gradients with checkpointing and in bfloat16 with plain ones; check that neither has side effects."""
    base = importlib.import_module("pack.advunlearn.models.denoiser")
    plain = host.make_model(model, clip, resolution=64).denoiser
    dtype, (_, expected) = plain.dtype, gradient(plain, *where)
    with base.checkpointed(plain.blocks()):
        _, again = gradient(plain, *where)
    half = host.make_model(model, clip, resolution=64, dtype=torch.bfloat16).denoiser
    half_dtype, (_, rough) = half.dtype, gradient(half, *where)
    plain.load()
    return {
        "checkpointed": torch.equal(again, expected),
        "blocks": len(plain.blocks()),
        "bfloat16": str(half_dtype),
        "cosine": torch.cosine_similarity(rough.flatten(), expected.flatten(), 0).item(),
        "rounded": not torch.equal(rough, expected),
        "as_before": plain.dtype == dtype and torch.equal(gradient(plain, *where)[1], expected),
        "own_forward": any("forward" in vars(m) for m in model.model.modules()),
    }


def patch_and_cancel(host: Any, model: Any, clip: Any, where: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Predict with a MODEL patched as by a LoRA, and with weights patched by hand; then cancel a prediction."""
    plain = host.make_model(model, clip, resolution=64).denoiser
    key = next(k for k, _ in plain.patcher.model.named_parameters() if k.endswith("attn2.to_k.weight"))
    weight = plain.patcher.model.get_parameter(key)
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.detach().float().std()
    unpatched, original = gradient(plain, *where), weight.detach().clone()
    with torch.no_grad():
        weight.add_(change)
    expected = gradient(plain, *where)
    with torch.no_grad():
        weight.copy_(original)
    other = model.clone()
    other.add_patches({key: (change,)})
    patched = host.make_model(other, clip, resolution=64).denoiser
    actual = gradient(patched, *where)
    management.interrupt_current_processing(True)
    try:
        cancelled = gradient(patched, *where) and "not raised"
    except management.InterruptProcessingException:
        cancelled = "raised"
    plain.load()  # the host removes the patches, as it does when the plain MODEL is used next
    return {
        "patch_seen": not torch.allclose(actual[0], unpatched[0], rtol=1e-3),
        "patch_exact": all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(actual, expected, strict=True)),
        "cancelled": cancelled,
    }


def compare_skipped_layers(host: Any, model: Any, clip: Any, prompts: list[str]) -> dict[str, list[float]]:
    """Return how far the library's conditioning is from the host's, and from that of all layers, by CLIP's layer."""
    whole = torch.cat([clip.encode(p) for p in prompts])
    out = {}
    for layer in (-1, -2, -12, -24, 0):
        skipped = clip.clone()
        skipped.clip_layer(layer)
        stock = torch.cat([skipped.encode(p) for p in prompts])
        hidden = host.make_model(model, skipped, resolution=64).encode(prompts)
        out[str(layer)] = [(hidden - stock).abs().max().item(), (hidden - whole).abs().max().item()]
    return out


def draw_both(model: Any, clip: Any, vae: Any, small: Any, steps: int = 10, scale: float = 3.0) -> dict[str, float]:
    """Sample from the same noise with the host's sampler and VAE and with the library's; compare the images."""
    ddim = importlib.import_module("pack.advunlearn.models.ddim").ddim_sample
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a church", ""))
    empty = torch.zeros_like(noise)
    latents = comfy.sample.sample(model, noise, steps, scale, "ddim", "ddim_uniform", positive, negative, empty, seed=0)
    there = vae.decode(latents).movedim(-1, 1).cpu()
    with torch.inference_mode(False), torch.no_grad():
        own = small.denoiser.alphas_cumprod.clone()
        # The host's last step ends without noise, the library's (like diffusers') at the noise level of timestep 0.
        small.denoiser.alphas_cumprod = torch.cat([torch.ones(1), own[1:]])
        # The host starts from sigma times the noise, without the signal part of the forward process.
        start = noise * (1 - own[1000 - 1000 // steps + 1]).sqrt()
        here = small.decode(ddim(small.denoiser, small.encode(["a church"]), small.encode([""]), start, steps, scale))
        small.denoiser.alphas_cumprod = own
    return {"apart": (there - here).abs().max().item(), "contrast": here.std().item()}


def read_embeddings(clip_l: Any, clip: Any) -> dict[str, Any]:
    """Ask two CLIPs whether they refuse embeddings; let the attack node encode an embedding that is not read."""
    attack, errors = (importlib.import_module(f"pack.{name}") for name in ("nodes.attack", "advunlearn.errors"))
    refused = clip_l.refuse_embeddings(clip)
    try:
        attack._encode_text(refused, "a embedding:vector", 1)
        message = ""
    except errors.AdvUnlearnError as error:
        message = str(error)
    return {
        "refused": [clip_l.refuses_embeddings(each) for each in (clip, refused, refused.clone())],
        "message": message,
        "plain": torch.equal(attack._encode_text(refused, "a dog", 0)[0][0], clip.encode("a dog")),
    }


def listen_to_silence() -> list[str]:
    """Return what the console says while a node reports nothing; its times are shorter than usual."""
    status = importlib.import_module("pack.nodes.status")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    status.SILENT_SECONDS = status.CONSOLE_SECONDS = 0.5
    with status.Status(None) as shown:
        time.sleep(1.3)
        shown.show("estimating")
        time.sleep(1.3)
    time.sleep(1.3)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return [text for text in said if text.startswith("AdvUnlearn")]


def compare_chunks(adapted: Any, clip: Any) -> dict[str, Any]:
    """Return how far the library's conditioning of long prompts is from the host's, and the host's chunks of each."""
    long = ["dog " * 75 + "church", "dog " * 200 + "church", "a dog"]  # two chunks, three, one
    in_chunks = adapted.fit_prompts(long).encode(long)  # (3, 6 * 77, 768): six chunks, for all of them
    stock = [clip.encode(p) for p in long]
    repeated = torch.cat([each.repeat(1, 6 * 77 // each.shape[1], 1) for each in stock])
    return {
        "stock_chunks": [each.shape[1] // 77 for each in stock],
        "stock_encode_long": (in_chunks - repeated).abs().max().item(),
    }


def as_v_prediction(model: Any) -> Any:
    """Return a clone of a MODEL whose outputs are read as v."""

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return patched


def compare_denoisers(
    library: Any, host: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor
) -> dict[str, float]:
    """Return how far predictions and gradients of the host are from the library's, for its conditioning (B, 77, 192).

    In the host's checkpoint four channels stand for one: their gradients add up to its gradient.
    """
    p, g = gradient(library, x, t, context)
    q, h = gradient(host, x, t, context.repeat_interleave(4, -1))
    folded = h.view(2, 77, 192, 4).sum(-1)
    return {
        "prediction": (p - q).abs().max().item(),
        "scale": p.abs().mean().item(),
        "gradient": ((g - folded).abs().max() / g.abs().max()).item(),
    }


def compare_patched(clip_l: Any, clip: Any, generator: torch.Generator) -> dict[str, float]:
    """Return how far replaced encoders, at strengths 1 and 0.5, are from what they are to be.

    Before and after the host has loaded the patched weights.
    """
    base = clip_l.read_state(clip)
    robust = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
    patched, half = (clip_l.replace_encoder(clip, robust, s, "test") for s in (1.0, 0.5))
    distance = {}
    for when in ("before", "after"):
        state, middle = clip_l.read_state(patched), clip_l.read_state(half)
        distance[when] = max(
            max((state[k] - robust[k]).abs().max().item() for k in base),
            max((middle[k] - (base[k] + robust[k]) / 2).abs().max().item() for k in base),
        )
        patched.encode("a church")
        half.encode("a church")
    return distance


def main() -> dict[str, Any]:
    """Measure."""
    known, start = set(sys.modules), time.perf_counter()
    host = load_pack()
    out: dict[str, Any] = {"import_seconds": time.perf_counter() - start}
    heavy = ("diffusers", "transformers", "accelerate", "pack.advunlearn.training.trainer")
    out["heavy"] = [m for m in heavy if m in sys.modules and m not in known]
    clip_l = importlib.import_module("pack.nodes.clip_l")
    library = importlib.import_module("pack.advunlearn.models.loading")
    with torch.inference_mode():  # as every node runs
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            checkpoint, output_vae=True, output_clip=True, embedding_directory=[host_folder]
        )
        before = digest(model.model), digest(clip.cond_stage_model)
        small = library.load("miniature")
        out["drawn"] = draw_both(model, clip, vae, small)
        with host.enable_gradients():
            small = library.load("miniature")
            generator = torch.Generator().manual_seed(0)
            x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([300, 700])
            prompts = ["a church", "a dog, ink style"]
            context = small.encode(prompts)
            adapted = host.make_model(model, clip, resolution=64)
            hidden = adapted.encode(prompts)
            out["encoder"] = (hidden - context.repeat_interleave(4, -1)).abs().max().item()
            stock = torch.cat([clip.encode(p) for p in prompts])
            out["stock_encode"] = (hidden - stock).abs().max().item()
            out["clip_skip"] = compare_skipped_layers(host, model, clip, prompts)
            out |= compare_chunks(adapted, clip)
            for kind in ("eps", "v"):
                if kind == "v":
                    small.denoiser.prediction_type = "v_prediction"
                    adapted = host.make_model(as_v_prediction(model), clip, resolution=64)
                out[kind] = compare_denoisers(small.denoiser, adapted.denoiser, x, t, context)
            out |= other_arithmetic(host, model, clip, (x, t, hidden))
            out |= patch_and_cancel(host, model, clip, (x, t, hidden))
            out["patched"] = compare_patched(clip_l, clip, generator)
        clip.encode("a church")  # the host removes the patches from the weights that the clones share
        loader = importlib.import_module("pack.nodes.load_encoder").LoadRobustCLIP
        prints = [loader.fingerprint_inputs(encoder) for encoder in (None, None, "gone", "gone")]
        out["loads_again"] = [prints[0] != prints[1], prints[2] != prints[3]]  # by a link, by a name
        out["silence"] = listen_to_silence()
        out["embeddings"] = read_embeddings(clip_l, clip)
        out["untouched"] = before == (digest(model.model), digest(clip.cond_stage_model))
    return out


if __name__ == "__main__":
    print(json.dumps(main()))
