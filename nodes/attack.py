"""Attack one prompt inside the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.attacks import ATTACK_NAMES, JUDGE_ONLY, P4DConfig
from ..advunlearn.config.concept import ConceptConfig, quote_name
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import check_name, find_name_fault
from .evaluation_settings import attack_settings_input, check_attack_settings
from .loaded_files import check_loaded_files
from .status import Status, refuse, with_status
from .widgets import output, resolution, schema, seed, settings, widget

if TYPE_CHECKING:
    from torch import Tensor

    from ..advunlearn.attacks.base import AttackContext
    from ..advunlearn.attacks.single_prompt import PromptAttackResult
    from ..advunlearn.models.tokenizer import Tokenizer

PREFIX_ATTACKS = ("unlearndiffatk", "soft_prefix")  # insert tokens before the prompt
EMBEDDING_ATTACKS = ("soft_prefix", "cce")  # their results are no words
ATTACKS = (*PREFIX_ATTACKS, *(name for name in ATTACK_NAMES if name not in (*PREFIX_ATTACKS, *JUDGE_ONLY)))
OTHER_TOKENS = "CLIP Text Encode splits this text into other tokens than the attack found; the effect may differ"
REFUSES_EMBEDDINGS = "{what}, but this CLIP refuses embeddings: set embeddings to allow in Load Robust CLIP"
OTHER_CHUNKS = "CLIP Text Encode keeps words together that the attack divided into two chunks; the effect may differ"


class AdversarialPromptAttack(io.ComfyNode):
    """Search for a prompt that brings an erased concept back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnAttack",
            display_name="Adversarial Prompt Attack",
            description="Search for tokens that make a model generate a concept it should have forgotten, with "
            "UnlearnDiffAtk or another attack. The inputs are not changed.",
            search_aliases=["red team", "adversarial prompt", "jailbreak", *ATTACKS],
            is_output_node=True,
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, embedding_name: str | None = None) -> bool | str:
        """Reject an empty prompt and an invalid name before the graph runs; the host passes None for a linked input."""
        if prompt is not None and (fault := find_prompt_fault(prompt)):
            return fault
        fault = embedding_name is not None and find_name_fault(embedding_name)
        return refuse("embedding_name", fault) if fault else True

    @classmethod
    @with_status
    def execute(
        cls,
        status: Status,
        model: Any,
        clip: Any,
        prompt: str,
        concept: str,
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
        attack_settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Run the attack; return its best result as conditioning, as text and as an embedding.

        Raises AdvUnlearnError if the attack needs the original CLIP and none is connected, for the settings of another
        attack, for a prompt that is empty, too long, or has weights or embeddings, for restarts below 1, for an image
        without a VAE, for an invalid name, and for a CLIP that refuses the embeddings of the result.
        """
        from ..advunlearn.attacks.single_prompt import attack_prompt
        from ..advunlearn.models.encoder_files import embedding_file
        from . import clip_l, folders, host, text_encoders

        check_loaded_files(cls.hidden)
        _check_inputs(clip, prompt, attack, restarts, embedding_name, original_clip)
        overrides = check_attack_settings(attack_settings, [attack]).get(attack)
        config = settings(EvaluateConfig, values, attack_steps=steps, attack_tokens=tokens)
        bar = host.Bar(steps, status.node_id)

        def follow(step: int, loss: float) -> None:
            status.update(f"attacking: step {step} of {steps}, loss {loss:.4f}")
            bar.update(step)

        status.show("loading the model")
        with host.enable_gradients():
            attacked = host.make_model(model, clip, resolution=resolution)
            attacked.denoiser.on_predict = status.beat
            inserted = _count_inserted(attack, prompt, tokens, overrides)
            attacked = attacked.fit_prompts([prompt], inserted)
            _check_prompt(clip, attacked.tokenizer, prompt, inserted)
            original = original_clip and text_encoders.make_text_encoder(original_clip, attacked.denoiser.device)
            x_0 = host.encode_target(attacked, original, prompt, config, target, image, vae)
            context = _make_context(attacked, original, prompt, concept, x_0)
            result = attack_prompt(
                context, attack, restarts=restarts, config=config, overrides=overrides, on_step=follow
            )
            embedding = folders.save_embedding(embedding_name, embedding_file(result.embeddings, attacked.text_encoder))
            typed = result.exact and clip_l.tokenizes_to(clip, result.text, _token_ids(attacked.tokenizer, result.text))
        text = _text_for_comfyui(result, embedding, typed)
        losses = f"loss {result.loss_before:.4f} before, {result.loss:.4f} after"
        report = (
            f"{attack} on {prompt!r}: denoising {losses} ({steps} steps, {len(result.embeddings)} tokens, best of "
            f"{result.restarts})\n{text}{_describe_differences(clip, result, text, typed)}"
        )
        conditioning = _encode_text(clip, text, len(result.embeddings) if embedding in text else 0)
        status.show(f"done: {losses}\n{text}")
        return io.NodeOutput(conditioning, text, embedding, {"loss": result.losses}, report)


def find_prompt_fault(prompt: str) -> str:
    """Return why a prompt cannot be attacked; "" if it can."""
    return "" if prompt.strip() else "prompt is empty; name the concept, for example: a church"


def _check_inputs(clip: Any, prompt: str, attack: str, restarts: int, embedding_name: str, original_clip: Any) -> None:
    """Raise AdvUnlearnError, before any work, for inputs that cannot be attacked.

    Prompt, restarts and name are checked again because `validate_inputs` and widgets do not see the values of links.
    """
    from ..advunlearn.attacks.registry import attack_class
    from . import clip_l

    check_name(embedding_name)
    if fault := find_prompt_fault(prompt):
        raise AdvUnlearnError(fault)
    AdversaryConfig(restarts=restarts)
    if original_clip is None and "original encoder" in attack_class(attack).needs:
        raise AdvUnlearnError(f"{attack} needs the CLIP before erasing; connect it to original_clip")
    if attack in EMBEDDING_ATTACKS and clip_l.refuses_embeddings(clip):
        raise AdvUnlearnError(REFUSES_EMBEDDINGS.format(what=f"{attack} finds embeddings"))


def _inputs() -> list[Any]:
    """Return the inputs; their order is part of saved graphs."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x or SDXL model"),
        io.Clip.Input("clip", tooltip="the CLIP to attack, for example a robust one"),
        io.String.Input("prompt", default="a church", tooltip="the prompt that names the concept"),
        io.String.Input(
            "concept",
            default="",
            tooltip="name of the concept in the prompt, for ring_a_bell, mma and cce (empty: the whole prompt)",
        ),
        io.Combo.Input(
            "attack",
            options=list(ATTACKS),
            tooltip="tokens before the prompt: unlearndiffatk (words), soft_prefix (embeddings in a ball "
            "around real tokens); tokens between its words: p4d_k; a new prompt: p4d_n, pez, ring_a_bell, and "
            "mma (without the concept's words); a new word for the concept: cce. All but unlearndiffatk, "
            "soft_prefix and cce need original_clip",
        ),
        widget(EvaluateConfig, "attack_steps", id="steps", least=1),
        widget(EvaluateConfig, "attack_tokens", id="tokens"),
        widget(AdversaryConfig, "restarts"),
        seed(EvaluateConfig),
        resolution("size of the target image if none is connected"),
        io.String.Input(
            "embedding_name",
            default="adversarial",
            tooltip="file name in models/embeddings; use it as embedding:name in any prompt",
        ),
        io.Clip.Input(
            "original_clip",
            optional=True,
            tooltip="the CLIP before erasing; it generates the target image if none is connected",
        ),
        io.Latent.Input("target", optional=True, tooltip="latents of an image that shows the concept"),
        io.Image.Input("image", optional=True, tooltip="an image that shows the concept; needs vae"),
        io.Vae.Input("vae", optional=True, tooltip="encodes the image"),
        attack_settings_input("the settings node of the chosen attack; without one, the defaults that it shows"),
    ]


