"""The seam between the method and whatever predicts the noise: a diffusers UNet here, a host's model elsewhere."""

from .denoiser import Denoiser
from .diffusers_denoiser import DiffusersDenoiser

__all__ = ["Denoiser", "DiffusersDenoiser"]
