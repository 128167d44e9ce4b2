from __future__ import annotations

import pathlib

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.evaluation.cases import make_cases
from advunlearn.files import CLIP_TOKENIZER
from advunlearn.formats.text_encoders import export_state, load_state
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.miniature.captions import retain_prompts
from advunlearn.miniature.checkpoint import (
    HIDDEN_SIZE,
    clip_token_ids,
    wide_shapes,
    widen_state,
    widen_text_encoder,
    without_prefix,
)
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import encode
from advunlearn.models.tokenizer import tokenize


def test_it_is_small_enough_to_ship() -> None:
    files = [p for p in miniature.path().parent.rglob("*") if p.is_file() and p.suffix != ".py" and p.suffix != ".pyc"]
    assert sum(p.stat().st_size for p in files) < 25e6
    assert {p.name for p in files if p.suffix == ".safetensors"} == {
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    }


def test_diffusers_loads_and_runs_it_as_it_is() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(miniature.path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        "a church", num_inference_steps=2, guidance_scale=3.0, generator=generator, output_type="pt"
    ).images
    assert image.shape == (1, 3, 64, 64)
    assert pipeline.tokenizer.model_max_length == 77
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_its_widths_divide_stable_diffusions(model: TextToImage) -> None:
    unet, text = model.denoiser.unet.config, model.text_encoder.config
    assert (320 % unet.block_out_channels[0], 640 % unet.block_out_channels[1], 768 % text.hidden_size) == (0, 0, 0)
    assert (text.num_attention_heads, text.hidden_act, text.max_position_embeddings) == (12, "quick_gelu", 77)


def test_concepts_have_many_routes_and_neighbours() -> None:
    entries = captions.concepts()["objects"]
    assert len(entries) >= 60 and len(captions.styles()) >= 4
    assert all(len(captions.foreign_synonyms(name)) + len(e["keywords"]) >= 3 for name, e in entries.items())
    families = [e["family"] for e in entries.values()]
    assert min(families.count(f) for f in set(families)) >= 4


def test_it_draws_what_it_is_asked_for(model: TextToImage, judge: ConvJudge) -> None:
    """64 pictures, by name and by other routes; chance would be one in 64."""
    names = captions.objects()
    words = [n if i % 2 else captions.foreign_synonyms(n)[0] for i, n in enumerate(names)]
    noise = torch.randn(64, *model.denoiser.latent_shape, generator=torch.Generator().manual_seed(5))
    context = model.encode([captions.caption(w) for w in words])
    pictures = model.decode(ddim_sample(model.denoiser, context, model.encode([""]), noise, 5, 3.0))
    with torch.no_grad():
        right = judge(pictures).object.argmax(1) == torch.arange(64)
    assert right.float().mean() > 0.75


def test_retain_prompts_and_routes_do_not_name_the_concept() -> None:
    rows = retain_prompts(["church"])
    assert len(rows) > 300
    words = {"church", *captions.foreign_synonyms("church")}
    assert not [r for r in rows if words & set(r.replace(",", "").split())]
    styled = retain_prompts(["ink"], "style")
    assert styled and not [r for r in styled if "ink style" in r]


def test_cases_by_kind(judge: ConvJudge) -> None:
    cases = make_cases(ConceptConfig(concept="church"), judge, 20, 2)
    assert len(cases.plain) == 20 and len(cases.foreign) == len(cases.keywords) == 10
    assert all("church" in p for p in cases.plain) and not any("church" in p for p in cases.foreign + cases.keywords)
    assert len(cases.retained) == 2 * 63 and {r.object for r in cases.neighbours} == {
        "castle",
        "house",
        "tent",
        "factory",
        "mosque",
    }
    style = make_cases(ConceptConfig(concept="ink", kind="style"), judge, 20, 1)
    assert all("ink style" in p for p in style.plain) and len(style.keywords) == 20 and not style.foreign


def test_judge_round_trip(judge: ConvJudge, tmp_path: pathlib.Path) -> None:
    judge.save_pretrained(tmp_path)
    again, x = ConvJudge.from_pretrained(tmp_path), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x).object, judge(x).object)
    assert again.objects == captions.objects() and again.styles == captions.styles()


def test_the_widened_parts_compute_what_the_miniature_does(model: TextToImage) -> None:
    shapes = wide_shapes()
    unet = UNet2DConditionModel.from_config(
        {**model.denoiser.unet.config, "block_out_channels": (320, 640), "cross_attention_dim": HIDDEN_SIZE}  # type: ignore[attr-defined]
    )
    unet.load_state_dict(widen_state(model.denoiser.unet.state_dict(), shapes[0]))  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), model.encode(["a dog", "a church, ink style"])
    with torch.no_grad():
        narrow = model.denoiser.noise_pred(x, torch.tensor([400, 700]), context)
        wide = unet(x, torch.tensor([400, 700]), context.repeat_interleave(4, -1)).sample
    assert (wide - narrow).abs().max() < 1e-4


def test_the_checkpoint_has_clips_vocabulary_and_identity_layers(model: TextToImage) -> None:
    state = without_prefix(export_state(model.text_encoder))
    wide = widen_text_encoder(state, wide_shapes()[1], clip_token_ids())
    config = CLIPTextConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=49408,
        eos_token_id=49407,
        bos_token_id=49406,
        pad_token_id=49407,
    )
    encoder = CLIPTextModel(config).eval()
    load_state(encoder, wide, "the widened encoder")
    full = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)
    prompts = ["a photo of a church, ink style", "un voilier"]
    with torch.no_grad():
        hidden = encode(encoder, tokenize(full, prompts))
    assert (hidden - model.encode(prompts).repeat_interleave(4, -1)).abs().max() < 1e-4