def _outputs() -> list[Any]:
    return [
        io.Conditioning.Output("CONDITIONING", tooltip="conditioning of the adversarial prompt, by the attacked CLIP"),
        output(
            io.String,
            "adversarial_prompt",
            tooltip="the adversarial prompt; CLIP Text Encode makes the same conditioning of it",
        ),
        output(io.String, "embedding", tooltip="the adversarial tokens as embedding:name, for any prompt"),
        output(io.LossMap, "loss_map", tooltip="the loss of the attack, for Plot Loss Graph"),
        output(io.String, "report", tooltip="summary: the loss before and after, and the prompt"),
    ]


def _make_context(attacked: Any, original: Any, prompt: str, concept: str, x_0: Tensor) -> AttackContext:
    """Return the attack's view of an adapted model, the CLIP before erasing, the prompt and the target latents."""
    from ..advunlearn.attacks.base import AttackContext, ReferenceModel

    return AttackContext.for_prompt(
        attacked.denoiser,
        attacked.text_encoder,
        attacked.tokenizer,
        prompt,
        x_0,
        reference=ReferenceModel(original, attacked.denoiser),
        concept=ConceptConfig(concept=concept.strip() or quote_name(" ".join(prompt.split()))),
    )


def _count_inserted(attack: str, prompt: str, tokens: int, overrides: Mapping[str, Any] | None) -> int:
    """Return the largest number of tokens by which an attack makes a prompt longer."""
    if attack == "p4d_k":
        return len(prompt.split()) // P4DConfig(**(overrides or {})).word_interval + 1
    return {"cce": 1}.get(attack, tokens * (attack in PREFIX_ATTACKS))


