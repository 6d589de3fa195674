"""A converted model is the model: opened it has the same weights, and exported it is the same folder bit for bit."""

import filecmp
import json
import os
import shutil

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from entscale_jax import TextToImage
from entscale_jax.errors import UserError
from entscale_jax.parity import compare, random_ldm, random_models, random_sdxl
from entscale_jax.weights.checkpoint import read_checkpoint, write_checkpoint
from entscale_jax.weights.convert import convert, export
from entscale_jax.weights.folder import describe
from entscale_jax.weights.manifest import lengths

VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
MANIFEST = "entscale_manifest.json"
PUBLISHED = {
    "stable diffusion": lambda folder: random_models.build(folder, "sd1", sample_size=16),
    "latent diffusion": lambda folder: random_ldm.build(folder, "vq", sample_size=16),
    "sdxl": lambda folder: random_sdxl.build(folder, sample_size=16),
}


def _files(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def _there_and_back(folder, tmp_path, **options):
    convert(folder, tmp_path / "converted", **options)
    export(tmp_path / "converted", tmp_path / "exported")
    return tmp_path / "exported"


def _differing(one, other):
    names = _files(one) | _files(other)
    return {name for name in names if not (one / name).is_file() or not (other / name).is_file()} | {
        name for name in _files(one) & _files(other) if not filecmp.cmp(one / name, other / name, shallow=False)
    }


def _parameters(model, dtype="float32", **options):
    pipe = TextToImage.from_pretrained(model, dtype=dtype, **options)
    return [np.asarray(leaf) for part in (pipe.text, pipe.unet, pipe.vae) for leaf in jax.tree.leaves(nnx.state(part))]


@pytest.fixture
def source(tiny_folder, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "source")


@pytest.fixture(scope="module")
def converted(tiny_folder, tmp_path_factory):
    """The converted model, which may not be changed."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(tiny_folder, folder)
    return folder


@pytest.fixture
def changeable(converted, tmp_path):
    """A copy of it that may be."""
    return shutil.copytree(converted, tmp_path / "changeable")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family -> a folder that diffusers saved."""
    root = tmp_path_factory.mktemp("saved")
    return {family: build(root / family) for family, build in PUBLISHED.items()}


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_folder_of_diffusers_comes_back_as_it_was(saved, family, tmp_path):
    folder = saved[family]
    exported = _there_and_back(folder, tmp_path)
    # The index alone is written anew: what is left out is null in it.
    assert _differing(folder, exported) <= {"model_index.json"}
    one, other = (json.loads((each / "model_index.json").read_text()) for each in (folder, exported))
    assert {name for name in one if one[name] != other[name]} <= {"safety_checker", "feature_extractor"}


def test_the_comparison_sees_one_bit(source, tmp_path):
    exported = _there_and_back(source, tmp_path)
    assert _differing(source, exported) == set()
    data = bytearray((source / VAE).read_bytes())
    data[-1] ^= 1
    (source / VAE).write_bytes(data)
    assert _differing(source, exported) == {VAE}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_opened_it_has_the_same_weights(tiny_folder, converted, dtype):
    with jax.enable_x64(dtype == "float64"):
        expected, found = _parameters(tiny_folder, dtype), _parameters(converted, dtype)
    assert {array.dtype.name for array in found} == {dtype}
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


def test_opened_it_draws_the_same(tiny, converted):
    """Within rounding: each pipeline compiles a program of its own, and two of them need not sum in one order."""
    again = TextToImage.from_pretrained(converted)
    options = {"height": 24, "width": 16, "steps": 2, "decode": False}
    one, other = (pipe("a red circle", **options).latents for pipe in (tiny, again))
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
    assert np.abs(one - again("a blue square", **options).latents).max() > 1e-3 * np.abs(one).max()
    assert again.info.weights_hash == tiny.info.weights_hash


def test_a_tree_is_that_of_nnx(tiny, converted):
    expected = {".".join(map(str, path)) for path in nnx.to_flat_state(nnx.state(tiny.unet, nnx.Param)).paths}
    stored = read_checkpoint(converted / "unet/checkpoint")
    assert {".".join(path) for path in stored} == expected
    kernel = np.asarray(tiny.unet.conv_in.kernel.get_value())
    assert np.array_equal(stored["conv_in", "kernel"], kernel)


def test_the_manifest_says_what_it_was_made_of(tiny, tiny_folder, converted):
    manifest = json.loads((converted / MANIFEST).read_text())
    assert manifest["source"] == str(tiny_folder)
    assert manifest["source_hash"] == tiny.info.weights_hash
    assert manifest["config"]["unet"] == json.loads((tiny_folder / "unet/config.json").read_text())
    assert {"entscale-jax", "jax", "flax", "orbax-checkpoint"} <= manifest["versions"].keys()


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_weights_keep_the_dtype_they_were_stored_in(source, tmp_path, stored):
    tensors = load_torch_file(source / VAE)
    held = {key: tensor.to(getattr(torch, stored)) for key, tensor in tensors.items()}
    save_torch_file(held, source / VAE, metadata={"format": "pt", "note": "é"})
    assert _differing(source, _there_and_back(source, tmp_path)) == set()
    found = read_checkpoint(tmp_path / "converted/vae/checkpoint")
    assert {array.dtype.name for array in found.values()} == {stored}


def test_old_spellings_and_what_nothing_reads(saved, tmp_path):
    source = shutil.copytree(saved["stable diffusion"], tmp_path / "source")
    vae, text = load_file(source / VAE), load_file(source / TEXT)
    key = next(key for key in vae if "attentions" in key and key.endswith("to_q.weight"))
    tensor = vae.pop(key)
    save_file({**vae, key.replace("to_q", "query"): tensor[:, :, None, None]}, source / VAE)
    ids = np.arange(24)[None]
    save_file({**text, "text_model.embeddings.position_ids": ids}, source / TEXT)
    exported = _there_and_back(source, tmp_path)
    assert _differing(source, exported) <= {"model_index.json"}
    assert np.array_equal(load_file(exported / TEXT)["text_model.embeddings.position_ids"], ids)


def test_shards_come_back_with_their_index(source, tmp_path):
    tensors = load_file(source / VAE)
    keys = sorted(tensors)
    shards = {"vae-1.safetensors": keys[::2], "vae-2.safetensors": keys[1::2]}
    for name, some in shards.items():
        save_file({key: tensors[key] for key in some}, source / "vae" / name)
    weight_map = {key: name for name, some in shards.items() for key in some}
    (source / f"{VAE}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (source / VAE).unlink()
    assert _differing(source, _there_and_back(source, tmp_path)) == set()


def test_a_variant_is_told(source, tmp_path):
    for file in source.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert _differing(source, _there_and_back(source, tmp_path, variant="fp16")) == set()
    assert describe(tmp_path / "converted").manifest.variant == "fp16"
    assert describe(tmp_path / "converted", variant="fp16").weights_hash
    with pytest.raises(UserError, match=r"was converted from variant='fp16' and holds no 'ema'"):
        describe(tmp_path / "converted", variant="ema")


def test_pickles_become_safetensors_of_the_same_bits(source, tmp_path):
    tensors = load_torch_file(source / TEXT)
    tensors |= {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    tensors = {key: tensor.to(torch.bfloat16) if "norm" in key else tensor for key, tensor in tensors.items()}
    torch.save(tensors, source / "text_encoder/pytorch_model.bin")
    (source / TEXT).unlink()
    exported = _there_and_back(source, tmp_path, allow_pickle=True)
    found = load_torch_file(exported / TEXT)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key
    with safe_open(exported / TEXT, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert (tmp_path / "converted").is_dir()
    again, before = _parameters(tmp_path / "converted"), _parameters(source, allow_pickle=True)
    assert all(np.array_equal(one, other) for one, other in zip(again, before, strict=True))


def test_notes_travel_and_safety_checkers_do_not(source, tmp_path):
    (source / "LICENSE.md").write_text("terms")
    (source / "train_entropy.json").write_text("{}")
    (source / "v1.ckpt").write_text("not needed")
    index = json.loads((source / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index))
    exported = _there_and_back(source, tmp_path)
    assert _differing(source, exported) == {"v1.ckpt", "model_index.json"}
    assert json.loads((exported / "model_index.json").read_text())["safety_checker"] == [None, None]


def test_a_model_that_does_not_fit_leaves_nothing(source, tmp_path):
    (tmp_path / "out").mkdir()
    (source / TEXT).write_bytes((source / TEXT).read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors can't be read as safetensors"):
        convert(source, tmp_path / "out" / "converted")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", [convert, export])
def test_a_folder_that_exists_is_left_alone(source, converted, tmp_path, command):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out exists already: give the name of a new folder"):
        command(converted if command is export else source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_can_not_be_written_to(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out can't be written: there is no folder \S+file; make it first"):
        convert(source, tmp_path / "file" / "out")


def test_a_checkpoint_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written as an orbax checkpoint \(.+\): is the disk full\?$"):
        write_checkpoint(tmp_path / "file" / "checkpoint", {("kernel",): np.ones(3, np.float32)})


def _drop_parameter(folder):
    stored = read_checkpoint(folder / "unet/checkpoint")
    stored.pop(("conv_in", "bias"))
    _replace(folder, stored)


def _reshape_parameter(folder):
    stored = read_checkpoint(folder / "unet/checkpoint")
    stored["conv_in", "bias"] = np.zeros(3, np.float32)
    stored["conv_up", "bias"] = np.zeros(3, np.float32)
    _replace(folder, stored)


def _replace(folder, stored):
    shutil.rmtree(folder / "unet/checkpoint")
    write_checkpoint(folder / "unet/checkpoint", stored)
    content = json.loads((folder / MANIFEST).read_text())
    content["parts"]["unet"]["checkpoint"] = lengths(folder / "unet/checkpoint")
    (folder / MANIFEST).write_text(json.dumps(content))


def _length(file):
    return file.stat().st_size if file.is_file() else 0


def _edit_config(folder):
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("{", "{ ", 1))


def _edit_manifest(**fields):
    def edit(folder):
        content = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**content, **fields}))

    return edit


SPOILT = {
    "a parameter missing": (_drop_parameter, r"does not fit its config\.json: missing parameter conv_in\.bias$"),
    "a wrong shape and one too many": (
        _reshape_parameter,
        r"unused parameter conv_up\.bias; wrong shape conv_in\.bias: \[3\], the config asks for \[16\]$",
    ),
    "no checkpoint": (
        lambda folder: shutil.rmtree(folder / "vae/checkpoint"),
        r"vae/checkpoint/\S+ is missing since `entscale convert` wrote it: convert the model again$",
    ),
    "a checkpoint cut off": (
        lambda folder: os.truncate(max((folder / "vae/checkpoint").rglob("*"), key=_length), 1000),
        r"vae/checkpoint/\S+ has another length since `entscale convert` wrote it: convert the model again$",
    ),
    "a config edited": (_edit_config, r"scheduler_config\.json was changed since `entscale convert` wrote it"),
    "a tokenizer gone": (
        lambda folder: (folder / "tokenizer/vocab.json").unlink(),
        r"vocab\.json is missing since `entscale convert` wrote it",
    ),
    "a manifest cut off": (
        lambda folder: (folder / MANIFEST).write_text("{"),
        r"entscale_manifest\.json is no manifest of `entscale convert`",
    ),
    "a manifest of the future": (_edit_manifest(version=2), r"is of version 2, and this one reads 1"),
    "a manifest that leads elsewhere": (
        _edit_manifest(copied={"../../secret": "00"}),
        r"is no manifest of `entscale convert` \(copied.*'\.\./\.\./secret' leads out of the folder\)",
    ),
    "a manifest with another field": (_edit_manifest(more=1), r"is no manifest of `entscale convert` \(more: "),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_checkpoint_is_refused_in_one_line(changeable, fault):
    spoil, message = SPOILT[fault]
    spoil(changeable)
    with pytest.raises(UserError, match=message) as caught:
        TextToImage.from_pretrained(changeable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["a parameter missing", "a wrong shape and one too many"])
def test_a_spoilt_checkpoint_is_not_exported(changeable, tmp_path, fault):
    SPOILT[fault][0](changeable)
    with pytest.raises(UserError, match="convert the model again"):
        export(changeable, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_other_bits_are_not_exported(changeable, tmp_path):
    stored = read_checkpoint(changeable / "unet/checkpoint")
    changed = stored["conv_in", "kernel"].copy()
    changed.reshape(-1).view(np.uint32)[0] ^= 1
    _replace(changeable, {**stored, ("conv_in", "kernel"): changed})
    with pytest.raises(UserError, match=r"unet gives other bits than diffusion_pytorch_model\.safetensors had"):
        export(changeable, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_converted_folder_is_exported(tiny_folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no entscale_manifest\.json: give a folder that `entscale convert`"):
        export(tiny_folder, tmp_path / "out")


def test_what_needs_a_diffusers_folder_says_so(converted, tmp_path):
    with pytest.raises(UserError, match="is a converted one already"):
        convert(converted, tmp_path / "again")
    with pytest.raises(UserError, match="is a converted one: `entscale export` makes a diffusers folder of it"):
        describe(converted).weight_files("unet")
    with pytest.raises(UserError, match="is a converted one: `entscale export` makes a diffusers folder of it"):
        compare(converted, size=(32, 32), rules=["original"])


def test_a_folder_that_only_looks_like_ours_is_left_alone(tiny_folder, tmp_path):
    kept = tmp_path / "out.partial" / "note"
    kept.parent.mkdir()
    kept.write_text("mine")
    convert(tiny_folder, tmp_path / "out")
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


def test_what_is_read_is_not_written_into(tiny_folder, tmp_path):
    source = shutil.copytree(tiny_folder, tmp_path / "model")
    before = sorted(source.rglob("*"))
    for out in (source / "out", source / "tokenizer" / "out"):
        with pytest.raises(UserError, match="which is what is read: give a folder elsewhere"):
            convert(source, out)
    assert sorted(source.rglob("*")) == before
    convert(source, tmp_path / "converted")
    with pytest.raises(UserError, match="which is what is read"):
        export(tmp_path / "converted", tmp_path / "converted" / "back")


def test_a_model_whose_tokenizer_is_broken_is_not_converted(tiny_folder, tmp_path):
    source = shutil.copytree(tiny_folder, tmp_path / "model")
    (source / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="that can be read"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_folder_is_made_on_the_way(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        convert(tiny_folder, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
