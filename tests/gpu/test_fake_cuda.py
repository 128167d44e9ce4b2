"""Every step that a user's GPU runs, on CUDA tensors without CUDA: a tensor that is left on the CPU fails.

The models are tiny and have random weights. Values are computed on the CPU, so that results are those of a run there,
up to the rounding of some processors, which is all that losses of 1e-8 are.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from attack_table import BLIND, attacked
from fake_cuda import CUDA, fake_cuda
from tiny_models import colour_classifier, colour_clip, patches, tiny_sd, tiny_sdxl
from torch import Tensor, nn

from advunlearn.attacks import gradient_attack, single_prompt
from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.registry import ATTACKS
from advunlearn.attacks.single_prompt import attack_prompt
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import RunConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.convnet import ConvJudge
from advunlearn.judges.zero_shot import ZeroShotJudge
from advunlearn.models.loading import TextToImage, load
from advunlearn.training.trainer import train

CPU = torch.device("cpu")
RETAINED = ["a photo of a dog", "a photo of a cat"]
RUN = RunConfig.from_dict(
    {
        "concept": {"concept": "church"},
        "train": {"iterations": 1, "warmup": 0, "batch": 2, "retain_batch": 2},
        "attack": {"steps": 1, "restarts": 2},
        "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 1},
    }
)
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "the defaults": {},
    "micro-batches, checkpointing, offload": {"train": {"micro_batch": 1, "checkpointing": True, "offload": True}},
    "ESD": {"train": {"mode": "esd"}},
    "the published code": {"train": {"mode": "official"}},
    "retain steps": {"train": {"retain_mode": "step"}},
    "inversion": {"attack": {"inversion_tokens": 1, "inversion_steps": 1}},
    "another attack": {"attack": {"position": "add", "space": "conditioning", "start": "random", "norm": "l2"}},
    "two styles in turn": {"concept": {"concept": "church, dog", "schedule": "round_robin"}},
    "the UNet": {"train": {"train_method": "xattn"}},
}
BUDGET = EvaluateConfig(cases=2, attack_steps=1, judge_interval=1, sampling_steps=1, repeats=0)


def to_cuda(model: TextToImage) -> TextToImage:
    """Return a copy of a model on the GPU. It is loaded on the CPU, since files have no fake tensors."""

    def move(module: nn.Module) -> nn.Module:
        return copy.deepcopy(module).to(CUDA)

    with fake_cuda():
        denoiser = model.denoiser.with_modules(move)
        return replace(model, text_encoder=move(model.text_encoder), denoiser=denoiser, vae=move(model.vae))


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with fake_cuda():
        yield


@pytest.fixture(scope="module")
def cpu_model(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    return load(str(tiny_sd(tmp_path_factory.mktemp("smallest") / "model", depth=1)))


@pytest.fixture(scope="module")
def cuda_model(cpu_model: TextToImage) -> TextToImage:
    return to_cuda(cpu_model)


@pytest.fixture(autouse=True)
def fewer_noise_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare prompts at one noise level; the others take the same operations."""
    monkeypatch.setattr(gradient_attack, "COMPARED_LEVELS", 1)
    monkeypatch.setattr(single_prompt, "NOISE_LEVELS", 1)


def make_context(model: TextToImage, judge: ConvJudge) -> AttackContext:
    """Return two cases of an evaluation."""
    evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), BUDGET)
    return evaluator.make_context(evaluator.original, torch.arange(2))


@pytest.fixture(scope="module")
def cpu_context(cpu_model: TextToImage, judge: ConvJudge) -> AttackContext:
    return make_context(cpu_model, judge)


@pytest.fixture(scope="module")
def cuda_context(cuda_model: TextToImage, judge: ConvJudge) -> AttackContext:
    with fake_cuda():
        return make_context(cuda_model, judge)


