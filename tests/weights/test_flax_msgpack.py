"""Flax's msgpack: the parameters that safetensors give, in the function of the classes named, and strict as there."""

import json
import pickle
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from flax.serialization import msgpack_restore, msgpack_serialize, to_bytes
from flax.traverse_util import flatten_dict
from flax_folder import WEIGHTS, edit, flax_tree, use_msgpack, write_flax_folder
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file
from tiny_model import tiny_recipe, write_tiny_model

from entscale_jax import TextToImage, UserError, cli
from entscale_jax.models import FlaxUNet2DConditionConfig, UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.parity.compare import Pair
from entscale_jax.weights import msgpack_file
from entscale_jax.weights.convert import convert, export
from entscale_jax.weights.flax_format import Arithmetic, unet_from_flax
from entscale_jax.weights.folder import describe
from entscale_jax.weights.msgpack_file import open_msgpack

UNET, VAE, TEXT = ("/".join((part, names[1])) for part, names in WEIGHTS.items())


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """PyTorch's folder of a UNet that a Flax class could have: 32 groups at each level."""
    recipe = tiny_recipe()
    unet = replace(
        recipe.unet,
        block_out_channels=(32, 32),
        norm_num_groups=32,
        transformer_layers_per_block=1,
        use_linear_projection=False,
    )
    autoencoder = replace(recipe.autoencoder, mid_block_add_attention=True)
    recipe = replace(recipe, unet=unet, autoencoder=autoencoder)
    return write_tiny_model(tmp_path_factory.mktemp("msgpack") / "torch", recipe=recipe)


@pytest.fixture(scope="session")
def saved(source, tmp_path_factory):
    """The same weights as a Flax pipeline's folder, which is not to be changed."""
    return write_flax_folder(source, tmp_path_factory.mktemp("msgpack") / "flax")


@pytest.fixture(scope="session")
def torch(source):
    """The former opened."""
    return TextToImage.from_pretrained(source)


@pytest.fixture(scope="session")
def flax(saved):
    """The latter opened."""
    return TextToImage.from_pretrained(saved)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def _leaves(module):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module))]


def _parameters(pipe):
    return [leaf for part in (pipe.text, pipe.unet, pipe.vae) for leaf in _leaves(part)]


def _equal(one, other):
    return all(np.array_equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(one, other, strict=True))


def _unet_tree(folder):
    return flax_tree(load_file(folder / "unet" / WEIGHTS["unet"][0]), "unet")


def _transformer(unet):
    (attention,) = unet.down_blocks[0].attentions
    return attention.norm.epsilon, attention.transformer_blocks[0].ff.net[0].gelu


def test_a_flax_folder_has_the_weights_of_its_source(torch, flax):
    assert _equal(_parameters(torch), _parameters(flax))
    assert len(_parameters(flax)) > 150
    assert flax.info.family.name == "Stable Diffusion (Flax)"
    assert (flax.info.train_size, flax.info.train_tokens) == (torch.info.train_size, torch.info.train_tokens)


def test_the_classes_named_decide_the_function(source, torch, flax, tmp_path):
    """The constants themselves are compared with Flax's classes in tests/legacy."""
    assert _transformer(torch.unet) == (1e-6, "gelu")
    assert _transformer(flax.unet) == (1e-5, "gelu_pytorch_tanh")
    both = use_msgpack(shutil.copytree(source, tmp_path / "both"))
    opened = TextToImage.from_pretrained(both)
    assert _transformer(opened.unet) == (1e-6, "gelu")
    assert _equal(_parameters(opened), _parameters(torch))


def test_safetensors_go_first_and_a_pickle_last(source, tmp_path):
    both = use_msgpack(shutil.copytree(source, tmp_path / "both"))
    (both / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    for allow_pickle in (False, True):
        assert describe(both, allow_pickle=allow_pickle).weight_files("unet").files == (both / UNET,)
    shutil.copy(source / "unet" / WEIGHTS["unet"][0], both / "unet")
    (both / UNET).write_bytes(b"no msgpack")
    describe(both).load("unet")


def test_a_flax_class_reads_msgpack_alone(source, folder):
    (folder / UNET).unlink()
    shutil.copy(source / "unet" / WEIGHTS["unet"][0], folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{UNET} is missing, where a Flax model has its weights"):
        TextToImage.from_pretrained(folder, allow_pickle=True)
    with pytest.raises(UserError, match=r"vae has no weights of variant='fp16': there is None"):
        describe(folder, variant="fp16").weight_files("vae")


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float64"])
def test_any_floating_point_dtype_is_read(source, flax, tmp_path, stored):
    def cast(tree, part):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(stored)), tree)

    opened = describe(write_flax_folder(source, tmp_path / "model", change=cast)).load("unet", jnp.float16)
    assert _equal(_leaves(opened), [leaf.astype(jnp.dtype(stored)).astype(np.float16) for leaf in _leaves(flax.unet)])


