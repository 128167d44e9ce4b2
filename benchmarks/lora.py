"""How soon a LoRA that is trained on an erased text encoder brings the concept back.

    python benchmarks/lora.py church ENCODER [ENCODER ...]

The adversary owns the model and images of the concept: it trains low-rank additions to every linear layer of the
encoder by the denoising loss on the original model's images, with the plain prompts. No encoder can resist this; the
figure is a limit. Prints a row for each encoder: plain prompts that show the concept after each number of steps, and
seconds of training on one core.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.judges.convnet import ConvJudge
from advunlearn.losses import denoising_loss
from advunlearn.models.denoiser import add_noise
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import encode, frozen

RANK = 4
BATCH = 16


class LowRank(nn.Module):
    """A low-rank addition to a weight (out, in): LoRA (arXiv 2106.09685), which starts at zero."""

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        out, size = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, size, generator=generator) / size**0.5)
        self.up = nn.Parameter(torch.zeros(out, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its addition."""
        return weight + self.up @ self.down


def add_lora(encoder: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
    """Add a LoRA to every linear layer of a frozen encoder; return what trains."""
    layers = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    added = [LowRank(layer.weight, generator) for layer in layers]
    for layer, low_rank in zip(layers, added, strict=True):
        parametrize.register_parametrization(layer, "weight", low_rank)
    return [parameter for low_rank in added for parameter in low_rank.parameters()]


def draw_loss(evaluator: Evaluator, encoder: nn.Module, generator: torch.Generator) -> Tensor:
    """Return the mean denoising loss () of a random batch of images of the concept."""
    denoiser = evaluator.model.denoiser
    targets, _ = evaluator.make_targets()
    rows = torch.randint(len(targets.ids), (BATCH,), generator=generator)
    t = torch.randint(len(denoiser.alphas_cumprod), (BATCH,), generator=generator)
    noise = torch.randn(targets.x_0[rows].shape, generator=generator)
    x_t = add_noise(targets.x_0[rows], noise, t, denoiser.alphas_cumprod)
    return denoising_loss(denoiser.noise_pred(x_t, t, encode(encoder, targets.ids[rows])), noise).mean()


def train_lora(evaluator: Evaluator, encoder: nn.Module, looks: list[int], lr: float) -> list[str]:
    """Train a LoRA; return successes and seconds of training after each number of steps in `looks`."""
    denoiser = evaluator.model.denoiser
    generator = torch.Generator().manual_seed(0)
    attacked = copy.deepcopy(encoder)
    cells = []
    seconds = 0.0
    with frozen(attacked, *denoiser.modules()):
        optimizer = torch.optim.AdamW(add_lora(attacked, generator), lr=lr)
        for step in range(max(looks) + 1):
            if step in looks:
                cells.append(f"{count_hits(evaluator, attacked)} ({seconds:.0f} s)")
            start = time.process_time()
            optimizer.zero_grad()
            draw_loss(evaluator, attacked, generator).backward()
            optimizer.step()
            seconds += time.process_time() - start
    return cells


@torch.no_grad()
def count_hits(evaluator: Evaluator, encoder: Any) -> str:
    """Return how many of the plain prompts show the concept."""
    subject = Subject(encoder, evaluator.model.denoiser)
    hits = evaluator.detect_concept(evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise))
    return f"{int(hits.sum())}/{len(hits)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concept")
    parser.add_argument("encoders", nargs="+", metavar="ENCODER")
    parser.add_argument("--looks", nargs="+", type=int, default=[0, 20, 40, 80])
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(cases=args.cases, sampling_steps=10, seed=args.eval_seed, repeats=0)
    evaluator = Evaluator(model, judge, ConceptConfig(concept=args.concept), config)
    print(f"| encoder | {' | '.join(f'{look} steps' for look in args.looks)} |\n{'|---' * (1 + len(args.looks))}|")
    for path in args.encoders:
        encoder = load_encoder(path, model.text_encoder)[0]
        print(f"| {path} | {' | '.join(train_lora(evaluator, encoder, args.looks, args.lr))} |", flush=True)


if __name__ == "__main__":
    main()
