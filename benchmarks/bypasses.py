"""What gets around a robust text encoder, and how often the concept then comes back.

    python benchmarks/bypasses.py ENCODER --concept church [--cases 40]

The prompts are the plain ones of the evaluation. Ways that change the encoder are closed by the guard of the ComfyUI
nodes, the others are not (docs/guide/threat-model.md). Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn import miniature
from advunlearn.attacks.emphasis import emphasize
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.ddim import ddim_steps, ddim_timesteps
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import load
from advunlearn.models.tokenizer import tokenize

STRENGTHS = (0.9, 0.7, 0.5, 0.3, 0.0)
WEIGHTS = (1.2, 1.5, 2.0, 5.0)
DENOISE = (0.3, 0.5, 0.7, 0.9)
NEUTRAL = "a photo"  # an image-to-image prompt that names nothing


def interpolate(original: nn.Module, robust: nn.Module, strength: float) -> nn.Module:
    """Return an encoder with the weights original + strength * (robust - original)."""
    mixed = copy.deepcopy(robust)
    with torch.no_grad():
        for weight, base in zip(mixed.parameters(), original.parameters(), strict=True):
            weight.copy_(base + strength * (weight - base))
    return mixed


class Bypasses:
    """The ways around one encoder.

    Args:
        evaluator: the evaluation of the concept.
        encoder: the robust encoder.
    """

    def __init__(self, evaluator: Evaluator, encoder: nn.Module) -> None:
        self.evaluator, self.model, self.encoder = evaluator, evaluator.model, encoder
        self.robust = Subject(encoder, evaluator.model.denoiser)
        self.prompts, self.noise = evaluator.cases.plain, evaluator.noise

    def measure(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each way and its images (N, 3, H, W)."""
        evaluator = self.evaluator
        yield "none", evaluator.generate_from_prompts(self.robust, self.prompts, self.noise)
        for strength in STRENGTHS:
            subject = Subject(interpolate(self.model.text_encoder, self.encoder, strength), self.model.denoiser)
            yield f"strength {strength}", evaluator.generate_from_prompts(subject, self.prompts, self.noise)
        layers = self.encoder.config.num_hidden_layers
        for layer in range(2, layers + 1):
            yield f"last layer -{layer}", evaluator.generate_images(self.robust, self.encode_layer(-layer), self.noise)
        for weight in WEIGHTS:
            images = evaluator.generate_images(self.robust, self.encode_emphasis(weight), self.noise)
            yield f"(prompt:{weight})", images
        originals = evaluator.generate_latents(evaluator.original, self.model.encode(self.prompts), self.noise)
        for denoise in DENOISE:
            yield f"image to image, denoise {denoise}", self.redraw(originals, denoise)

    def encode_layer(self, layer: int) -> Tensor:
        """Return the final norm of the output (N, L, D) of an earlier layer, as ComfyUI's CLIP Set Last Layer does."""
        ids = tokenize(self.model.tokenizer, self.prompts)
        text_model = getattr(self.encoder, "text_model", self.encoder)
        with torch.no_grad():
            hidden = self.encoder(ids, output_hidden_states=True).hidden_states[layer]
            return text_model.final_layer_norm(hidden)

    def encode_emphasis(self, weight: float) -> Tensor:
        """Return the conditioning (N, L, D) of "(prompt:weight)" as ComfyUI makes it.

        It scales the difference to the empty prompt's conditioning at the places of the prompt's tokens.
        """
        with torch.no_grad():
            plain, empty = (self.model.encode(texts, self.encoder) for texts in (self.prompts, [""]))
        ids = tokenize(self.model.tokenizer, self.prompts)
        positions = torch.arange(ids.shape[1])
        is_text = (positions > 0) & (positions < (ids == self.model.tokenizer.eos_token_id).int().argmax(1)[:, None])
        return emphasize(plain, empty, is_text, weight)

    def redraw(self, latents: Tensor, denoise: float) -> Tensor:
        """Return images made from noised latents (N, C, h, w) of the concept, with a neutral prompt."""
        config, denoiser = self.evaluator.config, self.model.denoiser
        start = round((1 - denoise) * config.sampling_steps)
        alpha = denoiser.alphas_cumprod[ddim_timesteps(config.sampling_steps)[start]]
        x = alpha.sqrt() * latents + (1 - alpha).sqrt() * self.noise.flip(0)
        context = self.model.encode([NEUTRAL] * len(x), self.encoder).detach()
        empty = self.model.encode([""], self.encoder).detach()
        for step in ddim_steps(denoiser, context, empty, x, config.sampling_steps, config.guidance_scale, start):
            x = step.x_next
        return self.model.decode(x)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="an encoder that was trained from the miniature")
    parser.add_argument("--concept", default="church")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=4242)
    args = parser.parse_args()
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(cases=args.cases, seed=args.seed, repeats=0)
    evaluator = Evaluator(model, judge, ConceptConfig(concept=args.concept), config)
    encoder, _ = load_encoder(args.encoder, model.text_encoder)
    print("| way | images with the concept |\n|---|---|", flush=True)
    for way, images in Bypasses(evaluator, encoder).measure():
        print(f"| {way} | {int(evaluator.detect_concept(images).sum())}/{len(images)} |", flush=True)


if __name__ == "__main__":
    main()
