"""Attack a prompt inside the graph."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config import AttackConfig, EvaluateConfig
from ..advunlearn.errors import AdvUnlearnError
from .widgets import output, resolution, schema, settings, widget

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
                widget(EvaluateConfig, "attack_steps", id="steps", least=1),
                widget(EvaluateConfig, "attack_tokens", id="tokens"),
                widget(AttackConfig, "restarts"),
                widget(EvaluateConfig, "seed"),
                resolution("size of the target picture where none is connected"),
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
                output(io.String, "adversarial_prompt", tooltip="typed into CLIP Text Encode it gives the same "
                       "conditioning"),
                output(io.String, "embedding", tooltip="the saved tokens: put this in front of any prompt"),
                output(io.LossMap, "loss_map", tooltip="the attack's loss, for the loss graph"),
                output(io.String, "report", tooltip="what was found"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, embedding_name: str | None = None) -> bool | str:
        """Refuse what cannot work before the graph runs; None is what a link brings."""
        if prompt is not None and not prompt.strip():
            return "prompt is empty; name the concept, for example: a church"
        if embedding_name is not None and not re.fullmatch(r"[\w.-]+", embedding_name):
            return f"embedding_name is {embedding_name!r}; a prompt can name it only if it is letters, digits, . _ -"
        return True

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompt: str, attack: str, steps: int, tokens: int, restarts: int, resolution: int,
        embedding_name: str, original_clip: Any = None, target: Any = None, image: Any = None, vae: Any = None,
        **values: Any,
    ) -> io.NodeOutput:  # fmt: skip
        """Attack; return the best prefix in every form a graph can use."""
        from ..advunlearn.attacks.prompt import attack_prompt
        from ..advunlearn.text_encoder import tokenize
        from . import clip_l, folders, host

        config = settings(EvaluateConfig, values, attack_steps=steps, attack_tokens=tokens)
        bar = host.Bar(steps, cls.hidden.unique_id)
        with host.gradients():
            attacked = host.text_to_image(model, clip, resolution=resolution)
            plain = tokenize(attacked.tokenizer, [prompt])[0].tolist()
            if not clip_l.reads_as(clip, prompt, plain) or plain.index(attacked.tokenizer.eos_token_id) + tokens > 76:
                raise AdvUnlearnError(
                    f"the prompt has weights or embeddings, or over {75 - tokens} tokens; give fewer, plain words"
                )
            x_0 = host.target_latents(attacked, original_clip, prompt, config, target, image, vae)
            found = attack_prompt(
                attacked.denoiser, attacked.text_encoder, attacked.tokenizer, prompt, x_0, name=attack,
                restarts=restarts, config=config, on_step=lambda step, loss: bar.update(step),
            )  # fmt: skip
            embedding = folders.save_embedding(embedding_name, found.embeddings)
            # Text only where CLIP Text Encode reads it as what was found: brackets and the like are its own language.
            ids = tokenize(attacked.tokenizer, [found.text])[0].tolist()
            typed = found.exact and clip_l.reads_as(clip, found.text, ids)
        text = found.text if typed else f"{embedding} {prompt}"
        report = (
            f"{attack} on {prompt!r}: denoising loss {found.loss_before:.4f} without, {found.loss:.4f} with the prefix "
            f"({steps} steps, {tokens} tokens, best of {restarts})\n{text}"
        )
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return io.NodeOutput(conditioning, text, embedding, {"loss": found.losses}, report)
