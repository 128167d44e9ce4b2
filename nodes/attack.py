"""Attack one prompt inside the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.attacks import ATTACK_NAMES, JUDGE_ONLY, P4DConfig
from ..advunlearn.config.concept import ConceptConfig, quote_name
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import check_name, find_name_fault
from .attack_pictures import PICTURES
from .evaluation_settings import attack_settings_input, check_attack_settings
from .judges import Judge
from .loaded_files import check_loaded_files
from .status import Status, refuse, with_status
from .widgets import output, resolution, schema, seed, settings, widget

if TYPE_CHECKING:
    from torch import Tensor

    from ..advunlearn.attacks.base import AttackContext
    from ..advunlearn.attacks.single_prompt import PromptAttackResult
    from ..advunlearn.models.loading import TextToImage
    from .host import Bar

PREFIX_ATTACKS = ("unlearndiffatk", "soft_prefix")  # insert tokens before the prompt
EMBEDDING_ATTACKS = ("soft_prefix", "cce")  # their results are no words
ATTACKS = (*PREFIX_ATTACKS, *(name for name in ATTACK_NAMES if name not in (*PREFIX_ATTACKS, *JUDGE_ONLY)))
REFUSES_EMBEDDINGS = "{what}, but this CLIP refuses embeddings: set embeddings to allow in Load Robust CLIP"


class AdversarialPromptAttack(io.ComfyNode):
    """Search for a prompt that brings an erased concept back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnAttack",
            display_name="Adversarial Prompt Attack",
            description="Search for tokens that make a model generate a concept it should have forgotten, with "
            "UnlearnDiffAtk or another attack, and draw what it brings back. The inputs are not changed.",
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
        judge: Any = None,
        pictures: int = PICTURES,
        **values: Any,
    ) -> io.NodeOutput:
        """Run the attack; return its best result as conditioning, as text and as an embedding, and pictures of it.

        Raises AdvUnlearnError for an attack that lacks the original CLIP or takes one text encoder only, for the
        settings of another attack, for a prompt that is empty, too long, or has weights or embeddings, for restarts or
        pictures below 1, for an image or a judge without a VAE, for a concept that the judge does not know, for an
        invalid name, and for a CLIP that is of another family than the MODEL, or refuses the result's embeddings.
        """
        from ..advunlearn.models.encoder_files import embedding_file
        from . import attack_pictures, folders, host, prompt_text

        check_loaded_files(cls.hidden)
        words = _check_inputs(clip, prompt, attack, restarts, pictures, embedding_name, original_clip)
        label = _find_label(judge, vae, concept.strip() or words)
        overrides = check_attack_settings(attack_settings, [attack]).get(attack)
        config = settings(EvaluateConfig, values, attack_steps=steps, attack_tokens=tokens)
        bar = host.Bar(steps + len(attack_pictures.SIDES), status.node_id)
        status.show("loading the model")
        with host.enable_gradients():
            loaded = host.make_model(model, clip, vae, resolution)
            loaded.denoiser.on_predict = status.beat
            attacked = _fit_prompt(loaded, clip, prompt, words, _count_inserted(attack, words, tokens, overrides))
            original = original_clip and host.make_other_encoder(attacked, original_clip)
            status.show("drawing the target" if target is None and image is None else "encoding the target")
            x_0 = host.encode_target(attacked, original, words, config, target, image, vae)
            context = _make_context(attacked, original, words, concept, x_0)
            result = _search(status, bar, context, attack, restarts, config, overrides)
            embedding = folders.save_embedding(embedding_name, embedding_file(result.embeddings, attacked.text_encoder))
        text, typed = prompt_text.write_prompt(clip, attacked.tokenizer, result, embedding)
        conditioning = _encode_text(clip, text, len(result.embeddings) if embedding in text else 0)
        encoded = [_encode_text(clip, prompt, 0), conditioning]
        compared = attack_pictures.compare(status, bar, loaded, encoded, x_0.shape[1:], config, pictures, judge, label)
        picture = host.to_image(compared.draw([prompt, text]))
        status.show("\n".join([*(compared.describe()[:1] or ["done"]), _describe_losses(result), text]))
        lines = [_describe_attack(attack, prompt, steps, result), *compared.describe(), text]
        report = "\n".join([*lines, *prompt_text.find_differences(clip, result, text, typed)])
        shown = ui.PreviewImage(picture, cls=cls)
        return io.NodeOutput(conditioning, text, embedding, {"loss": result.losses}, report, picture, ui=shown)


def find_prompt_fault(prompt: str) -> str:
    """Return why a prompt cannot be attacked; "" if it can."""
    return "" if prompt.strip() else "prompt is empty; name the concept, for example: a church"


