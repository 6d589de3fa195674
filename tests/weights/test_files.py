"""Which files a part's weights are read from: never another variant or format than the one asked for."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from entscale_jax.errors import UserError
from entscale_jax.weights.files import DIFFUSERS, TRANSFORMERS, Format, find_weights, variants
from entscale_jax.weights.stored import read_stored

SHARDS = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def _touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def _sharded(folder, index=INDEX, shards=SHARDS, weight_map=None):
    tensors = {"one": np.arange(3.0), "two": np.arange(5.0), "three": np.arange(7.0)}
    save_file({"one": tensors["one"], "two": tensors["two"]}, folder / shards[0])
    save_file({"three": tensors["three"]}, folder / shards[1])
    weight_map = weight_map or {"one": shards[0], "three": shards[1], "two": shards[0]}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize(
    ("stem", "variant", "allow_pickle", "expected"),
    [
        (DIFFUSERS, None, False, "diffusion_pytorch_model.safetensors"),
        (DIFFUSERS, "fp16", False, "diffusion_pytorch_model.fp16.safetensors"),
        (DIFFUSERS, "non_ema", True, "diffusion_pytorch_model.non_ema.bin"),
        (TRANSFORMERS, None, True, "model.safetensors"),
        (TRANSFORMERS, "fp16", True, "pytorch_model.fp16.bin"),
        (TRANSFORMERS, "flax", True, "flax_model.flax.msgpack"),
    ],
)
def test_the_file_asked_for_is_taken(tmp_path, stem, variant, allow_pickle, expected):
    _touch(
        tmp_path,
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.bin",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.fp16.bin",
        "flax_model.msgpack",
        "flax_model.flax.msgpack",
        "diffusion_flax_model.msgpack",
        "model.onnx",
    )
    found = find_weights(tmp_path, stem, variant=variant, allow_pickle=allow_pickle)
    assert found.files == found.all == (tmp_path / expected,)
    assert expected.endswith(f".{found.format}")


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_msgpack_goes_before_a_pickle_and_is_all_that_flax_reads(tmp_path, allow_pickle):
    names = ("diffusion_flax_model.msgpack", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors")
    _touch(tmp_path, *names)
    found = find_weights(tmp_path, DIFFUSERS, allow_pickle=allow_pickle)
    assert (found.files, found.format) == ((tmp_path / names[0],), Format.MSGPACK)
    _touch(tmp_path, "diffusion_pytorch_model.safetensors")
    assert find_weights(tmp_path, DIFFUSERS, allow_pickle=allow_pickle).format is Format.SAFETENSORS
    assert find_weights(tmp_path, DIFFUSERS, allow_pickle=allow_pickle, flax=True).format is Format.MSGPACK


@pytest.mark.parametrize(
    ("variant", "index", "shards"),
    [
        (None, INDEX, SHARDS),
        (
            "fp16",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            tuple(name.replace("model-", "model.fp16-") for name in SHARDS),
        ),
        (
            "fp16",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            tuple(name.replace(".safe", ".fp16.safe") for name in SHARDS),
        ),
    ],
)
def test_shards_by_their_index(tmp_path, variant, index, shards):
    tensors = _sharded(tmp_path, index, shards)
    found = find_weights(tmp_path, DIFFUSERS, variant=variant)
    assert found.files == tuple(tmp_path / name for name in shards)
    assert found.all == (tmp_path / index, *found.files)
    assert found.shards["three"] == tmp_path / shards[1]
    stored = read_stored(found)
    assert stored.keys() == tensors.keys()
    assert all(np.array_equal(stored[key].read(), tensors[key]) for key in tensors)


def test_one_file_goes_before_an_index(tmp_path):
    _sharded(tmp_path)
    _touch(tmp_path, "diffusion_pytorch_model.safetensors")
    assert find_weights(tmp_path, DIFFUSERS).index is None


def test_variants_are_told_from_shards():
    names = [
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.bf16.json",
        "diffusion_pytorch_model.non_ema.bin",
        "diffusion_pytorch_model.onnx",
    ]
    assert variants(names, DIFFUSERS) == ["bf16", "non_ema"]
    assert variants([*names, "diffusion_pytorch_model.bin"], DIFFUSERS) == ["", "bf16", "non_ema"]
    assert variants(names, TRANSFORMERS) == []


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, r"unet/diffusion_pytorch_model\.safetensors is missing"),
        ([SHARDS[0]], {}, r"unet/diffusion_pytorch_model\.safetensors\.index\.json is missing"),
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
            {"variant": "fp16"},
            r"no weights of variant='fp16': there is None \(names without a variant\), 'non_ema'",
        ),
        (["diffusion_pytorch_model.fp16.safetensors"], {}, r"no weights of variant=None: there is 'fp16'"),
        (["diffusion_pytorch_model.bin"], {}, r"only as diffusion_pytorch_model\.bin, a pickle.*allow_pickle=True"),
        (
            ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"],
            {"variant": "bf16", "allow_pickle": True},
            r"no weights of variant='bf16': there is None \(names without a variant\), 'fp16'",
        ),
    ],
)
def test_weights_that_are_not_there(tmp_path, names, options, message):
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        find_weights(_touch(tmp_path / "unet", *names), DIFFUSERS, **options)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_a_part(tmp_path):
    with pytest.raises(UserError, match="unet is a file"):
        find_weights(_touch(tmp_path, "unet") / "unet", DIFFUSERS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"index\.json is no index of shards \(JSONDecodeError"),
        ("[]", "no index of shards"),
        ('{"weight_map": ["a"]}', "no index of shards"),
        ('{"metadata": {}}', r"no index of shards \(KeyError: 'weight_map'\)"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"one": "a.safetensors", "one": "b.safetensors"}}', "names one twice"),
        ('{"weight_map": {"one": "../a.safetensors"}}', r"names '\.\./a\.safetensors' as a shard"),
        ('{"weight_map": {"one": 3}}', "names 3 as a shard"),
        ('{"weight_map": {"one": "gone.safetensors"}}', r"names the shard gone\.safetensors, which is not in"),
    ],
)
def test_a_broken_index(tmp_path, index, message):
    _touch(tmp_path, "a.safetensors", "b.safetensors")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(UserError, match=message) as caught:
        find_weights(tmp_path, DIFFUSERS)
    assert INDEX in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "shard"), [("three", 0), ("four", 1)])
def test_an_index_that_does_not_fit_its_shards(tmp_path, key, shard):
    _sharded(tmp_path, weight_map={"one": SHARDS[0], "two": SHARDS[0], "three": SHARDS[1], key: SHARDS[shard]})
    with pytest.raises(UserError, match=f"names {key} in {SHARDS[shard]}, which does not hold it"):
        read_stored(find_weights(tmp_path, DIFFUSERS))


def test_a_tensor_in_two_shards(tmp_path):
    _sharded(tmp_path)
    save_file({"three": np.arange(7.0), "one": np.arange(3.0)}, tmp_path / SHARDS[1])
    with pytest.raises(UserError, match=f"one is in two shards, {SHARDS[0]} and {SHARDS[1]}"):
        read_stored(find_weights(tmp_path, DIFFUSERS))
