"""Fit attention layers with 5 heads of 64 to the miniature's outer ones, which have 8 heads of 8.

    python tools/miniature/fit_heads.py

SDXL's layouts have heads of 64 channels, so 320 channels, five times the miniature's 64, have five heads. Everything
else of the miniature fits into such a layout exactly. Writes advunlearn/miniature/sdxl/model.safetensors.
"""

import itertools
import pathlib
import random
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from safetensors.torch import save_file

from advunlearn import miniature
from advunlearn.miniature import captions
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.loading import TextToImage, load

HEADS, DIM = 5, 64
BLOCKS = ("down_blocks.0.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
NAMES = [f"{block}.transformer_blocks.0.{layer}" for block in BLOCKS for layer in ("attn1", "attn2")]
GUIDANCE = (1.0, 3.0, 7.5)
BATCHES = 4  # of 32 captions, sampled in 10 steps
RIDGE = 1e-5  # of the mean of the normal matrix's diagonal


@torch.no_grad()
def record(model: TextToImage, count: int, seed: int) -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """Sample pictures of random captions; return the inputs and outputs of the layers, for every step."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in NAMES}

    def hook(name: str):
        def keep(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            context = kwargs.get("encoder_hidden_states")
            seen[name].append((args[0].half(), (args[0] if context is None else context).half(), output.half()))

        return keep

    unet = model.denoiser.modules()[0]
    handles = [unet.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in NAMES]
    names, styles, backgrounds = captions.objects(), captions.styles(), captions.backgrounds()
    for _ in range(count):
        texts = [
            captions.random_caption(rng.choice(names), rng.choice(styles), rng.choice(backgrounds), rng)
            for _ in range(32)
        ]
        noise = torch.randn(32, *model.denoiser.latent_shape, generator=generator)
        ddim_sample(model.denoiser, model.encode(texts), model.encode([""]), noise, 10, rng.choice(GUIDANCE))
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def mix(attention: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    """Return the context (B, N, H, D) as each head sees it: its attention weights times the context."""
    q, k = (
        layer(y).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer, y in ((attention.to_q, x), (attention.to_k, context))
    )
    values = context[:, None].expand(-1, attention.heads, -1, -1)
    return F.scaled_dot_product_attention(q, k, values).transpose(1, 2)


@torch.no_grad()
def fit(rows: list[tuple[Tensor, Tensor, Tensor]], attention: nn.Module) -> tuple[dict[str, Tensor], float]:
    """Return the weights of a layer with five of the attention's heads, and its relative error |error| / |output|.

    A head of 64 channels holds any linear map of what it sees to 64 channels. The five maps, for the best choice of
    heads, are the least-squares fit to the outputs of all eight heads.
    """
    bias = attention.to_out[0].bias
    gram, cross, total = 0.0, 0.0, 0.0
    for x, context, output in rows:
        seen = mix(attention, x.float(), context.float()).flatten(0, 1).flatten(1).double()  # (B N, H D)
        wanted = (output.float() - bias).flatten(0, 1).double()
        gram, cross, total = gram + seen.T @ seen, cross + seen.T @ wanted, total + wanted.square().sum().item()
    width = rows[0][1].shape[-1]
    best: tuple[float, tuple[int, ...], Tensor] = (float("inf"), (), torch.empty(0))
    for heads in itertools.combinations(range(attention.heads), HEADS):
        at = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
        part = gram[at][:, at]
        solution = torch.linalg.solve(part + RIDGE * part.diagonal().mean() * torch.eye(len(at)), cross[at])
        error = total - 2 * (solution * cross[at]).sum() + (solution * (part @ solution)).sum()
        best = min(best, (error.item(), heads, solution.float()), key=lambda found: found[0])
    error, heads, solution = best
    return build_layer(attention, heads, solution.unflatten(0, (HEADS, width))), (error / total) ** 0.5


def build_layer(attention: nn.Module, heads: tuple[int, ...], maps: Tensor) -> dict[str, Tensor]:
    """Return the layer's weights; `maps` (HEADS, D, C) lead from what a head sees to the output."""
    size = attention.to_q.weight.shape[0] // attention.heads
    state = {
        "to_q.weight": torch.zeros(HEADS * DIM, attention.to_q.weight.shape[1]),
        "to_k.weight": torch.zeros(HEADS * DIM, attention.to_k.weight.shape[1]),
        "to_v.weight": maps.transpose(1, 2).flatten(0, 1),
        "to_out.0.weight": torch.eye(DIM).repeat(1, HEADS),
        "to_out.0.bias": attention.to_out[0].bias.detach(),
    }
    for place, head in enumerate(heads):
        rows, source = slice(place * DIM, place * DIM + size), slice(head * size, (head + 1) * size)
        # Logits are divided by the root of the head's channels.
        state["to_q.weight"][rows] = attention.to_q.weight[source].detach() * (DIM / size) ** 0.5
        state["to_k.weight"][rows] = attention.to_k.weight[source].detach()
    return state


def main() -> None:
    torch.set_flush_denormal(True)
    model = load("miniature")
    rows = record(model, BATCHES, 0)
    unet = model.denoiser.modules()[0]
    state = {}
    for name in NAMES:
        layer, error = fit(rows[name], unet.get_submodule(name))
        print(f"{name}: relative error {error:.4f}", flush=True)
        state |= {f"{name}.{key}": value.half().contiguous() for key, value in layer.items()}
    folder = miniature.path().parent / "sdxl"
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
