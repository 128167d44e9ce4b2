"""Train the UNet on the encoded pictures, conditioned by the frozen text encoder.

    python tools/miniature/train_unet.py BUILD [--steps 8000]

Noise prediction on Stable Diffusion's schedule, one caption in ten empty. A pool of captions is encoded once, at the
full 77 positions that every host pads to.
"""

import argparse
import json
import pathlib
import random
import sys

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn.miniature import captions
from common import Run, average_into

MODEL = HERE.parents[1] / "advunlearn" / "miniature" / "model"
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "requires_safety_checker": False,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def build() -> UNet2DConditionModel:
    """Return a fresh UNet: a fifth of Stable Diffusion 1.x's widths, two of its four levels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


@torch.no_grad()
def encode(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the last hidden states (N, 77, 192) of captions, in bf16."""
    rows = []
    for i in range(0, len(texts), 256):
        ids = tokenizer(texts[i : i + 256], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows.append(encoder(ids.input_ids).last_hidden_state.bfloat16())
    return torch.cat(rows)


def caption_pool(size: int, seed: int) -> list[str]:
    """Return `size` captions for every (object, style, background), in that order, the last index fastest."""
    rng = random.Random(seed)
    return [
        captions.random_caption(o, s, b, rng)
        for o in captions.objects()
        for s in captions.styles()
        for b in captions.backgrounds()
        for _ in range(size)
    ]


def rate(step: int, steps: int) -> float:
    """Return the learning-rate factor: warm-up, level to 55 %, then a straight line down to 2 %."""
    done = step / steps
    return min(1.0, (step + 1) / 200) * (1.0 if done < 0.55 else max(0.02, (1 - done) / 0.45))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--captions", type=int, default=24, help="captions per object, style and background")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32).eval()
    pool, empty = encode(encoder, tokenizer, caption_pool(args.captions, seed=1)), encode(encoder, tokenizer, [""])
    data = torch.load(args.build / "latents.pt", weights_only=True)
    combination = (data["object"] * len(captions.styles()) + data["style"]) * len(captions.backgrounds()) + data[
        "background"
    ]
    latents = data["latents"]
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.save_pretrained(MODEL / "scheduler")
    (MODEL / "model_index.json").write_text(json.dumps(INDEX, indent=1) + "\n")
    alphas = scheduler.alphas_cumprod
    unet, average = build().to(memory_format=torch.channels_last), build()
    average.load_state_dict(unet.state_dict())
    unet.set_attn_processor(AttnProcessor())  # plain matrix products: bf16 fused attention is slow backwards on CPUs
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = Run(args.build / "unet.ckpt", unet=unet, average=average, optimizer=optimizer, generator=g)
    total, counted = 0.0, 0
    for step in run.steps(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * rate(step, args.steps)
        i = torch.randint(len(latents), (args.batch,), generator=g)
        context = pool[combination[i] * args.captions + torch.randint(args.captions, (args.batch,), generator=g)]
        context[: args.batch // 10] = empty
        noise, t = torch.randn(latents[i].shape, generator=g), torch.randint(1000, (args.batch,), generator=g)
        a = alphas[t].view(-1, 1, 1, 1)
        x = (a.sqrt() * latents[i] + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = unet(x, t, context).sample
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average_into(average, unet, step, 0.999)
        total, counted = total + loss.item(), counted + 1
        if (step + 1) % 500 == 0:
            run.log(step, loss=round(total / counted, 4))
            total, counted = 0.0, 0
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            average.save_pretrained(MODEL / "unet")
    average.half().save_pretrained(MODEL / "unet")


if __name__ == "__main__":
    main()
