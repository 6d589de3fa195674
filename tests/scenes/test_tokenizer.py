"""The tokenizer's files, opened by transformers and reckoned again here from vocab.json and merges.txt alone."""

import json
import logging
import re
import unicodedata
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from entscale_jax.scenes.captions import balanced_captions
from entscale_jax.scenes.tokenizer import WORDS, write_tokenizer

SHIPPED = Path(__file__).parents[2] / "entscale_jax/scenes/model/tokenizer"
LONGEST = "a red circle, a blue square, a green triangle and a yellow square"
FOREIGN = [
    "",
    "   ",
    "zebra",
    "redcircle",
    "Ünïcode",
    "日本語",
    "it's 42!",
    "a red\tcircle\n",
    "naïve ☃ snow",
    "Ω\x07~",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "made" / "here"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return CLIPTokenizer.from_pretrained(str(folder))


class Reckoned:
    """CLIP's byte-pair encoding as its paper's code defines it, without any library of tokenizers."""

    def __init__(self, folder: Path):
        self.ids = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
        self.ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}
        spare = iter(range(256, 512))
        self.symbols = [self.symbol(byte) or chr(next(spare)) for byte in range(256)]

    @staticmethod
    def symbol(byte: int) -> str | None:
        return chr(byte) if chr(byte).isprintable() and byte != ord(" ") else None

    def __call__(self, text: str) -> list[int]:
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
        words = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", text)
        tokens = [token for word in words for token in self.word(word)]
        return [self.ids[token] for token in ("<|startoftext|>", *tokens, "<|endoftext|>")]

    def word(self, word: str) -> list[str]:
        parts = [self.symbols[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, i = min((self.ranks.get((parts[i], parts[i + 1]), 10**9), i) for i in range(len(parts) - 1))
            if rank == 10**9:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts


def test_each_caption_has_one_token_a_word_and_two(tokenizer):
    for caption in [*balanced_captions(60), LONGEST, LONGEST.replace(",", " with", 1)]:
        words = caption.replace(",", " ,").split()
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(words) + 2 <= 24
        assert tokenizer.convert_ids_to_tokens(ids[1:-1]) == [f"{word}</w>" for word in words]


def test_each_word_of_the_vocabulary_is_one_token_and_another_is_not(tokenizer):
    assert {"a", "and", ",", "squares", "one", "two", "three", "four", "left", "below"} <= set(WORDS)
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    assert len(tokenizer("zebra").input_ids) > 3


@pytest.mark.parametrize("text", [*FOREIGN, *balanced_captions(12), "the red squares of four, above left"])
def test_ids_are_those_reckoned_from_the_files(tokenizer, folder, text):
    assert tokenizer(text).input_ids == Reckoned(folder)(text)


def test_a_lost_merge_changes_the_reckoning(tokenizer, folder):
    reckoned = Reckoned(folder)
    reckoned.ranks.popitem()
    assert any(tokenizer(word).input_ids != reckoned(word) for word in WORDS)


def test_any_text_tokenizes_without_the_unknown_token(tokenizer, folder):
    symbols = [token for token in Reckoned(folder).ids if len(token.removesuffix("</w>")) == 1]
    assert len(symbols) == 512
    for text in FOREIGN:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]


def test_settings_are_those_that_the_pipeline_relies_on(tokenizer):
    assert tokenizer.model_max_length == 24
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == max(tokenizer.get_vocab().values())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_captions_pad_and_cut_to_24(tokenizer):
    ids = tokenizer(["a red circle", "a zebra " * 12], padding="max_length", truncation=True).input_ids
    end = tokenizer.eos_token_id
    assert [len(row) for row in ids] == [24, 24]
    assert ids[0][4:] == [end] * 20
    assert ids[1][-1] == end


def test_opens_without_a_word_from_transformers(folder, caplog):
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        CLIPTokenizer.from_pretrained(str(folder))(LONGEST)
        assert not caplog.records
        CLIPTokenizer.from_pretrained(str(folder))("zebra " * 24)  # too long, which it does say
        assert caplog.records
    finally:
        library.removeHandler(caplog.handler)


def test_shipped_tokenizer_is_this_one(folder):
    """A word added after training would shift every id under the shipped weights."""
    if not SHIPPED.is_dir():
        pytest.skip("no model is shipped yet")
    for name in ("vocab.json", "merges.txt"):
        assert (SHIPPED / name).read_bytes() == (folder / name).read_bytes()