def _check_inputs(
    clip: Any, prompt: str, attack: str, restarts: int, pictures: int, embedding_name: str, original_clip: Any
) -> str:
    """Return the words of the prompt. Raises AdvUnlearnError, before any work, for inputs that cannot be attacked.

    Prompt, numbers and name are checked again because `validate_inputs` and widgets do not see the values of links.
    """
    from ..advunlearn.attacks.base import NEEDS
    from ..advunlearn.attacks.registry import attack_class
    from . import clip_l, prompt_text, text_encoders

    check_name(embedding_name)
    if fault := find_prompt_fault(prompt):
        raise AdvUnlearnError(fault)
    AdversaryConfig(restarts=restarts)
    if pictures < 1:
        raise AdvUnlearnError(f"pictures is {pictures}; it must be at least 1")
    needs = attack_class(attack).needs
    if "one encoder" in needs and text_encoders.is_sdxl(clip):
        raise AdvUnlearnError(f"{attack} needs {NEEDS['one encoder']}, and this CLIP is SDXL's; choose another attack")
    if original_clip is None and "original encoder" in needs:
        raise AdvUnlearnError(f"{attack} needs the CLIP before erasing; connect it to original_clip")
    if attack in EMBEDDING_ATTACKS and clip_l.refuses_embeddings(clip):
        raise AdvUnlearnError(REFUSES_EMBEDDINGS.format(what=f"{attack} finds embeddings"))
    return prompt_text.find_plain_words(clip, prompt)


def _find_label(judge: Any, vae: Any, name: str) -> str:
    """Return the judge's name of the concept; "" without a judge. Raises AdvUnlearnError for a judge without a VAE."""
    from . import attack_pictures

    if judge is None:
        return ""
    if vae is None:
        raise AdvUnlearnError("judge is connected but vae is not; connect the VAE that decodes the pictures for it")
    return attack_pictures.find_label(judge, name)


def _fit_prompt(loaded: TextToImage, clip: Any, prompt: str, words: str, inserted: int) -> TextToImage:
    """Return the model for a prompt with this many inserted tokens. Raises AdvUnlearnError for one that is too long."""
    from . import prompt_text

    attacked = loaded.fit_prompts([words], inserted)
    prompt_text.check_prompt(clip, attacked.tokenizer, prompt, words, inserted)
    return attacked


def _search(
    status: Status,
    bar: Bar,
    context: AttackContext,
    attack: str,
    restarts: int,
    config: EvaluateConfig,
    overrides: Mapping[str, Any] | None,
) -> PromptAttackResult:
    """Run an attack; show each step and its loss."""
    from ..advunlearn.attacks.single_prompt import attack_prompt

    def follow(step: int, loss: float) -> None:
        status.update(f"attacking: step {step} of {config.attack_steps}, loss {loss:.4f}")
        bar.update(step)

    return attack_prompt(context, attack, restarts=restarts, config=config, overrides=overrides, on_step=follow)


def _describe_attack(attack: str, prompt: str, steps: int, result: PromptAttackResult) -> str:
    budget = f"({steps} steps, {len(result.embeddings)} tokens, best of {result.restarts})"
    return f"{attack} on {prompt!r}: denoising {_describe_losses(result)} {budget}"


def _describe_losses(result: PromptAttackResult) -> str:
    return f"loss {result.loss_before:.4f} before, {result.loss:.4f} after"


def _inputs() -> list[Any]:
    """Return the inputs; their order is part of saved graphs."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x or SDXL model"),
        io.Clip.Input("clip", tooltip="the CLIP to attack, for example a robust one"),
        io.String.Input("prompt", default="a church", tooltip="the prompt that names the concept"),
        io.String.Input(
            "concept",
            default="",
            tooltip="name of the concept in the prompt, for the judge, ring_a_bell, mma and cce (empty: the whole "
            "prompt)",
        ),
        io.Combo.Input(
            "attack",
            options=list(ATTACKS),
            tooltip="tokens before the prompt: unlearndiffatk (words), soft_prefix (embeddings in a ball "
            "around real tokens); tokens between its words: p4d_k; a new prompt: p4d_n, pez, ring_a_bell, and "
            "mma (without the concept's words); a new word for the concept: cce. All but unlearndiffatk, "
            "soft_prefix and cce need original_clip. pez, ring_a_bell and mma are for SD 1.x",
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
        io.Vae.Input("vae", optional=True, tooltip="decodes the pictures and encodes the image"),
        attack_settings_input("the settings node of the chosen attack; without one, the defaults that it shows"),
        Judge.Input("judge", optional=True, tooltip="decides which pictures show the concept; needs vae"),
        io.Int.Input(
            "pictures",
            default=PICTURES,
            min=1,
            max=16,
            optional=True,
            tooltip="pictures without and with the attack, each pair from the same noise",
        ),
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
        output(io.String, "report", tooltip="summary: the loss before and after, the judge's verdict, and the prompt"),
        io.Image.Output(
            "IMAGE",
            tooltip="pictures without and with the attack, side by side; framed: the judge sees the concept in them",
        ),
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


def _encode_text(clip: Any, text: str, embeddings: int) -> Any:
    """Encode a result as CLIP Text Encode does. Raises AdvUnlearnError if it has another number of embeddings there."""
    from . import clip_l

    tokens = clip.tokenize(text)
    if clip_l.count_embeddings(tokens) != embeddings:
        raise AdvUnlearnError(REFUSES_EMBEDDINGS.format(what=f"the result, {text!r}, has embeddings"))
    return clip.encode_from_tokens_scheduled(tokens)
