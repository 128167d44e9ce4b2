"""The miniature as SDXL: both forms compute what the miniature does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from advunlearn.formats.text_encoders import load_state
from advunlearn.formats.unet_layout import fill_empty_attentions
from advunlearn.formats.weights import get_shapes
from advunlearn.miniature import sdxl
from advunlearn.miniature.sdxl_encoders import WIDE_ENCODERS, EncoderShape, Stream, build_encoder
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.sdxl_text_encoder import DualTextEncoder
from advunlearn.models.tokenizer import tokenize

PROMPTS = ["a photo of a church, ink style", "un voilier", ""]
WIDTH = 192  # of the miniature's text encoder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextToImage]:
    yield load(str(sdxl.write_sdxl_folder(tmp_path_factory.mktemp("small") / "sdxl")))


def draw_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400, 700, 100])


def test_the_small_form_predicts_what_the_miniature_does(model: TextToImage, small: TextToImage) -> None:
    assert isinstance(small.text_encoder, DualTextEncoder)
    x, t = draw_inputs()
    with torch.no_grad():
        expected = model.denoiser.noise_pred(x, t, model.encode(PROMPTS))
        noise = small.denoiser.noise_pred(x, t, small.encode(PROMPTS))
    assert (noise - expected).abs().max() < 2e-3  # its encoders are in fp16; predictions are up to 4


@pytest.mark.parametrize("part", ["clip_l", "clip_g"])
def test_each_encoder_carries_half_of_the_concept(small: TextToImage, part: str) -> None:
    """The UNet reads the mean: exchanging one encoder's church for a dog gives half of each."""
    church, dog = small.encode(["a church", "a dog"])
    columns = {"clip_l": slice(0, 384), "clip_g": slice(384, None)}[part]
    mixed = church.clone()
    mixed[:, columns] = dog[:, columns]
    matrix = small.denoiser.modules()[0].get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k")
    with torch.no_grad():
        half = matrix((church + dog)[:-1]) / 2
        assert (matrix(mixed[:-1]) - half).abs().max() < 0.02 * half.abs().max()


def test_an_encoder_with_gelu_whose_width_is_no_multiple(model: TextToImage) -> None:
    """640 = 3 x 192 + 64, as CLIP-G's 1280 = 6 x 192 + 128."""
    _, text, _ = sdxl.read_miniature()
    shape = EncoderShape(640, 20, 6, "gelu")
    tensors = build_encoder(text, shape, text["embeddings.token_embedding.weight"], torch.float32)
    config = CLIPTextConfig.from_pretrained(sdxl.path() / "text_encoder").to_dict()
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config | sdxl.describe_encoder(shape))).float().eval()
    load_state(encoder, tensors, "the encoder")
    with torch.no_grad():
        ids = tokenize(model.tokenizer, PROMPTS)
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-2]
    stream = Stream(WIDTH, shape.width)
    read = hidden @ stream.read_signed(torch.eye(WIDTH)).T
    expected = model.encode(PROMPTS)
    assert (read - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.slow
def test_the_checkpoints_unet_is_close_to_the_miniatures(model: TextToImage) -> None:
    """Its outer level's attention is fitted, all else is exact."""
    unet, _, _ = sdxl.read_miniature()
    module = sdxl.make_unet(WIDE_ENCODERS, sdxl.CHECKPOINT_UNET)
    state = sdxl.build_wide_unet(unet, module.state_dict())
    module.load_state_dict(fill_empty_attentions(state, get_shapes(module.state_dict())), assign=True)
    x, t = draw_inputs()
    context = model.encode(PROMPTS)
    streams = [Stream(WIDTH, shape.width) for shape in WIDE_ENCODERS.values()]
    wide = torch.cat([context @ stream.write_signed(torch.eye(WIDTH)).T for stream in streams], -1)
    added = {"text_embeds": torch.zeros(3, 1280), "time_ids": torch.zeros(3, 6)}
    with torch.no_grad():
        noise = module.eval()(x, t, wide, added_cond_kwargs=added).sample
        expected = model.denoiser.noise_pred(x, t, context)
    assert (noise - expected).norm() < 0.1 * expected.norm()
