"""Loading is strict in both directions, knows the historic spellings, and refuses configs that it would get wrong."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from entscale_jax.parity import random_models
from entscale_jax.weights.folder import describe
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters, save_parameters

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder saved by PyTorch, with convolutional projections, which is not to be changed."""
    return random_models.build(tmp_path_factory.mktemp("strict") / "sd1", "sd1", sample_size=16)


@pytest.fixture
def folder(original, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(original, tmp_path / "model")


def _load(folder, part):
    info = describe(folder)
    build = {
        "unet": lambda: UNet2DConditionModel(info.unet, rngs=AbstractRngs()),
        "vae": lambda: AutoencoderKL(info.vae, rngs=AbstractRngs()),
        "text_encoder": lambda: CLIPTextModel(info.text, rngs=AbstractRngs()),
    }[part]
    return load_parameters(build, info.weight_files(part))


def _rewrite(folder, part, change):
    """Passes the tensors of a part through `change`, a function of the dict."""
    file = folder / FILES[part]
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _leaves(module):
    return jax.tree.leaves(nnx.state(module, nnx.Param))


def _equal(one, another):
    pairs = list(zip(_leaves(one), _leaves(another), strict=True))
    return all(np.array_equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("part", FILES)
def test_every_tensor_arrives_in_our_layout(original, part):
    loaded = nnx.to_flat_state(nnx.state(_load(original, part), nnx.Param))
    tensors = load_file(original / FILES[part])
    assert len(loaded) == len(tensors)
    for path, leaf in loaded:
        *modules, name = map(str, path)
        stored = tensors[".".join([*modules, "bias" if name == "bias" else "weight"])]
        order = {4: (2, 3, 1, 0), 2: (1, 0)}[stored.ndim] if name == "kernel" else range(stored.ndim)
        assert np.array_equal(leaf[...], np.transpose(stored, tuple(order))), path


@pytest.mark.parametrize("part", FILES)
def test_what_we_save_is_what_pytorch_saved(original, part, tmp_path):
    save_parameters(_load(original, part), tmp_path / "saved.safetensors")
    saved, expected = load_file(tmp_path / "saved.safetensors"), load_file(original / FILES[part])
    assert saved.keys() == expected.keys()
    assert all(np.array_equal(saved[name], expected[name]) for name in expected)


def test_all_faults_are_listed_at_once(folder):
    def spoil(tensors):
        del tensors["conv_in.bias"]
        del tensors["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
        tensors["conv_norm_out.scale"] = np.zeros(3, np.float32)
        tensors["conv_in.weight"] = tensors["conv_in.weight"].transpose(1, 0, 2, 3).copy()
        tensors["time_embedding.linear_1.weight"] = tensors["time_embedding.linear_1.weight"].T.copy()
        return tensors

    _rewrite(folder, "unet", spoil)
    with pytest.raises(UserError) as caught:
        _load(folder, "unet")
    message = str(caught.value)
    assert "\n" not in message
    assert "unet/diffusion_pytorch_model.safetensors" in message
    for fault in (
        "missing key conv_in.bias",
        "missing key mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "unused key conv_norm_out.scale",
        r"wrong shape conv_in.weight: \[4, 32, 3, 3\], the config asks for \[32, 4, 3, 3\]",
        "wrong shape time_embedding.linear_1.weight",
    ):
        assert re.search(fault, message), fault
    assert message.count("missing key") == message.count("wrong shape") == 2
    assert message.count("unused key") == 1


@pytest.mark.parametrize("part", FILES)
def test_a_missing_key_is_an_error_in_every_part(folder, part):
    _rewrite(folder, part, lambda tensors: dict(sorted(tensors.items())[1:]))
    with pytest.raises(UserError, match="missing key"):
        _load(folder, part)


@pytest.mark.parametrize("part", FILES)
def test_an_unused_key_is_an_error_in_every_part(folder, part):
    _rewrite(folder, part, lambda tensors: {**tensors, "extra.weight": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=r"unused key extra\.weight"):
        _load(folder, part)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("position_ids", [False, True])
def test_text_encoder_in_every_spelling(original, folder, prefix, position_ids):
    def respelt(tensors):
        tensors = {prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        return {**tensors, f"{prefix}embeddings.position_ids": np.arange(17)[None]} if position_ids else tensors

    _rewrite(folder, "text_encoder", respelt)
    assert f"{prefix}final_layer_norm.weight" in load_file(folder / FILES["text_encoder"])
    assert _equal(_load(folder, "text_encoder"), _load(original, "text_encoder"))


HISTORIC = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_autoencoder_with_the_historic_names(original, folder, as_convolutions):
    renamed = []

    def older(tensors):
        result = {}
        for name, tensor in tensors.items():
            for new, old in HISTORIC.items():
                if new in name:
                    name = name.replace(new, old)
                    tensor = tensor[:, :, None, None] if as_convolutions and tensor.ndim == 2 else tensor
                    renamed.append(name)
            result[name] = tensor
        return result

    _rewrite(folder, "vae", older)
    assert len(renamed) == 16  # weight and bias of four layers, in encoder and decoder
    assert _equal(_load(folder, "vae"), _load(original, "vae"))


def test_historic_query_and_key_are_not_swapped(original, folder):
    """The control of the test before: the names carry the meaning, not the order."""

    def swapped(tensors):
        names = {name: name.replace(".to_q.", ".key.").replace(".to_k.", ".query.") for name in tensors}
        return {names[name]: tensor for name, tensor in tensors.items()}

    _rewrite(folder, "vae", swapped)
    assert not _equal(_load(folder, "vae"), _load(original, "vae"))


def test_projections_of_the_unet_stay_convolutions(folder):
    """A dense weight where the config asks for a 1x1 convolution is another family's file."""
    name = "mid_block.attentions.0.proj_in.weight"
    _rewrite(folder, "unet", lambda tensors: {**tensors, name: tensors[name][:, :, 0, 0].copy()})
    with pytest.raises(UserError, match=f"wrong shape {re.escape(name)}"):
        _load(folder, "unet")


def test_weights_are_cast_to_the_dtype_asked_for(original):
    info = describe(original)
    text = load_parameters(
        lambda: CLIPTextModel(info.text, rngs=AbstractRngs(), dtype=jnp.bfloat16),
        info.weight_files("text_encoder"),
        jnp.bfloat16,
    )
    assert {leaf.dtype for leaf in _leaves(text)} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "class_embed_type", "timestep"),
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "only_cross_attention", True),
        ("unet", "dual_cross_attention", True),
        ("unet", "resnet_time_scale_shift", "scale_shift"),
        ("unet", "act_fn", "relu"),
        ("unet", "center_input_sample", True),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet", "down_block_types", ["AttnDownBlock2D"] * 4),
        ("unet", "cross_attention_norm", "layer_norm"),
        ("unet", "a_field_of_next_year", 3),
        ("unet", "sample_size", None),
        ("vae", "act_fn", "relu"),
        ("vae", "shift_factor", 0.1),
        ("vae", "latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("vae", "up_block_types", ["UpBlock2D"] * 4),
        ("vae", "a_field_of_next_year", 3),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "model_type", "bert"),
        ("text_encoder", "a_field_of_next_year", 3),
        ("scheduler", "beta_schedule", "sigmoid"),
        ("scheduler", "prediction_type", "flow"),
        ("scheduler", "timestep_spacing", "karras"),
        ("scheduler", "thresholding", True),
    ],
)
def test_an_unsupported_config_value_is_named(folder, part, field, value):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    content = json.loads(file.read_text())
    assert content.get(field) != value
    file.write_text(json.dumps({**content, field: value}))
    with pytest.raises(UserError, match=field) as caught:
        describe(folder)
    assert "\n" not in str(caught.value)


def test_inert_fields_are_accepted(folder):
    for part, fields in {
        "unet": {"upcast_attention": True, "dropout": 0.1, "_name_or_path": "somewhere"},
        "vae": {"force_upcast": False, "sample_size": 4},
        "text_encoder": {"attention_dropout": 0.1, "torch_dtype": "float16"},
    }.items():
        file = folder / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    assert describe(folder).levels == 4


def test_abstract_keys_give_the_shapes_of_real_ones(original):
    text = describe(original).text

    def shapes(rngs):
        leaves = _leaves(nnx.eval_shape(lambda: CLIPTextModel(text, rngs=rngs())))
        return [(leaf.shape, leaf.dtype) for leaf in leaves]

    assert shapes(AbstractRngs) == shapes(lambda: nnx.Rngs(0))
    assert len(set(shapes(AbstractRngs))) > 3
