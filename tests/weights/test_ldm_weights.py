"""Weights of Latent Diffusion: the head that drawing does not need is left out; old names of attention are known."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.models import LDMBertConfig, LDMBertModel, VQModel, VQModelConfig
from entscale_jax.parity import random_ldm
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters, save_parameters

HEAD = {"to_logits.weight", "to_logits.bias"}
HISTORIC = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_ldm.build(tmp_path_factory.mktemp("ldm") / "vq", "vq", sample_size=16)


def _tensors(folder, part):
    return load_file(next((folder / part).glob("*.safetensors")))


def _load(folder, part, tensors, tmp_path):
    config, module = {"bert": (LDMBertConfig, LDMBertModel), "vqvae": (VQModelConfig, VQModel)}[part]
    config = config.from_json(json.loads((folder / part / "config.json").read_text()))
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    return load_parameters(lambda: module(config, rngs=AbstractRngs()), tmp_path / "weights.safetensors")


def _same(one, another):
    pairs = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(another)), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("part", ["bert", "vqvae"])
def test_what_we_save_is_what_pytorch_saved(folder, part, tmp_path):
    tensors = _tensors(folder, part)
    save_parameters(_load(folder, part, tensors, tmp_path), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert tensors.keys() - saved.keys() == (HEAD if part == "bert" else set())
    assert saved.keys() <= tensors.keys()
    assert all(np.array_equal(saved[name], tensors[name]) for name in saved)


def test_the_head_of_the_text_encoder_may_be_missing(folder, tmp_path):
    tensors = _tensors(folder, "bert")
    assert tensors.keys() > HEAD
    bare = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    assert _same(_load(folder, "bert", bare, tmp_path), _load(folder, "bert", tensors, tmp_path))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("bert", "to_logits.scale"),
        ("bert", "model.to_logits.weight"),
        ("bert", "embeddings.position_ids"),
        ("vqvae", "to_logits.weight"),
    ],
)
def test_only_what_a_module_names_is_left_out(folder, part, key, tmp_path):
    with pytest.raises(UserError, match=f"unused key {key}"):
        _load(folder, part, {**_tensors(folder, part), key: np.zeros(2, np.float32)}, tmp_path)


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_attention_of_the_levels_with_the_historic_names(folder, as_convolutions, tmp_path):
    tensors, older = _tensors(folder, "vqvae"), {}
    for name, tensor in tensors.items():
        new = next((new for new in HISTORIC if new in name), None)
        flat = new is not None and as_convolutions and tensor.ndim == 2
        older[name if new is None else name.replace(new, HISTORIC[new])] = tensor[:, :, None, None] if flat else tensor
    # Weight and bias of four layers, in both middles, in one block going down and in two going up.
    assert len(older.keys() - tensors.keys()) == 8 * 5
    assert _same(_load(folder, "vqvae", older, tmp_path), _load(folder, "vqvae", tensors, tmp_path))


def test_a_codebook_of_another_size_is_named(folder, tmp_path):
    tensors = _tensors(folder, "vqvae")
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:-1].copy()
    with pytest.raises(UserError, match=r"wrong shape quantize\.embedding\.weight: \[58, 3\]"):
        _load(folder, "vqvae", tensors, tmp_path)
