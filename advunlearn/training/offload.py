"""Keep on the CPU what is not needed at the moment: less memory on the device, the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config.training import TrainConfig
from ..models.loading import TextToImage
from ..models.text_encoder import encoder_parts

CPU = torch.device("cpu")


class OffloadedAdam(torch.optim.Adam):
    """Adam whose moments are on the CPU between steps; a step has those of one parameter on the device at a time.

    Each parameter's update is that of torch.optim.Adam.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        assert closure is None
        (group,) = self.param_groups
        parameters = group["params"]
        try:
            for parameter in parameters:
                group["params"] = [parameter]
                self._move_moments(parameter, parameter.device)
                super().step()
                self._move_moments(parameter, CPU)
        finally:
            group["params"] = parameters

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, of this class or of torch.optim.Adam."""
        super().load_state_dict(state_dict)
        for parameter in self.state:
            self._move_moments(parameter, CPU)

    def _move_moments(self, parameter: Tensor, device: torch.device) -> None:
        state = self.state.get(parameter, {})
        state.update({name: state[name].to(device) for name in ("exp_avg", "exp_avg_sq") if name in state})


def offloaded_modules(model: TextToImage, config: TrainConfig) -> list[nn.Module]:
    """Return the original model's modules that training needs now and then only.

    They are the encoders of which copies train, for new trajectories, and the autoencoder, for sample images.
    """
    modules = [model.vae] if isinstance(model.vae, nn.Module) else []
    if not config.unet_method:
        parts = encoder_parts(model.text_encoder)
        modules += [part for name, part in parts.items() if len(parts) == 1 or config.encoders in ("both", name)]
    return modules
