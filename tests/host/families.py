"""Runs inside the host's own Python: a robust CLIP-L in the CLIP of every family of models that has one.

python families.py HOST_FOLDER PACK_FOLDER -      prints one JSON object

The host's loader makes each CLIP of the host's classes. CLIP-L has its full size everywhere, CLIP-G in SDXL. Otherwise
CLIP-G, T5-XXL, Llama 3 and Qwen 2.5 have fewer or narrower layers, by an option of the host: in full size they take up
to 16 GB, and nothing that is measured here depends on it. All weights are random. Llama's tokenizer, a file of 9 MB
that some copies of the host lack, and Qwen's vision encoder are replaced. A host that is older than a family leaves it
out.
"""

from __future__ import annotations

import gc
import importlib
import json
from typing import Any

import inside  # first: it finds the host

# isort: split
import comfy.lora
import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.qwen_vl
import comfy.text_encoders.sd2_clip
import torch

State = dict[str, torch.Tensor]
SMALL_T5 = {"num_layers": 1, "d_ff": 64, "num_heads": 2}
SMALL_LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
# The host's name of the family, the number of files it is loaded from, and the reduced sizes.
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sd1": ("STABLE_DIFFUSION", 1, {}),
    "sdxl": ("STABLE_DIFFUSION", 2, {}),
    "sd3": ("SD3", 3, {"t5xxl_model_config": SMALL_T5, "clip_g_model_config": {"num_hidden_layers": 3}}),
    "flux": ("FLUX", 2, {"t5xxl_model_config": SMALL_T5}),
    "hunyuan_video": ("HUNYUAN_VIDEO", 2, {"llama_model_config": SMALL_LLAMA}),
    "hidream": (
        "HIDREAM",
        4,
        {
            "t5xxl_model_config": SMALL_T5,
            "clip_g_model_config": {"num_hidden_layers": 3},
            "llama_model_config": SMALL_LLAMA,
        },
    ),
    "kandinsky5": ("KANDINSKY5", 2, {"qwen25_7b_model_config": SMALL_LLAMA}),
}
PROMPT, LORA_STRENGTH, RANK = "a church at (dawn:1.2)", 0.5, 4


class SomeTokens:
    """A tokenizer that returns the same few tokens for every text."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def tokenize_with_weights(self, *_: Any, **__: Any) -> list[list[tuple[int, float]]]:
        """Return one row of (token, weight)."""
        return [[(128000 + k, 1.0) for k in range(8)]]


def fill(module: torch.nn.Module, seed: int) -> None:
    """Fill all weights with random values; large weights repeat a block."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(1_000_003, generator=generator) * 0.02
    for name, weight in module.named_parameters():
        values = block.repeat(weight.numel() // len(block) + 1)[: weight.numel()].view_as(weight)
        norm = weight.ndim == 1 and name.endswith("weight")
        weight.data.copy_(values + 1 if norm else values)


def make(family: str, encoder: State) -> Any:
    """Return a CLIP of a family with these weights as its CLIP-L."""
    kind, files, options = FAMILIES[family]
    # The host leaves a projection that is missing uninitialised, which may be NaN and unequal to itself.
    states = [encoder | {"text_projection.weight": torch.eye(768)}, *({} for _ in range(files - 1))]
    clip = comfy.sd.load_text_encoder_state_dicts(
        states, clip_type=comfy.sd.CLIPType[kind], model_options=dict(options)
    )
    clip_l = {k: v.clone() for k, v in clip.cond_stage_model.clip_l.state_dict().items()}
    fill(clip.cond_stage_model, 1)
    clip.cond_stage_model.clip_l.load_state_dict(clip_l)
    return clip


def digests(clip: Any) -> dict[str, float]:
    """Return the sum of each weight that the host computes with."""
    clip.load_model()
    state = clip.cond_stage_model.state_dict()
    return {k: v.float().sum(dtype=torch.float64).item() for k, v in state.items()}


def clip_l(clip: Any) -> State:
    """Return the weights of CLIP-L that the host computes with."""
    clip.load_model()
    state = clip.cond_stage_model.clip_l.transformer.state_dict()
    return {k: v.clone() for k, v in state.items() if k.startswith("text_model.")}


def encode(clip: Any) -> list[torch.Tensor]:
    """Return the conditioning and the pooled vector."""
    return list(clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)[:2])


def equal(a: State, b: State) -> bool:
    """Return whether two encoders are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k].to(a[k].dtype)) for k in a)


def is_close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Return whether encodings agree: weights loaded in different ways may differ in the last bits of products."""
    return all(torch.allclose(x.float(), y.float(), rtol=1e-4, atol=1e-4) for x, y in zip(a, b, strict=True))


