"""The seam between the method and whatever predicts the noise: a diffusers UNet here, a host's model elsewhere."""

from .base import Denoiser
from .diffusers_unet import DiffusersDenoiser

__all__ = ["Denoiser", "DiffusersDenoiser"]