def test_options_act_as_for_any_model(saved):
    names = []

    def placement(name, shape):
        names.append((name, shape))
        return SingleDeviceSharding(jax.devices()[-1])

    opened = TextToImage.from_pretrained(
        saved, dtype="bfloat16", train_size=(64, 32), sampler={"name": "ddim", "eta": 1.0}, sharding=placement
    )
    assert opened.info.train_tokens == (16 * 8, 8 * 4)
    assert isinstance(opened.info.unet, FlaxUNet2DConditionConfig)
    assert opened.info.schedule.eta == 1.0
    assert ("unet.conv_in.weight", (3, 3, 4, 32)) in names
    for leaf in jax.tree.leaves(nnx.state(opened.unet)):
        assert leaf.dtype == jnp.bfloat16
        assert leaf.devices() == {jax.devices()[-1]}


def test_a_pickle_in_its_place_is_never_run(folder, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    (folder / UNET).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=rf"{UNET} can't be read as Flax's msgpack"):
        TextToImage.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / UNET).read_bytes())
    assert (tmp_path / "ran").exists()


def _without(tree):
    del tree["conv_in"]["bias"]


def _with_another(tree):
    tree["conv_in"]["offset"] = np.zeros(3, np.float32)


def _reshaped(tree):
    tree["conv_in"]["kernel"] = tree["conv_in"]["kernel"].transpose(3, 2, 0, 1)


def _whole(tree):
    tree["conv_in"]["bias"] = np.zeros(32, np.int32)


def _twice(tree):
    tree["conv_in"]["scale"] = np.ones(32, np.float32)


def _number(tree):
    tree["conv_in"]["bias"] = 3


def _list(tree):
    tree["conv_in"]["bias"] = [1.0, 2.0]


def _complex(tree):
    tree["conv_in"]["bias"] = 1j


def _unsigned(tree):
    tree["conv_in"]["bias"] = np.zeros(32, np.uint32)


def _chunked(tree):
    tree["conv_in"]["bias"] = {"__msgpack_chunked_array__": True, "shape": {"0": 32}, "chunks": {"0": np.zeros(32)}}


def _deep(tree):
    for _ in range(40):
        tree["deeper"] = tree = {}


TREES = {
    "a missing leaf": (_without, r"does not fit its config\.json: missing key conv_in\.bias$"),
    "another leaf": (_with_another, r"does not fit its config\.json: unused key conv_in\.offset$"),
    "PyTorch's layout": (
        _reshaped,
        r"wrong shape conv_in\.weight: \[3, 3, 32, 4\], the config asks for \[32, 4, 3, 3\]$",
    ),
    "whole numbers": (_whole, r"conv_in\.bias is stored as I32: read are F64, F32, F16, BF16$"),
    "one name twice": (_twice, r"holds conv_in\.weight twice"),
    "a number": (_number, r"\(conv_in/bias is no array\)"),
    "a list": (_list, r"\(conv_in/bias is no array\)"),
    "a complex number": (_complex, r"\(conv_in/bias is no array\)"),
    "an unusual dtype": (_unsigned, r"\(conv_in/bias has a shape or a dtype that none of the models has\)"),
    "chunks": (_chunked, r"\(conv_in/bias is in chunks, as arrays of more than 1 GiB are\)"),
    "depth": (_deep, r"\(deeper/deeper/deeper has more than 32 levels\)"),
}


@pytest.mark.parametrize("kind", TREES)
def test_another_tree_is_one_line(source, folder, kind):
    change, said = TREES[kind]
    tree = _unet_tree(source)
    change(tree)
    (folder / UNET).write_bytes(msgpack_serialize(tree))
    _refused(folder, said)


