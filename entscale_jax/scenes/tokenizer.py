"""Writes the small CLIP tokenizer of the built-in model: any text tokenizes, each word of a caption is one token."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from ..metrics.captions import COLOURS, SHAPES

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 24
# The words of captions, then those that later captions may need: the model's embedding table is made for all of them.
WORDS = (
    *("a", "and", ",", *COLOURS, *SHAPES),
    *(f"{shape}s" for shape in SHAPES),
    *("one", "two", "three", "four", "the", "of", "with", "no", "same", "colour", "left", "right", "above", "below"),
)


def write_tokenizer(folder: str | Path) -> None:
    """Writes a byte-level BPE tokenizer as `CLIPTokenizer` and `StableDiffusionPipeline` open it.

    Ids are ordered as OpenAI's CLIP orders them: bytes, bytes that end a word, merges, start, end; so the end is the
    largest id, which pooling by either of transformers' conventions relies on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = word_merges(WORDS)
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", special)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config | special)


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte, in the order of GPT-2's byte-level BPE.

    Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def word_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, earliest first, after which each ASCII word is one token.

    Byte-pair encoding (Sennrich et al. 2016, algorithm 1) trained on the words until nothing is left to merge, so the
    encoder repeats the same steps. Equal counts go by first occurrence.
    """
    splits = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for split in splits for pair in pairwise(split)):
        best = max(pairs, key=pairs.__getitem__)
        merges.append(best)
        splits = [_merge(split, best) for split in splits]
    return merges


def _merge(split: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in split:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
