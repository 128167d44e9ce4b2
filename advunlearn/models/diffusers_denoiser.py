"""A diffusers UNet2DConditionModel as a denoiser."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config.training import TrainMethod
from ..errors import AdvUnlearnError
from .denoiser import fingerprint, scaled_gradients
from .sdxl_text_encoder import split_conditioning

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

# The parameters that each method trains, as patterns of diffusers' names: ESD's choice (arXiv 2303.07345), as in the
# published code. "notime" excludes the time embedding itself; the layers that project it into the blocks train.
UNET_METHODS: dict[TrainMethod, str] = {
    "full": r"",
    "xattn": r"\battn2\.",
    "selfattn": r"\battn1\.",
    "notime": r"^(?!time_embedding\.|conv_norm_out\.|conv_out\.)",
    "noxattn": r"^(?!time_embedding\.|conv_norm_out\.|conv_out\.|.*\battn2\.)",
}


class DiffusersDenoiser:
    """Noise prediction with a UNet and the noise schedule that it was trained with.

    Raises AdvUnlearnError for a UNet, or a scheduler's prediction type, of another kind than Stable Diffusion 1.x's or
    XL's.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> None:
        self.unet: Any = unet  # `with_modules` may put any module in its place
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float().cpu()
        self.prediction_type: str = scheduler.config["prediction_type"]
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise AdvUnlearnError(
                f"the scheduler predicts {self.prediction_type!r}; only epsilon and v_prediction are supported"
            )
        config = unet.config
        if config["in_channels"] != config["out_channels"]:
            raise AdvUnlearnError(
                f"the UNet takes {config['in_channels']} channels and returns {config['out_channels']}: "
                "an inpainting model; use the text-to-image model it was made from"
            )
        if config["time_cond_proj_dim"]:
            raise AdvUnlearnError(
                "the UNet takes the guidance scale as an input: it is distilled to a few steps (LCM); use the "
                "text-to-image model it was made from"
            )
        embeds = config["addition_embed_type"]
        if embeds not in (None, "text_time"):
            raise AdvUnlearnError(
                f"the UNet is also conditioned on {embeds!r}; only text_time, as in SDXL, is supported"
            )
        self.pooled: int = 0  # width of the pooled text embedding in the conditioning's last row; 0: none
        if embeds:
            self.pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (config["in_channels"], height, width)

    @property
    def device(self) -> torch.device:
        """Device of the UNet's weights."""
        return self.unet.device

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the UNet."""
        return (self.unet,)

    def blocks(self) -> tuple[nn.Module, ...]:
        """Return the UNet's residual and attention blocks."""
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        return tuple(m for m in self.unet.modules() if isinstance(m, ResnetBlock2D | Transformer2DModel))

    def fingerprint(self) -> str:
        """Return a short text that identifies the UNet's weights and its prediction type."""
        return fingerprint(self.unet) + ("" if self.prediction_type == "epsilon" else f" {self.prediction_type}")

    def with_modules(self, make: Callable[[nn.Module], nn.Module]) -> DiffusersDenoiser:
        """Return a denoiser that predicts with make(UNet)."""
        other = copy.copy(self)
        other.unet = make(self.unet)
        return other

    def trainable_copy(self) -> DiffusersDenoiser:
        """Return a denoiser with a copy of the UNet in fp32, because Adam's steps vanish in 16 bits."""
        return self.with_modules(lambda unet: copy.deepcopy(unet).float())

    def trainable_parameters(self, method: TrainMethod) -> list[nn.Parameter]:
        """Return the UNet's parameters that a method trains, in the UNet's order."""
        return [p for name, p in self.unet.named_parameters() if re.search(UNET_METHODS[method], name)]

    @staticmethod
    def time_ids(x_t: Tensor) -> Tensor:
        """Return SDXL's micro-conditioning (B, 6): the latents' size in pixels as original and target size, no crop."""
        height, width = (8 * side for side in x_t.shape[-2:])
        return x_t.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), 6)

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """See `Denoiser.noise_pred`. A v prediction is converted: eps = sqrt(a) v + sqrt(1 - a) x_t."""
        dtype = self.unet.dtype

        def predict(context: Tensor) -> Tensor:
            options = {}
            if self.pooled:
                context, pooled = split_conditioning(context, self.pooled)
                options = {"added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": self.time_ids(x_t)}}
            return self.unet(x_t.to(dtype), t, context.to(dtype), **options).sample.float()

        output = scaled_gradients(conditioning, predict, dtype)
        if self.prediction_type == "epsilon":
            return output
        a = self.alphas_cumprod.to(x_t.device)[t].view(-1, 1, 1, 1)
        return a.sqrt() * output + (1 - a).sqrt() * x_t
