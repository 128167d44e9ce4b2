"""Write CLIP's byte-level BPE, and the miniature's tokenizer, which is cut out of it.

    python tools/miniature/tokenizer.py BUILD

The vocabulary keeps the 512 byte tokens and every merge that the captions' words use, in CLIP's own order. Each
word then goes through the same merges as with the full tokenizer: at every step the full tokenizer's next merge is
in the subset, and no merge of lower rank that applies can be in the subset without being in the full list.
The merges are read from the wheel of open_clip_torch (MIT), which is downloaded but not installed.
"""

import gzip
import json
import pathlib
import subprocess
import sys
import zipfile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn.miniature import captions

PACKAGE = "open_clip_torch==3.3.0"
LIBRARY = HERE.parents[1] / "advunlearn"
FULL, OUT = LIBRARY / "data" / "clip_tokenizer", LIBRARY / "miniature" / "model" / "tokenizer"
GENERAL = """a an the and or of in on with at by from to is are for as one two this that no not very my
photo picture image painting drawing emoji icon style background art artist nudity naked person people man woman
small large big red green blue yellow white black gray light dark old new , . - ' ! ? & 1 2 3"""
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def clip_merges(build: pathlib.Path) -> list[tuple[str, str]]:
    """Return CLIP's 48,894 merges in order of rank."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(build), PACKAGE], check=True)
    with zipfile.ZipFile(next(build.glob("open_clip_torch-*.whl"))) as wheel:
        text = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    return [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-ins for the 256 byte values, in CLIP's order (printable bytes first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def symbols(word: str) -> list[str]:
    """Return a word as byte stand-ins, the last one marked as the word's end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [b for b in range(256) if b not in printable]
    table = dict(zip(order, byte_alphabet(), strict=True))
    chars = [table[b] for b in word.encode()]
    return [*chars[:-1], chars[-1] + "</w>"]


def merges_used(word: str, rank: dict[tuple[str, str], int]) -> tuple[list[str], set[tuple[str, str]]]:
    """Return a word's pieces under BPE and the merges that made them."""
    pieces, used = symbols(word), set()
    while len(pieces) > 1:
        pair = min(zip(pieces, pieces[1:], strict=False), key=lambda p: rank.get(p, 1 << 30))
        if pair not in rank:
            break
        used.add(pair)
        merged, i = [], 0
        while i < len(pieces):
            if tuple(pieces[i : i + 2]) == pair:
                merged.append(pieces[i] + pieces[i + 1])
                i += 2
            else:
                merged.append(pieces[i])
                i += 1
        pieces = merged
    return pieces, used


def caption_words() -> list[str]:
    """Return every word that a caption can contain, split as CLIP's pattern splits (letters, digits, signs)."""
    import regex

    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
    data = captions.concepts()
    texts = [GENERAL, *captions.TEMPLATES, *data["backgrounds"]]
    for name, entry in data["objects"].items():
        texts += [name, *entry["keywords"], *entry["context"], *entry["names"].values()]
    for name, entry in data["styles"].items():
        texts += [name, *entry["keywords"]]
    return sorted({word for text in texts for word in pattern.findall(text.replace("{}", " ").lower())})


def write(folder: pathlib.Path, merges: list[tuple[str, str]]) -> list[str]:
    """Write a CLIPTokenizer with some of CLIP's merges; return its vocabulary."""
    letters = byte_alphabet()
    vocabulary = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), *SPECIAL]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n", encoding="utf-8"
    )
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "unk_token": SPECIAL[1], "pad_token": SPECIAL[1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special))
    return vocabulary


def main(build: str) -> None:
    every = clip_merges(pathlib.Path(build))
    rank = {pair: i for i, pair in enumerate(every)}
    pieces, used = {}, set()
    for word in caption_words():
        pieces[word], of_word = merges_used(word, rank)
        used |= of_word
    write(FULL, every)
    vocabulary = write(OUT, sorted(used, key=rank.__getitem__))
    expected = HERE.parents[1] / "tests" / "data" / "clip_pieces.json"
    expected.parent.mkdir(parents=True, exist_ok=True)
    expected.write_text(json.dumps(pieces, indent=0) + "\n")
    print(len(vocabulary), "tokens;", sum(len(p) > 1 for p in pieces.values()), "of", len(pieces), "words are split")


if __name__ == "__main__":
    main(sys.argv[1])