FILES = {
    "empty": lambda content: b"",
    "a page of a website": lambda content: b"<html>",
    "one number": lambda content: b"\x05",
    "cut off in values": lambda content: content[:-10],
    "cut off in a name": lambda content: content[:5],
    "cut off after the map's head": lambda content: content[:1],
    "something after it": lambda content: content + b"\x00",
    "another length": lambda content: content.replace(b"\x93\x91\x20\xa7float32", b"\x93\x91\x1f\xa7float32", 1),
    "a negative size": lambda content: content.replace(b"\x93\x91\x20\xa7float32", b"\x93\x91\xff\xa7float32", 1),
    "a shape that is a name": lambda content: content.replace(b"\x93\x91\x20\xa7float32", b"\x93\xa1a\xa7float32", 1),
    "two members": lambda content: content.replace(b"\x93\x91\x20\xa7float32", b"\x92\x91\x20\xa7float32", 1),
}


@pytest.mark.parametrize("kind", FILES)
def test_another_file_is_one_line(folder, kind):
    content = (folder / UNET).read_bytes()
    assert FILES[kind](content) != content
    (folder / UNET).write_bytes(FILES[kind](content))
    _refused(folder, r"can't be read as Flax's msgpack \(.+\): fetch it again$")


def _refused(folder, said):
    with pytest.raises(UserError, match=said) as caught:
        describe(folder).load("unet")
    assert "\n" not in str(caught.value)
    assert str(folder / UNET) in str(caught.value)


def test_every_byte_that_is_lost_is_noticed(tmp_path):
    content = to_bytes({"a": {"bias": np.arange(3.0, dtype=np.float32)}, "b": {"bias": np.ones((), np.float32)}})
    for length in range(len(content)):
        (tmp_path / "x.msgpack").write_bytes(content[:length])
        with pytest.raises(UserError, match="can't be read as Flax's msgpack"):
            open_msgpack(tmp_path / "x.msgpack")