def _token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    from ..advunlearn.models.tokenizer import tokenize

    return tokenize(tokenizer, [text])[0].tolist()  # type: ignore[no-any-return]


def _check_prompt(clip: Any, tokenizer: Tokenizer, prompt: str, inserted: int) -> None:
    """Raise AdvUnlearnError for a prompt with weights or embeddings, or one too long with the inserted tokens."""
    from ..advunlearn.models.prompt_tokens import check_prompt_length
    from . import clip_l

    check_prompt_length(tokenizer, [prompt], inserted)
    if not clip_l.tokenizes_to(clip, prompt, _token_ids(tokenizer, prompt)):
        raise AdvUnlearnError("the prompt has weights or embeddings; write it in plain words")


def _describe_differences(clip: Any, result: PromptAttackResult, text: str, typed: bool) -> str:
    """Return lines about what CLIP Text Encode reads otherwise than the attack did, "" if nothing."""
    from . import clip_l

    other_tokens = not typed and result.surrounding_text is None
    other_chunks = clip_l.ends_chunk_early(clip.tokenize(text))
    return f"\n{OTHER_TOKENS}" * other_tokens + f"\n{OTHER_CHUNKS}" * other_chunks


def _encode_text(clip: Any, text: str, embeddings: int) -> Any:
    """Encode a result as CLIP Text Encode does. Raises AdvUnlearnError if it has another number of embeddings there."""
    from . import clip_l

    tokens = clip.tokenize(text)
    if clip_l.count_embeddings(tokens) != embeddings:
        raise AdvUnlearnError(REFUSES_EMBEDDINGS.format(what=f"the result, {text!r}, has embeddings"))
    return clip.encode_from_tokens_scheduled(tokens)


def _text_for_comfyui(result: PromptAttackResult, embedding: str, typed: bool) -> str:
    """Return the text for CLIP Text Encode: the attack's own, or the embedding in its surrounding text.

    CLIP Text Encode has a syntax of its own (brackets, weights), so that the text itself may not give the tokens back.
    """
    if typed or result.surrounding_text is None:
        return result.text
    before, after = result.surrounding_text
    return " ".join(filter(None, [before, embedding, after]))
