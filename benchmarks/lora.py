"""How soon a LoRA that is trained on an erased text encoder brings the concept back.

    python benchmarks/lora.py run church ENCODER [ENCODER ...]
    python benchmarks/lora.py table

The adversary owns the model and images of the concept: it trains low-rank additions to every linear layer of the
encoder by the denoising loss on the original model's images, with the plain prompts. No encoder can resist this; the
figure is a limit, and no attack of the library, whose attacks leave the encoder as it is. `run` adds a row to
benchmarks/results/lora.json for each encoder, and skips rows that exist. `table` prints Markdown: plain
prompts that show the concept after each number of steps, with passes and seconds of training on one core.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from given_encoders import load_encoders, parse_arguments
from result_rows import ResultRows

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.judges.convnet import ConvJudge
from advunlearn.losses import denoising_loss
from advunlearn.models.counting import count_forwards
from advunlearn.models.denoiser import Denoiser, add_noise
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import encode, frozen

RANK, BATCH, LR = 4, 16, 3e-3
LOOKS = (0, 10, 20, 40, 80)  # steps after which the plain prompts are judged


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


def draw_loss(evaluator: Evaluator, encoder: nn.Module, denoiser: Denoiser, generator: torch.Generator) -> Tensor:
    """Return the mean denoising loss () of a random batch of images of the concept."""
    targets, _ = evaluator.make_targets()
    rows = torch.randint(len(targets.ids), (BATCH,), generator=generator)
    t = torch.randint(len(denoiser.alphas_cumprod), (BATCH,), generator=generator)
    noise = torch.randn(targets.x_0[rows].shape, generator=generator)
    x_t = add_noise(targets.x_0[rows], noise, t, denoiser.alphas_cumprod)
    return denoising_loss(denoiser.noise_pred(x_t, t, encode(encoder, targets.ids[rows])), noise).mean()


def train_lora(evaluator: Evaluator, encoder: nn.Module) -> list[dict[str, Any]]:
    """Train a LoRA; return successes, passes and seconds of training after each number of steps in `LOOKS`."""
    denoiser = count_forwards(evaluator.model.denoiser)
    generator = torch.Generator().manual_seed(0)
    attacked = copy.deepcopy(encoder)
    looks = []
    seconds = 0.0
    with frozen(attacked, *denoiser.modules()):
        optimizer = torch.optim.AdamW(add_lora(attacked, generator), lr=LR)
        for step in range(max(LOOKS) + 1):
            if step in LOOKS:
                hits = count_hits(evaluator, attacked)
                looks.append({"step": step, "success": hits, "F": denoiser.forwards, "seconds": round(seconds, 1)})
            start = time.process_time()
            optimizer.zero_grad()
            draw_loss(evaluator, attacked, denoiser, generator).backward()
            optimizer.step()
            seconds += time.process_time() - start
    return looks


@torch.no_grad()
def count_hits(evaluator: Evaluator, encoder: Any) -> int:
    """Return how many of the plain prompts show the concept."""
    subject = Subject(encoder, evaluator.model.denoiser)
    images = evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise)
    return int(evaluator.detect_concept(images).sum())


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Measure the missing rows."""
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(**results.settings["evaluate"])
    evaluator = Evaluator(model, judge, ConceptConfig(concept=args.concept), config)
    evaluator.make_targets()  # now: their cost is no part of the training's
    for key, encoder in load_encoders(args.encoders, model, args.concept):
        if not results.has(**key):
            results.add({**key, "total": config.cases, "looks": train_lora(evaluator, encoder)})
            print(results.rows[-1], flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: a row for each concept and encoder."""
    heads = ["concept", "encoder", *(f"{look} steps" for look in LOOKS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [f"{look['success']}/{row['total']} ({look['F']} F, {look['seconds']:.0f} s)" for look in row["looks"]]
        lines.append(f"| {' | '.join([row['concept'], row['mode'], *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parse_arguments(parser)
    evaluate = EvaluateConfig(cases=args.cases, sampling_steps=10, seed=args.eval_seed, repeats=0)
    lora = {"rank": RANK, "batch": BATCH, "lr": LR, "looks": list(LOOKS)}
    results = ResultRows("lora.json", {"evaluate": evaluate.to_dict(), "lora": lora})
    if args.what == "run":
        run(args, results)
    else:
        print(table(results.rows))


if __name__ == "__main__":
    main()
