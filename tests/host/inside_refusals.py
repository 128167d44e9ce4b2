"""Runs inside the host's own Python: what is said about MODELs that cannot be trained, of the host's own classes.

python inside_refusals.py HOST_FOLDER PACK_FOLDER -      prints one JSON object

The models have no weights (PyTorch's meta device); the sampling is changed by the host's nodes.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import inside  # first: it finds the host

# isort: split
import comfy.model_patcher
import comfy.sdxl_clip
import comfy.supported_models
import comfy_extras.nodes_model_advanced as sampling
import torch

XL_UNET: dict[str, Any] = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
REFINER = {
    "model_channels": 384,
    "adm_in_channels": 2560,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    "transformer_depth_middle": 4,
    "context_dim": 1280,
}
SD15 = {
    "num_classes": None,
    "adm_in_channels": None,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 768,
}


def make(kind: str, *marks: str, **changes: Any) -> Any:
    """Return a MODEL of a kind that the host supports; `marks` are tensors of its file that say how it samples."""
    config = getattr(comfy.supported_models, kind)(XL_UNET | changes)
    config.unet_config["dtype"] = torch.float32
    config.manual_cast_dtype = None
    state = {name: torch.tensor(1.0) for name in marks}
    module = config.get_model(state, "", device=torch.device("meta"))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(module, load_device=cpu, offload_device=cpu)


def make_clip(kind: type) -> Any:
    """Return what of a CLIP tells its family."""
    encoder = torch.nn.Module()
    encoder.__class__ = type("TextEncoder", (kind,), {})
    return SimpleNamespace(cond_stage_model=encoder)


def ask(host: Any, model: Any, clip: Any = None) -> str:
    """Return why a MODEL, or its combination with a CLIP, is refused; "" if it is not."""
    try:
        host.check_model(model) if clip is None else host.check_pair(model, clip)
    except ValueError as error:
        return str(error)
    return ""


def main() -> dict[str, str]:
    """Ask about every kind."""
    host = inside.load_pack()
    xl = make("SDXL")
    with torch.inference_mode():  # as every node runs
        models = {
            "SDXL": xl,
            "SDXL, v prediction": make("SDXL", "v_pred"),
            "SDXL, v prediction, zero terminal SNR": make("SDXL", "v_pred", "ztsnr"),
            "SDXL, v prediction by the node": sampling.ModelSamplingDiscrete().patch(xl, "v_prediction", True)[0],
            "SDXL's refiner": make("SDXLRefiner", **REFINER),
            "SDXL for inpainting": make("SDXL", in_channels=9),
            "SDXL for image editing": make("SDXL_instructpix2pix", in_channels=8),
            "SD 1.x": make("SD15", **SD15),
            "SD 1.x for image editing": make("SD15_instructpix2pix", **SD15, in_channels=8),
            "CosXL": make("SDXL", "edm_vpred.sigma_max"),
            "Playground 2.5": make("SDXL", "edm_mean", "edm_std"),
            "SDXL with LCM's sampling": sampling.ModelSamplingDiscrete().patch(xl, "lcm", False)[0],
            "SDXL with flow matching": sampling.ModelSamplingSD3().patch(xl, 3.0)[0],
            "SDXL with EDM's sampling": sampling.ModelSamplingContinuousEDM().patch(xl, "eps", 120.0, 0.002)[0],
        }
        out = {name: ask(host, model) for name, model in models.items()}
        pairs = {
            "SDXL with SD3's CLIP": (xl, make_clip(torch.nn.Module)),
            "SD 1.x with SDXL's CLIP": (models["SD 1.x"], make_clip(comfy.sdxl_clip.SDXLClipModel)),
            "SDXL with its CLIP": (xl, make_clip(comfy.sdxl_clip.SDXLClipModel)),
        }
    return out | {name: ask(host, *pair) for name, pair in pairs.items()}


if __name__ == "__main__":
    print(json.dumps(main()))
