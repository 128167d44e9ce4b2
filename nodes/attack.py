"""Attack a prompt inside the graph."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.attacks import ATTACK_NAMES, JUDGE_ONLY
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.errors import AdvUnlearnError
from .widgets import advanced, output, resolution, schema, settings, widget

FIRST = ("unlearndiffatk", "soft_prefix")
ATTACKS = (*FIRST, *(name for name in ATTACK_NAMES if name not in (*FIRST, *JUDGE_ONLY)))


class AdversarialPromptAttack(io.ComfyNode):
    """Search a prompt that brings a concept back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnAttack",
            display_name="Adversarial Prompt Attack",
            description="Search tokens that make a model draw what it should have forgotten: UnlearnDiffAtk and the "
            "other attacks of the suite. Nothing that is connected is changed.",
            search_aliases=["red team", "adversarial prompt", "jailbreak", *ATTACKS],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="a Stable Diffusion 1.x model"),
                io.Clip.Input("clip", tooltip="the CLIP that is attacked, a robust one for example"),
                io.String.Input("prompt", default="a church", tooltip="the prompt that names the concept"),
                io.Combo.Input(
                    "attack",
                    options=list(ATTACKS),
                    tooltip="in front of the prompt: unlearndiffatk "
                    "(words), soft_prefix (embeddings in a ball around real tokens); between its words: "
                    "p4d_k; in its place: p4d_n, pez, ring_a_bell, and mma without the concept's words; "
                    "cce: a new word for the concept. All but unlearndiffatk, soft_prefix and cce need "
                    "original_clip",
                ),
                widget(EvaluateConfig, "attack_steps", id="steps", least=1),
                widget(EvaluateConfig, "attack_tokens", id="tokens"),
                widget(AdversaryConfig, "restarts"),
                widget(EvaluateConfig, "seed"),
                resolution("size of the target picture where none is connected"),
                io.String.Input(
                    "embedding_name",
                    default="adversarial",
                    tooltip="file name in models/embeddings, for embedding:name in any prompt",
                ),
                io.Clip.Input(
                    "original_clip",
                    optional=True,
                    tooltip="the CLIP before erasing; it draws the target where none is connected",
                ),
                io.Latent.Input("target", optional=True, tooltip="a picture that shows the concept, as latents"),
                io.Image.Input("image", optional=True, tooltip="a picture that shows the concept; needs vae"),
                io.Vae.Input("vae", optional=True, tooltip="encodes image"),
                widget(EvaluateConfig, "attack_lr", fold=True),
                widget(EvaluateConfig, "prefix_lr", fold=True),
                widget(EvaluateConfig, "prefix_radius", fold=True),
                advanced(
                    io.String,
                    "concept",
                    default="",
                    optional=True,
                    tooltip="the concept as the prompt names it, for ring_a_bell, mma and cce; empty: the prompt",
                ),
            ],
            outputs=[
                io.Conditioning.Output("CONDITIONING", tooltip="of the adversarial prompt, under the attacked CLIP"),
                output(
                    io.String,
                    "adversarial_prompt",
                    tooltip="typed into CLIP Text Encode it gives the same conditioning",
                ),
                output(io.String, "embedding", tooltip="what was found as embedding:name, for any prompt"),
                output(io.LossMap, "loss_map", tooltip="the attack's loss, for the loss graph"),
                output(io.String, "report", tooltip="what was found"),
            ],
            hidden=[io.Hidden.unique_id],
        )

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
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        attack: str,
        steps: int,
        tokens: int,
        restarts: int,
        resolution: int,
        embedding_name: str,
        original_clip: Any = None,
        target: Any = None,
        image: Any = None,
        vae: Any = None,
        concept: str = "",
        **values: Any,
    ) -> io.NodeOutput:
        """Attack; return the best of what was found in every form a graph can use."""
        from ..advunlearn.attacks.base import ReferenceModel
        from ..advunlearn.attacks.registry import attack_class
        from ..advunlearn.attacks.single_prompt import attack_prompt
        from ..advunlearn.models.text_encoder import tokenize
        from . import clip_l, folders, host

        if original_clip is None and "original encoder" in attack_class(attack).needs:
            raise AdvUnlearnError(f"{attack} asks the CLIP before erasing what is meant; connect it as original_clip")
        config = settings(EvaluateConfig, values, attack_steps=steps, attack_tokens=tokens)
        bar = host.Bar(steps, cls.hidden.unique_id)
        with host.gradients():
            attacked = host.text_to_image(model, clip, resolution=resolution)
            plain = tokenize(attacked.tokenizer, [prompt])[0].tolist()
            most = 75 - tokens * (attack in FIRST)
            if not clip_l.reads_as(clip, prompt, plain) or plain.index(attacked.tokenizer.eos_token_id) > most + 1:
                raise AdvUnlearnError(
                    f"the prompt has weights or embeddings, or over {most} tokens; give fewer, plain words"
                )
            original = original_clip and clip_l.text_encoder(original_clip, attacked.denoiser.device)
            x_0 = host.target_latents(attacked, original, prompt, config, target, image, vae)
            found = attack_prompt(
                attacked.denoiser,
                attacked.text_encoder,
                attacked.tokenizer,
                prompt,
                x_0,
                name=attack,
                restarts=restarts,
                config=config,
                on_step=lambda step, loss: bar.update(step),
                original=ReferenceModel(original, attacked.denoiser),
                concept=ConceptConfig(concept=concept.strip() or prompt),
            )
            embedding = folders.save_embedding(embedding_name, found.embeddings)
            # Text only where CLIP Text Encode reads it as what was found: brackets and the like are its own language.
            ids = tokenize(attacked.tokenizer, [found.text])[0].tolist()
            typed = found.exact and clip_l.reads_as(clip, found.text, ids)
        text = found.text
        if not typed and found.around is not None:
            text = " ".join(filter(None, [found.around[0], embedding, found.around[1]]))
        report = (
            f"{attack} on {prompt!r}: denoising loss {found.loss_before:.4f} before, {found.loss:.4f} after "
            f"({steps} steps, {len(found.embeddings)} tokens, best of {found.restarts})\n{text}"
        )
        if not typed and found.around is None:
            report += "\nCLIP Text Encode splits this into other tokens than those found, which may say something else"
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return io.NodeOutput(conditioning, text, embedding, {"loss": found.losses}, report)
