"""Captions become the ids that transformers' own tokenizers give, and what is cut from a caption is quoted."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from transformers import BertTokenizer, CLIPTokenizer

from entscale_jax.errors import UserError
from entscale_jax.parity import random_ldm, random_models
from entscale_jax.weights.tokenizer import Tokenizer, TokenizerKind

CLASSES = {TokenizerKind.CLIP: CLIPTokenizer, TokenizerKind.BERT: BertTokenizer}
CAPTIONS = ["", "a red circle", "A  RED circle!", "two blue squares, 3 zebras & é"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    random_models.make_tokenizer(root / "clip", 23, "!")
    random_ldm._tokenizer(root / "bert")
    return {TokenizerKind.CLIP: root / "clip", TokenizerKind.BERT: root / "bert"}


@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("saved", [False, True], ids=["vocabulary", "tokenizer.json"])
def test_ids_are_those_of_transformers(folders, kind, saved, tmp_path):
    reference = CLASSES[kind].from_pretrained(str(folders[kind]))
    if saved:
        reference.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").is_file()
    ids = Tokenizer(tmp_path if saved else folders[kind], 40, kind)(CAPTIONS)
    expected = reference(CAPTIONS, padding="max_length", max_length=40, truncation=True)["input_ids"]
    assert ids.dtype == np.int32
    assert ids.tolist() == expected


def test_bert_begins_ends_and_pads_with_its_own_tokens(folders):
    tokenizer = Tokenizer(folders[TokenizerKind.BERT], 8, TokenizerKind.BERT)
    words = (folders[TokenizerKind.BERT] / "vocab.txt").read_text().split()
    assert [words[index] for index in tokenizer(["A Red circles"])[0]] == [
        *("[CLS]", "a", "red", "circle", "##s", "[SEP]", "[PAD]", "[PAD]")
    ]


@pytest.mark.parametrize(
    ("kind", "length", "caption", "rest"),
    [
        (TokenizerKind.BERT, 6, "a red circle and a blue square", "nd a blue square"),
        (TokenizerKind.CLIP, 12, "a red circle", None),
        (TokenizerKind.CLIP, 11, "a red circle", "e"),
        (TokenizerKind.CLIP, 12, "a red circle and a square", "and a square"),
        # The last id kept is the padding's own, which is no sign of an end.
        (TokenizerKind.CLIP, 6, "red! zebra", "zebra"),
        (TokenizerKind.BERT, 5, "a red circle", None),
        (TokenizerKind.BERT, 4, "a red circle", "circle"),
    ],
)
def test_what_is_cut_is_quoted(folders, kind, length, caption, rest):
    tokenizer = Tokenizer(folders[kind], length, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = tokenizer(["a", caption])
    assert ids.shape == (2, length)
    assert (
        ids[1].tolist()
        == CLASSES[kind].from_pretrained(str(folders[kind]))(
            caption, padding="max_length", max_length=length, truncation=True
        )["input_ids"]
    )
    said = [str(warning.message) for warning in caught]
    expected = f"the text encoder reads {length} tokens, the rest is cut: {rest!r} of {caption!r}"
    assert said == ([] if rest is None else [expected])


@pytest.mark.parametrize("kind", TokenizerKind)
def test_a_folder_without_a_vocabulary_is_named(folders, kind, tmp_path):
    other = next(folder for each, folder in folders.items() if each is not kind)
    for folder in (tmp_path, other):
        with pytest.raises(UserError, match=f"holds no {kind}") as caught:
            Tokenizer(folder, 9, kind)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nothing_is_said_of_models_where_pytorch_is_missing(folders):
    """Only that goes unsaid: transformers itself, imported first, does say it."""
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *p: None if n == 'torch' else f(n, *p)"
    folder = str(folders[TokenizerKind.CLIP])
    ours = f"from entscale_jax.weights.tokenizer import Tokenizer; Tokenizer(Path({folder!r}), 8)"
    said = {
        name: subprocess.run(
            [sys.executable, "-c", "\n".join(["from pathlib import Path", hide, line])],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stderr
        for name, line in (("ours", ours), ("transformers", "import transformers"))
    }
    assert "Models won't be available" in said["transformers"]
    assert said["ours"] == ""
