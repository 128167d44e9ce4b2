"""Prompts between ComfyUI, whose prompts have weights and embeddings besides words, and attacks, which take words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..advunlearn.errors import AdvUnlearnError

if TYPE_CHECKING:
    from ..advunlearn.attacks.single_prompt import PromptAttackResult
    from ..advunlearn.models.tokenizer import Tokenizer

OTHER_TOKENS = "CLIP Text Encode splits this text into other tokens than the attack found; the effect may differ"
OTHER_CHUNKS = "CLIP Text Encode keeps words together that the attack divided into two chunks; the effect may differ"
EMBEDDING, NOTHING = r"(?<!\S)embedding:[^\s,]+", r"$.^"


def find_plain_words(clip: Any, prompt: str) -> str:
    """Return the words of a prompt, as CLIP Text Encode reads them.

    Raises AdvUnlearnError that names every weight and every embedding: an attack searches with plain words.
    """
    from comfy import sd1_clip

    from . import clip_l

    parts = [
        (sd1_clip.unescape_important(text), weight)
        for text, weight in sd1_clip.token_weights(sd1_clip.escape_important(prompt), 1.0)
    ]
    embedding = NOTHING if clip_l.refuses_embeddings(clip) else EMBEDDING  # refused, they are plain text
    named = [
        name
        for text, weight in parts
        for name in ([f"({text.strip()}:{weight:g})"] if weight != 1 else re.findall(embedding, text))
    ]
    words = "".join(re.sub(embedding, "", text) for text, _ in parts)
    if named:
        words = " ".join(words.split())
        attackable = f"Attack {words!r}" if words else "Attack plain words"
        raise AdvUnlearnError(
            f"the prompt has {', '.join(named)}, but attacks take plain words, without weights and embeddings. "
            f"{attackable}, and put them around the adversarial prompt in CLIP Text Encode"
        )
    return words


def escape_brackets(text: str) -> str:
    """Return a text in which ComfyUI reads brackets as characters, not as weights."""
    return text.replace("(", r"\(").replace(")", r"\)")


def check_prompt(clip: Any, tokenizer: Tokenizer, prompt: str, words: str, inserted: int) -> None:
    """Raise AdvUnlearnError for a prompt that is too long with the inserted tokens, or whose words are other tokens.

    Args:
        clip, tokenizer: the host's CLIP, and the library's tokenizer.
        prompt, words: the prompt as it is written, and its plain words.
        inserted: number of tokens that the attack adds.
    """
    from ..advunlearn.models.prompt_tokens import check_prompt_length
    from . import clip_l

    check_prompt_length(tokenizer, [words], inserted)
    if not clip_l.tokenizes_to(clip, prompt, _token_ids(tokenizer, words)):
        raise AdvUnlearnError("CLIP Text Encode splits the prompt into other tokens than CLIP-L has; use plain words")


def write_prompt(clip: Any, tokenizer: Tokenizer, result: PromptAttackResult, embedding: str) -> tuple[str, bool]:
    """Return the text for CLIP Text Encode, and whether it is the attack's own, typed, with exactly its tokens.

    Where the own text would give other tokens, it is the embedding in its surrounding text.
    """
    from . import clip_l

    text = escape_brackets(result.text)
    typed = result.exact and clip_l.tokenizes_to(clip, text, _token_ids(tokenizer, result.text))
    if typed or result.surrounding_text is None:
        return text, typed
    before, after = map(escape_brackets, result.surrounding_text)
    return " ".join(filter(None, [before, embedding, after])), False


def find_differences(clip: Any, result: PromptAttackResult, text: str, typed: bool) -> list[str]:
    """Return lines about what CLIP Text Encode reads otherwise than the attack did."""
    from . import clip_l

    other_tokens = not typed and result.surrounding_text is None
    other_chunks = clip_l.ends_chunk_early(clip.tokenize(text))
    return [OTHER_TOKENS] * other_tokens + [OTHER_CHUNKS] * other_chunks


def _token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    from ..advunlearn.models.tokenizer import tokenize

    return tokenize(tokenizer, [text])[0].tolist()  # type: ignore[no-any-return]
