"""Train the text encoder as CLIP's is trained: captions against pictures, by contrast.

    python tools/miniature/train_text_encoder.py BUILD [--steps 1500]

The picture side is the judge's features, frozen (locked-image tuning, arXiv 2111.07991); the text side is read at the
end-of-text token. As in Stable Diffusion, the encoder is then frozen while the UNet trains.
"""

import argparse
import pathlib
import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn.formats.detect import PROJECTION
from advunlearn.formats.text_encoders import export_state
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from common import Run, average_into, cosine, images_of

PACKAGE = HERE.parents[1] / "advunlearn" / "miniature"


class TextTower(nn.Module):
    """CLIPTextModel and the projection that the contrastive loss reads."""

    def __init__(self, tokenizer: CLIPTokenizer, features: int) -> None:
        super().__init__()
        self.encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=4,
                num_attention_heads=12,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                projection_dim=192,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                attn_implementation="eager",
            )
        )  # bf16 fused attention is slow backwards on CPUs
        self.project = nn.Linear(192, features, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, ids: Tensor, read: Tensor) -> Tensor:
        """Embed token ids (B, L), read at position `read` (B,): unit vectors (B, features)."""
        hidden = self.encoder(ids).last_hidden_state
        return F.normalize(self.project(hidden[torch.arange(len(ids)), read].float()), dim=-1)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ids (B, L), padded to the longest text or to `length`, and the first end-of-text position (B,)."""
    padding = "max_length" if length else "longest"
    ids = tokenizer(texts, padding=padding, max_length=length or 77, truncation=True, return_tensors="pt").input_ids
    return ids, (ids == tokenizer.eos_token_id).int().argmax(1)


@torch.no_grad()
def picture_features(build: pathlib.Path) -> tuple[dict[str, Tensor], Tensor]:
    """Return the labels and the centred unit features (N, 128) of the training pictures."""
    data, judge = np.load(build / "train.npz"), ConvJudge.from_pretrained(PACKAGE / "judge")
    rows = [judge(images_of(data["images"][i : i + 256])).features for i in range(0, len(data["images"]), 256)]
    features = torch.cat(rows)
    labels = {k: torch.from_numpy(data[k]) for k in ("object", "style", "background")}
    return labels, F.normalize(features - features.mean(0), dim=-1)


@torch.no_grad()
def zero_shot(
    tower: TextTower, tokenizer: CLIPTokenizer, labels: dict[str, Tensor], features: Tensor
) -> dict[str, float]:
    """Return how often a text is nearest to its own object's mean picture, by kind of text."""
    names = captions.objects()
    means = F.normalize(torch.stack([features[labels["object"] == o].mean(0) for o in range(len(names))]), dim=-1)
    kinds = {
        "name": [(n, captions.caption(n)) for n in names],
        "keywords": [(n, captions.caption(captions.keyword_synonym(n))) for n in names],
        "foreign": [(n, captions.caption(w)) for n in names for w in captions.foreign_synonyms(n)],
    }
    scores = {}
    for kind, rows in kinds.items():
        for length in (None, 77):
            ids, end = tokenize(tokenizer, [text for _, text in rows], length)
            read = end if length is None else torch.full_like(end, 60)
            found = (tower(ids, read) @ means.T).argmax(1)
            right = found == torch.tensor([names.index(n) for n, _ in rows])
            scores[kind + ("" if length is None else " at a pad")] = round(right.float().mean().item(), 3)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng, g = random.Random(0), torch.Generator().manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(PACKAGE / "model" / "tokenizer")
    labels, features = picture_features(args.build)
    tower, average = TextTower(tokenizer, features.shape[1]), TextTower(tokenizer, features.shape[1])
    average.load_state_dict(tower.state_dict())
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    run = Run(args.build / "text_encoder.ckpt", tower=tower, average=average, optimizer=optimizer, generator=g)
    classes = [captions.objects(), captions.styles(), captions.backgrounds()]
    for step in run.steps(args.steps):
        rng.seed(step)
        optimizer.param_groups[0]["lr"] = 1e-3 * cosine(step, args.steps, warmup=200)
        # One step in eight pads to 77 and reads at a random pad, since the UNet will attend to the pads too.
        padded = step % 8 == 7
        i = torch.randint(len(features), (args.batch // (3 if padded else 1),), generator=g)
        triples = zip(*(labels[k][i].tolist() for k in ("object", "style", "background")), strict=True)
        texts = [
            captions.random_caption(*(names[n] for names, n in zip(classes, t, strict=True)), rng) for t in triples
        ]
        ids, read = tokenize(tokenizer, texts, 77 if padded else None)
        if padded:
            read = read + ((77 - read) * torch.rand(len(read), generator=g)).long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            text = tower(ids, read)
        logits = tower.log_scale.exp().clamp(max=50) * text.float() @ features[i].T
        target = torch.arange(len(i))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        average_into(average, tower, step, 0.998)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            run.log(step, loss=round(loss.item(), 4), **zero_shot(average, tokenizer, labels, features))
    average.encoder.half().save_pretrained(PACKAGE / "model" / "text_encoder")
    # transformers 5 writes keys without `text_model.`; with it, both 4 and 5 read the file.
    state = {k: v for k, v in export_state(average.encoder).items() if k != PROJECTION}
    save_file(state, PACKAGE / "model" / "text_encoder" / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