@pytest.mark.usefixtures("on_cuda")
def test_a_layer_takes_tensors_of_its_own_device_only() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(3, 2, device="cuda")
    with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
        layer(x)
    weight = layer.weight
    layer.to(CUDA)
    assert layer.weight is weight and layer.weight.device == CUDA
    layer(x).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    "mix",
    [
        lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.multinomial(x, 1, generator=torch.Generator()),
        lambda x: torch.arange(9)[x.long()],
        lambda x: x.numpy(),
        lambda x: torch.cat([x, x.cpu()]),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: torch.zeros(()).add_(x[0]),
    ],
)
def test_what_cuda_refuses_is_refused(mix: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises((RuntimeError, TypeError)):
        mix(x)


@pytest.mark.usefixtures("on_cuda")
def test_what_cuda_allows_is_allowed() -> None:
    x = torch.arange(3.0, device="cuda")
    assert x[torch.tensor([2, 0])].tolist() == [2.0, 0.0]  # an index on the CPU
    assert (x * torch.tensor(2.0)).device == CUDA  # a number on the CPU
    assert torch.zeros(3).copy_(x).device == CPU and torch.zeros_like(x, device="cpu").device == CPU
    assert x.nonzero().device == CUDA and x.argmax().item() == 2
    assert x.cpu().numpy().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("name", RUNS)
def test_training_runs_on_the_gpu_and_has_the_losses_of_the_cpu(
    name: str, cpu_model: TextToImage, cuda_model: TextToImage
) -> None:
    run = RUN.replace(**RUNS[name])
    with fake_cuda():
        result = train(cuda_model, run, RETAINED)
    assert {parameter.device for parameter in result.encoder.parameters()} == {CUDA}
    expected = train(cpu_model, run, RETAINED).losses
    assert result.losses == [pytest.approx(row, rel=1e-3, abs=1e-7) for row in expected]


def test_training_in_fp16_on_prompts_of_several_chunks(cpu_model: TextToImage) -> None:
    half = cpu_model.denoiser.with_modules(lambda unet: copy.deepcopy(unet).half())
    model = replace(cpu_model, denoiser=half)
    retained = [*RETAINED, " ".join(["a photo of a dog"] * 20)]
    cuda_model = to_cuda(model)
    with fake_cuda():
        losses = train(cuda_model, RUN, retained).losses
    assert losses == [pytest.approx(row, rel=0.1, abs=1e-7) for row in train(model, RUN, retained).losses]


@pytest.mark.slow
def test_training_both_encoders_of_sdxl(tmp_path: pathlib.Path) -> None:
    model = load(str(tiny_sdxl(tmp_path / "sdxl")))
    cuda_model = to_cuda(model)
    run = RUN.replace(train={"retain_weight": 0.0})
    with fake_cuda():
        losses = train(cuda_model, run).losses
    assert losses == [pytest.approx(row, rel=1e-3, abs=1e-7) for row in train(model, run).losses]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_test_attack_takes_its_step_on_the_gpu(
    name: str, cpu_context: AttackContext, cuda_context: AttackContext
) -> None:
    with fake_cuda():
        attack, losses = attacked(name, cuda_context, steps=1)
        output = attack.result()
        assert output.conditioning.device == CUDA
        attack.objective()
        rows = attack.prompts()
        attack.surrounding_text(0)
    other, expected = attacked(name, cpu_context, steps=1)
    assert rows == other.prompts()
    assert name in BLIND or losses == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_single_prompt_is_attacked_on_the_gpu(cpu_context: AttackContext, cuda_context: AttackContext) -> None:
    def attack(context: AttackContext) -> float:
        target = context.targets.x_0[:1]
        one = AttackContext.for_prompt(context.denoiser, context.encoder, context.tokenizer, "a church", target)
        return attack_prompt(one, "soft_prefix", restarts=2, config=BUDGET).loss

    with fake_cuda():
        loss = attack(cuda_context)
    assert loss == pytest.approx(attack(cpu_context), rel=1e-3)


def test_an_evaluation_samples_attacks_and_judges(
    cpu_model: TextToImage, cuda_model: TextToImage, judge: ConvJudge
) -> None:
    def evaluate(model: TextToImage) -> dict[str, Any]:
        inputs = EvaluationInputs(retained=["a photo of a dog | dog", "a photo of a cat | cat"])
        evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), BUDGET, inputs)
        measured = evaluator.measure(evaluator.original, ["cce", "seed_search"])
        return {"rates": measured.asr, "utility": measured.utility}

    with fake_cuda():
        result = evaluate(cuda_model)
    assert result == evaluate(cpu_model)


@pytest.mark.parametrize(("make", "kind"), [(colour_classifier, ClassifierJudge), (colour_clip, ZeroShotJudge)])
def test_judges_on_the_gpu_decide_as_on_the_cpu(
    make: Callable[..., pathlib.Path], kind: Any, tmp_path: pathlib.Path
) -> None:
    folder, images = make(tmp_path / "judge", steps=1), patches(["blue", "red", "green"])
    expected = kind(folder).look(images, "red").labels
    judge = kind(folder)
    with fake_cuda():
        judge.model.to(CUDA)
        judge.device = "cuda"
        output = judge.look(images, "red")
        assert output.labels == expected and output.features.device == CPU
        if kind is ZeroShotJudge:
            assert judge.score(images, ["blue", "red", "green"]).device == CPU
