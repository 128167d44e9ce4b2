"""Attack a prompt inside the graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..advunlearn.config import AttackConfig, EvaluateConfig
from .widgets import schema, settings, widget

ATTACKS = ("unlearndiffatk", "soft_prefix")


class AdversarialPromptAttack(io.ComfyNode):
    """Search a prompt that brings a concept back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnAttack",
            display_name="Adversarial Prompt Attack",
            description="Search tokens in front of a prompt that make a model draw what it should have forgotten "
            "(UnlearnDiffAtk, Zhang et al., ECCV 2024). Nothing that is connected is changed.",
            search_aliases=["red team", "unlearndiffatk", "adversarial prompt"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="a Stable Diffusion 1.x model"),
                io.Clip.Input("clip", tooltip="the CLIP that is attacked, a robust one for example"),
                io.String.Input("prompt", default="a church", tooltip="the prompt that names the concept"),
                io.Combo.Input("attack", options=list(ATTACKS), tooltip="unlearndiffatk: words, found by a search over "
                               "the vocabulary; soft_prefix: embeddings, bounded by a ball around real tokens"),
                widget(EvaluateConfig, "attack_steps", id="steps"),
                widget(EvaluateConfig, "attack_tokens", id="tokens"),
                widget(AttackConfig, "restarts"),
                widget(EvaluateConfig, "seed"),
                io.Int.Input("resolution", default=512, min=64, max=2048, step=64,
                             tooltip="size of the target picture where none is connected, in pixels"),
                io.String.Input("embedding_name", default="adversarial",
                                tooltip="file name in models/embeddings, for embedding:name in any prompt"),
                io.Clip.Input("original_clip", optional=True, tooltip="the CLIP before erasing; it draws the target "
                              "where none is connected"),
                io.Latent.Input("target", optional=True, tooltip="a picture that shows the concept, as latents"),
                io.Image.Input("image", optional=True, tooltip="a picture that shows the concept; needs vae"),
                io.Vae.Input("vae", optional=True, tooltip="encodes image"),
                widget(EvaluateConfig, "attack_lr", fold=True),
                widget(EvaluateConfig, "prefix_lr", fold=True),
                widget(EvaluateConfig, "prefix_radius", fold=True),
            ],
            outputs=[
                io.Conditioning.Output("CONDITIONING", tooltip="of the adversarial prompt, under the attacked CLIP"),
                io.String.Output("prompt", tooltip="the adversarial prompt; typed into CLIP Text Encode it gives the "
                                 "same conditioning"),
                io.String.Output("embedding", tooltip="the saved tokens: put this in front of any prompt"),
                io.LossMap.Output("loss_map", tooltip="the attack's loss, for the loss graph"),
                io.String.Output("report", tooltip="what was found"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt: str, **_: Any) -> bool | str:
        """Refuse an empty prompt before the graph runs."""
        return True if prompt.strip() else "prompt is empty; name the concept, for example: a church"

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompt: str, attack: str, steps: int, tokens: int, restarts: int, resolution: int,
        embedding_name: str, original_clip: Any = None, target: Any = None, image: Any = None, vae: Any = None,
        **values: Any,
    ) -> io.NodeOutput:  # fmt: skip
        """Attack; return the best prefix in every form a graph can use."""
        from ..advunlearn.attacks.prompt import attack_prompt
        from . import host

        config = settings(EvaluateConfig, values, attack_steps=steps, attack_tokens=tokens)
        bar = host.Bar(steps, cls.hidden.unique_id)
        with host.gradients():
            original = original_clip if original_clip is not None else clip
            x_0 = host.target_latents(model, original, prompt, resolution, config, target, image, vae)
            attacked = host.text_to_image(model, clip, resolution=8 * x_0.shape[-1])
            found = attack_prompt(
                attacked.denoiser, attacked.text_encoder, attacked.tokenizer, prompt, x_0, name=attack,
                restarts=restarts, config=config, on_step=lambda step, loss: bar.update(step),
            )  # fmt: skip
            embedding = host.save_embedding(embedding_name, found.embeddings)
        text = found.text if found.exact else f"{embedding} {prompt}"
        report = (
            f"{attack} on {prompt!r}: denoising loss {found.loss_before:.4f} without, {found.loss:.4f} with the prefix "
            f"({steps} steps, {tokens} tokens, best of {restarts})\n{text}"
        )
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return io.NodeOutput(conditioning, text, embedding, {"loss": found.losses}, report)