def test_shards_are_refused_by_name(folder):
    (folder / TEXT).unlink()
    (folder / "text_encoder" / "flax_model.msgpack.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"text_encoder/flax_model\.msgpack\.index\.json lists shards"):
        TextToImage.from_pretrained(folder)


def test_arrays_of_every_size_and_dtype_are_what_flax_restores(tmp_path):
    """Each of msgpack's spellings of a length, by sizes on both sides of where they change."""
    rng = np.random.default_rng(0)
    sizes = [0, 1, 3, 50, 58, 59, 60, 16360, 16370, 16384, 20000]
    tree = {f"net_{size}": {"bias": rng.standard_normal(size).astype(np.float32)} for size in sizes}
    tree["scalars"] = {"array": np.float32(3).reshape(()), "bias": np.float32(7), "scale": np.float64(7)}
    tree["kinds"] = {name: rng.integers(0, 2, (2, 3)).astype(name) for name in ("bool", "int8", "int64", "float16")}
    tree["kinds"]["bfloat16"] = rng.standard_normal((2, 3)).astype(jnp.bfloat16)
    tree["an_empty_module"] = {}
    tree["a" * 300] = {"b" * 40: np.ones((1, 2, 3, 4), np.float32)}
    tree["layouts"] = {"kernel": rng.standard_normal((2, 3, 4, 5)), "dense": {"kernel": rng.standard_normal((2, 3))}}
    file = tmp_path / "x.msgpack"
    file.write_bytes(to_bytes(tree))
    restored = {"/".join(path): array for path, array in flatten_dict(msgpack_restore(file.read_bytes())).items()}
    opened = {
        key.replace(".", "/"): tensor.read() for key, tensor in open_msgpack(file).items() if tensor.shape != (0,)
    }
    kernel, dense = opened.pop("layouts/weight"), opened.pop("layouts/dense/weight")
    assert np.array_equal(kernel, restored["layouts/kernel"].transpose(3, 2, 0, 1))
    assert np.array_equal(dense, restored["layouts/dense/kernel"].T)
    assert np.array_equal(opened.pop("scalars/weight"), restored["scalars/scale"])
    assert len(opened) == len(restored) - 4
    for key, array in opened.items():
        expected = restored[key.replace("net/", "net_")]
        assert array.dtype == expected.dtype
        assert array.shape == np.shape(expected)
        assert np.array_equal(array, expected), key


def test_values_are_read_when_they_are_asked_for(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(msgpack_file, "read_mapped", lambda file, key, *rest: asked.append(key))
    tensors = open_msgpack(folder / UNET)
    assert asked == []
    tensors["conv_in.bias"].read()
    assert asked == ["conv_in.bias"]


CONFIGS = {
    "groups that Flax ignores": (
        "unet",
        {"norm_num_groups": 16},
        r"FlaxUNet2DConditionModel: norm_num_groups=16.* 32$",
    ),
    "an epsilon that Flax ignores": ("unet", {"norm_eps": 1e-6}, r"FlaxUNet2DConditionModel: norm_eps=1e-06.* 1e-05$"),
    "heads that Flax refuses": ("unet", {"num_attention_heads": 2}, r"FlaxUNet2DConditionModel: num_attention_heads=2"),
    "only cross-attention": ("unet", {"only_cross_attention": True}, r"FlaxUNet2DConditionModel.*only_cross_attention"),
    "an unknown field": ("unet", {"flash": True}, r"FlaxUNet2DConditionModel.*flash=True \(unknown field\)"),
    "attention that Flax ignores": (
        "vae",
        {"down_block_types": ["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"]},
        r"FlaxAutoencoderKL: down_block_types=",
    ),
    "a layer that Flax has all the same": (
        "vae",
        {"use_quant_conv": False},
        r"FlaxAutoencoderKL: use_quant_conv=False",
    ),
    "another GELU": ("text_encoder", {"hidden_act": "gelu_new"}, r"CLIPTextModel: hidden_act='gelu_new'"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_flax_computes_otherwise_is_refused(folder, kind):
    part, fields, said = CONFIGS[kind]
    describe(folder)
    edit(folder / part / "config.json", **fields)
    with pytest.raises(UserError, match=said):
        describe(folder)


@pytest.mark.parametrize("field", ["split_head_dim", "use_memory_efficient_attention", "transformer_gelu", "gelu"])
def test_a_config_of_pytorch_has_no_field_of_flax(source, tmp_path, field):
    folder = shutil.copytree(source, tmp_path / "model")
    edit(folder / "unet" / "config.json", **{field: False})
    with pytest.raises(
        UserError, match=rf"UNet2DConditionModel: config not supported: {field}=False \(unknown field\)"
    ):
        describe(folder)


def test_flax_s_names_of_classes_are_optional_in_a_part(folder):
    """The hub's Flax branches kept PyTorch's configs in places."""
    edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel", act_fn="silu", norm_num_groups=32)
    edit(folder / "text_encoder" / "config.json", architectures=["FlaxCLIPTextModel"])
    assert type(describe(folder).unet) is FlaxUNet2DConditionConfig
    edit(folder / "unet" / "config.json", _class_name="FlaxUNet3DConditionModel")
    with pytest.raises(UserError, match=r"is of FlaxUNet3DConditionModel, and model_index\.json says FlaxUNet2D"):
        describe(folder)


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("FlaxPNDMScheduler", "pndm"),
        ("FlaxDDIMScheduler", "ddim"),
        ("FlaxDPMSolverMultistepScheduler", "dpmsolver++"),
        ("FlaxEulerDiscreteScheduler", "euler"),
        ("PNDMScheduler", "pndm"),
    ],
)
def test_a_scheduler_of_flax_is_pytorchs_of_that_name(folder, kind, ours):
    edit(folder / "scheduler" / "scheduler_config.json", _class_name=kind, skip_prk_steps=True)
    info = describe(folder)
    assert info.schedule.name == ours
    assert info.sampler({"name": "ddim"}).name == "ddim"
    assert len(info.schedule.table(50).timesteps) == (51 if ours == "pndm" else 50)


def test_a_scheduler_keeps_what_its_config_says(source, folder):
    """Flax's pipeline sets nothing in it, where PyTorch's does."""
    for model, offset, clip in ((source, 1, False), (folder, 0, True)):
        config = model / "scheduler" / "scheduler_config.json"
        before = config.read_text()
        edit(config, steps_offset=0, clip_sample=True)
        schedule = describe(model).schedule
        config.write_text(before)
        assert (schedule.steps_offset, schedule.clip_sample) == (offset, clip)


def test_a_scheduler_that_is_not_implemented_needs_another(folder):
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="FlaxLMSDiscreteScheduler")
    with pytest.raises(UserError, match="scheduler FlaxLMSDiscreteScheduler is not implemented: give one of ddim"):
        describe(folder)
    assert describe(folder, sampler="ddim").schedule.name == "ddim"


def test_other_pipelines_of_flax_are_refused(folder):
    edit(folder / "model_index.json", _class_name="FlaxStableDiffusionXLPipeline")
    with pytest.raises(UserError, match=r"is a FlaxStableDiffusionXLPipeline: implemented are .*FlaxStableDiff"):
        describe(folder)
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(UserError, match="has unet as FlaxUNet2DConditionModel: implemented is UNet2DConditionModel"):
        describe(folder)


def test_the_hash_is_of_the_msgpack(folder):
    before = describe(folder).weights_hash
    assert describe(folder).weights_hash == before
    content = bytearray((folder / VAE).read_bytes())
    content[-1] ^= 1
    (folder / VAE).write_bytes(content)
    assert describe(folder).weights_hash != before


def test_inspect_prints_a_flax_folder(folder, monkeypatch, capsys):
    (folder / UNET).unlink()  # configs are enough
    monkeypatch.setattr("sys.argv", ["entscale", "inspect", str(folder), "--size", "64x64"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().out
    assert stopped.value.code in (0, None)
    assert "Stable Diffusion (Flax)" in said
    assert "32x32" in said


def test_a_flax_folder_converts_and_does_not_come_back(saved, flax, tmp_path):
    convert(saved, tmp_path / "converted")
    opened = TextToImage.from_pretrained(tmp_path / "converted")
    assert _equal(_parameters(opened), _parameters(flax))
    assert _transformer(opened.unet) == _transformer(flax.unet)
    assert opened.info.weights_hash == flax.info.weights_hash
    with pytest.raises(
        UserError, match=r"converted is of a Flax pipeline, whose msgpack is not written: keep '.*flax'$"
    ):
        export(tmp_path / "converted", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_pytorchs_classes_with_msgpack_come_back_as_safetensors(source, tmp_path):
    both = use_msgpack(shutil.copytree(source, tmp_path / "both"))
    convert(both, tmp_path / "converted")
    export(tmp_path / "converted", tmp_path / "exported")
    for part, (safetensors, _) in WEIGHTS.items():
        there, back = (load_file(each / part / safetensors) for each in (source, tmp_path / "exported"))
        assert there.keys() == back.keys()
        assert all(np.array_equal(there[key], back[key]) for key in there)
    index = json.loads((tmp_path / "exported" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_there_is_no_parity_with_what_pytorch_cant_open(source, saved, tmp_path):
    both = use_msgpack(shutil.copytree(source, tmp_path / "both"))
    for model in (saved, both):
        with pytest.raises(UserError, match="has weights in Flax's msgpack, which PyTorch can't open to compare with"):
            Pair(model)


def test_a_live_tree_makes_a_unet(source, saved, flax):
    tree, config = _unet_tree(source), json.loads((saved / "unet" / "config.json").read_text())
    unet = unet_from_flax({**config, "block_out_channels": (32, 32)}, freeze(jax.tree.map(jnp.asarray, tree)))
    assert isinstance(unet, UNet2DConditionModel)
    assert unet.config == flax.info.unet
    assert _transformer(unet) == (1e-5, "gelu_pytorch_tanh")
    assert _equal(_leaves(unet), _leaves(flax.unet))
    torch = unet_from_flax(config, tree, "bfloat16", arithmetic=Arithmetic.TORCH)
    assert type(torch.config) is UNet2DConditionConfig
    assert _transformer(torch) == (1e-6, "gelu")
    assert torch.conv_in.kernel[...].dtype == jnp.bfloat16


def test_a_live_tree_that_does_not_fit_is_one_line(source, saved):
    config, tree = json.loads((saved / "unet" / "config.json").read_text()), _unet_tree(source)
    _without(tree)
    with pytest.raises(
        UserError, match=r"^the tree of parameters does not fit its config.json: missing key conv_in.bias$"
    ):
        unet_from_flax(config, tree)
    _number(tree)
    with pytest.raises(UserError, match=r"^the tree of parameters holds int at conv_in/bias, which is no array$"):
        unet_from_flax(config, tree)