def with_lora(clip: Any, robust: State) -> bool:
    """Stack a LoRA on a robust CLIP as a LoRA loader does; return whether the weights equal the sum made by hand."""
    names = {v: k for k, v in comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).items()}
    generator, file, made = torch.Generator().manual_seed(3), {}, dict(robust)
    for layer in range(12):
        for part in ("self_attn.q_proj", "mlp.fc1"):
            key = f"text_model.encoder.layers.{layer}.{part}.weight"
            rows, columns = robust[key].shape
            up = torch.randn(rows, RANK, generator=generator) * 0.1
            down = torch.randn(RANK, columns, generator=generator) * 0.1
            name = names["clip_l.transformer." + key]
            file |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(4.0)}
            made[key] = (robust[key].float() + LORA_STRENGTH * (up @ down)).to(robust[key].dtype)
    _, stacked = comfy.sd.load_lora_for_models(None, clip, file, 0.0, LORA_STRENGTH)
    actual = clip_l(stacked)
    changed = sum(not torch.equal(actual[k], robust[k]) for k in robust)
    return changed == 24 and equal(actual, made)


def measure(family: str, swap: Any, base: State, robust: State) -> dict[str, Any]:
    """Put the robust encoder into a family's CLIP; return what changed and what did not."""
    clip = make(family, base)
    before, before_text = digests(clip), encode(clip)
    out: dict[str, Any] = {"parts": [n for n, _ in clip.cond_stage_model.named_children()]}
    clones = {s: swap.replace_encoder(clip, robust, s, "test") for s in (0.0, 0.5, 1.0)}
    encoders = {s: clip_l(clone) for s, clone in clones.items()}
    name = swap.find_lora_prefix(clip) + "text_model_encoder_layers_0_mlp_fc1"
    out["lora_name"] = name, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).get(name)
    out["zero_is_base"], out["one_is_robust"] = equal(encoders[0.0], base), equal(encoders[1.0], robust)
    out["half_is_neither"] = not equal(encoders[0.5], base) and not equal(encoders[0.5], robust)
    out["zero_encodes_as_base"] = is_close(encode(clones[0.0]), before_text)
    after = digests(clones[1.0])
    changed = {k for k in before if before[k] != after[k]}
    out["changed"], out["only_clip_l"] = len(changed), all(k.startswith("clip_l.transformer.") for k in changed)
    text = encode(clones[1.0])
    out["lora"] = with_lora(clones[1.0], encoders[1.0])
    out["untouched"] = digests(clip) == before and all(map(torch.equal, encode(clip), before_text))
    del clip, clones
    gc.collect()
    direct = encode(make(family, robust))
    out["encodes_as_made_from_robust"] = is_close(text, direct)
    out["encoding_changed"] = [not is_close([a], [b]) for a, b in zip(text, before_text, strict=True)]
    out["shapes"] = [list(t.shape) for t in text]
    return out


def refusals(swap: Any) -> dict[str, str]:
    """Return the errors for encoders that are not CLIP-L, with their true shapes but on the meta device."""
    others = {
        "clip_g": comfy.sdxl_clip.SDXLClipG(device="meta", dtype=torch.float16),
        "sd2": comfy.text_encoders.sd2_clip.SD2ClipHModel(device="meta", dtype=torch.float16),
    }
    states = {name: model.transformer.state_dict() for name, model in others.items()}
    whole = {k: torch.empty(shape, device="meta") for k, shape in swap.read_shapes().items()}
    states["missing"] = {k: v for k, v in whole.items() if "layers.11.mlp.fc2" not in k}
    states["shape"] = whole | {"text_model.embeddings.position_embedding.weight": torch.empty(248, 768, device="meta")}
    errors = {}
    for name, state in states.items():
        try:
            swap.check({k: v for k, v in state.items() if k.startswith("text_model.")}, f"{name}.safetensors")
        except ValueError as error:
            errors[name] = str(error)
    return errors


def main() -> dict[str, Any]:
    """Measure every family."""
    inside.load_pack()
    comfy.text_encoders.hunyuan_video.LLAMA3Tokenizer = SomeTokens
    comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer = lambda **_: torch.nn.Identity()
    swap = importlib.import_module("pack.nodes.clip_l")
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():  # as every node runs
        shapes = swap.read_shapes().items()
        base, robust = (
            {
                k: (
                    (k.endswith("norm.weight") or "layer_norm" in k and k.endswith("weight"))
                    + 0.02 * torch.randn(shape, generator=generator)
                ).half()
                for k, shape in shapes
            }
            for _ in range(2)
        )
        known = [family for family, (kind, *_) in FAMILIES.items() if hasattr(comfy.sd.CLIPType, kind)]
        out = {family: measure(family, swap, base, robust) for family in known}
        return out | {"refusals": refusals(swap)}


if __name__ == "__main__":
    print(json.dumps(main()))
