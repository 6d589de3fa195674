"""Weights arrive the same from every layout of files, in every dtype, in little memory and where they are wanted."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from flax.serialization import to_bytes
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from entscale_jax.errors import UserError
from entscale_jax.models import CLIPTextModel
from entscale_jax.weights import checkpoint, pickled
from entscale_jax.weights.checkpoint import write_checkpoint
from entscale_jax.weights.convert import convert
from entscale_jax.weights.files import TRANSFORMERS, find_weights
from entscale_jax.weights.folder import describe
from entscale_jax.weights.torch_format import AbstractRngs, from_torch, load_parameters

NAME = "model.safetensors"
BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Of a number's significand."""


@pytest.fixture(scope="module")
def text(tiny_folder):
    """Of the smallest part, its module and its tensors as stored."""
    config = describe(tiny_folder).text
    return lambda: CLIPTextModel(config, rngs=AbstractRngs()), load_file(tiny_folder / "text_encoder" / NAME)


def _numbers(module):
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def _same(one, another):
    one, another = _numbers(one), _numbers(another)
    return one.keys() == another.keys() and all(np.array_equal(one[path], another[path]) for path in one)


def _load(build, folder, *, allow_pickle=False, dtype=jnp.float32, **options):
    return load_parameters(build, find_weights(folder, TRANSFORMERS, allow_pickle=allow_pickle), dtype, **options)


@pytest.fixture
def plain(text, tmp_path):
    """The part from one safetensors file."""
    build, tensors = text
    (tmp_path / "plain").mkdir()
    save_file(tensors, tmp_path / "plain" / NAME)
    return _load(build, tmp_path / "plain")


def test_shards_give_the_same_weights(text, plain, tmp_path):
    build, tensors = text
    keys = sorted(tensors)
    cuts = [0, 3, len(keys) // 2, len(keys)]
    shards = {}
    for number, (start, stop) in enumerate(pairwise(cuts), 1):
        name = f"model-0000{number}-of-00003.safetensors"
        save_file({key: tensors[key] for key in keys[start:stop]}, tmp_path / name)
        shards |= dict.fromkeys(keys[start:stop], name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert _same(_load(build, tmp_path), plain)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_give_the_same_weights(text, plain, tmp_path, zipped):
    build, tensors = text
    content = {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert _same(_load(build, tmp_path, allow_pickle=True), plain)
    content[_last_bias(content)] += 1
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert not _same(_load(build, tmp_path, allow_pickle=True), plain)


def _last_bias(content):
    """The key of the last norm's bias, whichever prefix it has."""
    return next(key for key in content if key.endswith("final_layer_norm.bias"))


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("stored", BITS)
def test_every_dtype_from_every_dtype(text, tmp_path, stored, dtype):
    build, tensors = text
    held = {key: torch.from_numpy(tensor).to(getattr(torch, stored)) for key, tensor in tensors.items()}
    save_torch_file(held, tmp_path / NAME)
    expected = {key: tensor.to(getattr(torch, dtype)).double() for key, tensor in held.items()}
    with jax.enable_x64(dtype == "float64"):
        found = _numbers(_load(build, tmp_path, dtype=dtype))
    assert {str(array.dtype) for array in found.values()} == {dtype}
    for path, array in found.items():
        *modules, leaf = map(str, path)
        key = ".".join([*modules, "bias" if leaf == "bias" else "weight"])
        tensor = expected.get(key, expected.get(f"text_model.{key}"))
        value = array.astype(np.float64)
        assert np.array_equal(value.T if leaf == "kernel" else value, tensor.numpy()), key
    # The control: fewer bits do lose something.
    exact = all(np.array_equal(expected[key].numpy(), tensors[key]) for key in tensors)
    assert exact == (min(BITS[stored], BITS[dtype]) >= 24)


def test_float64_needs_64_bit_types(text, plain, tmp_path):
    with pytest.raises(UserError, match=r"dtype float64 needs .*jax_enable_x64"):
        _load(text[0], tmp_path / "plain", dtype="float64")


def test_a_header_of_odd_length_leaves_tensors_unaligned(text, plain, tmp_path):
    """As files of early versions of safetensors are."""
    data = (tmp_path / "plain" / NAME).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" "
    (tmp_path / NAME).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert (8 + len(header)) % 4
    assert _same(_load(text[0], tmp_path), plain)


def test_a_tensor_under_two_spellings(text, tmp_path):
    build, tensors = text
    key = _last_bias(tensors)
    other = key.removeprefix("text_model.") if key.startswith("text_model.") else f"text_model.{key}"
    save_file({**tensors, other: tensors[key]}, tmp_path / NAME)
    with pytest.raises(UserError, match=r"holds final_layer_norm\.bias under two keys"):
        _load(build, tmp_path)


def test_arrays_stay_when_the_file_changes(text, plain, tmp_path):
    before = _numbers(plain)
    expected = {path: array.copy() for path, array in before.items()}
    file = tmp_path / "plain" / NAME
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(bytes(file.stat().st_size // 2))
    assert all(np.array_equal(array, expected[path]) for path, array in _numbers(plain).items())


def test_the_default_device_of_a_context_is_kept(text, plain, tmp_path):
    with jax.default_device(jax.devices()[0]):
        assert _same(_load(text[0], tmp_path / "plain"), plain)


SPELT = {
    "variant": (".safetensors", ".fp16.safetensors", {"variant": "fp16"}),
    "pickle": (".safetensors", ".bin", {"allow_pickle": True}),
}


@pytest.mark.parametrize("spelling", SPELT)
def test_the_hash_covers_the_files_that_are_used(tiny_folder, tmp_path, spelling):
    old, new, options = SPELT[spelling]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    others = [Path(str(file).replace(old, new)) for file in folder.glob("*/*.safetensors")]
    others = [file.with_name("pytorch_model.bin") if file.name == "model.bin" else file for file in others]
    for file in others:
        file.write_bytes(b"other weights")
    assert describe(folder).weights_hash == describe(tiny_folder).weights_hash
    for file in folder.glob("*/*.safetensors"):
        if file not in others:
            file.unlink()
    hashes = {describe(folder, **options).weights_hash}
    for file in others:
        file.write_bytes(file.name.encode())
        hashes.add(describe(folder, **options).weights_hash)
    assert len(hashes) == 1 + len(others) == 4


def test_the_hash_covers_every_shard_and_the_index(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    part = folder / "text_encoder"
    shutil.move(part / NAME, part / "model-00001-of-00002.safetensors")
    (part / "model-00002-of-00002.safetensors").write_bytes(b"two")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    hashes = {describe(folder).weights_hash}
    (part / "model-00002-of-00002.safetensors").write_bytes(b"2")
    hashes.add(describe(folder).weights_hash)
    (part / "model.safetensors.index.json").write_text(json.dumps({**index, "metadata": {}}))
    hashes.add(describe(folder).weights_hash)
    assert len(hashes) == 3


def test_a_sharding_that_does_not_fit_is_named(text, plain, tmp_path):
    mesh = jax.make_mesh((1,), ("x",))
    rule = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "x"))
    with pytest.raises(UserError, match=r"\[\d+(, \d+)?\], can't be placed by sharding NamedSharding") as caught:
        _load(text[0], tmp_path / "plain", sharding=rule)
    assert "\n" not in str(caught.value)


def _run(code, *arguments, **environment):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])} | environment
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("converted", [False, True])
def test_parameters_on_a_mesh_of_eight_devices(tiny_folder, tmp_path, converted):
    """In a process of its own, since the number of a host's devices is fixed when JAX starts."""
    if converted:
        convert(tiny_folder, tmp_path / "converted")
    found = _run(MESH, tiny_folder, tmp_path / "converted" if converted else tiny_folder, XLA_FLAGS=EIGHT)
    assert found["equal"]
    # One of the UNet's: a convolution's 3 rows are what 8 does not divide.
    assert re.match(r"[\w.]+\.weight, \[3, 3, \d+, \d+\], can't be placed by sharding ", found["refused"])
    assert found["split"] > 20
    assert found["whole"] > 20
    assert found["rows"] == {"whole": 8, "shard": 1}
    assert "unet.conv_in.weight" in found["names"]
    assert "text_encoder.final_layer_norm.bias" in found["names"]


@pytest.mark.full
def test_parameters_on_a_mesh_draw_the_same(tiny_folder):
    """Slow to compile: every program is partitioned."""
    assert _run(DRAW, tiny_folder, XLA_FLAGS=EIGHT) < 1e-4  # of latents with unit variance


EIGHT = "--xla_force_host_platform_device_count=8"
RULE = """
import json, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from entscale_jax import TextToImage, UserError

mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
names = []

def rule(name, shape):
    names.append(name)
    return NamedSharding(mesh, P(*[None] * (len(shape) - 1), "model") if len(shape) > 1 and shape[-1] % 8 == 0 else P())

pipes = TextToImage.from_pretrained(sys.argv[1]), TextToImage.from_pretrained(sys.argv[-1], sharding=rule)
"""
DRAW = (
    RULE
    + """
one, two = (pipe("a red circle", height=16, width=16, steps=1, decode=False).latents for pipe in pipes)
print(json.dumps(float(np.abs(one - two).max())))
"""
)
MESH = (
    RULE
    + """
def leaves(pipe):
    return [leaf for part in (pipe.text, pipe.unet, pipe.vae) for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))]

plain, split = map(leaves, pipes)
one = leaves(TextToImage.from_pretrained(sys.argv[-1], sharding=NamedSharding(mesh, P())))
assert all(array.sharding.is_fully_replicated and len(array.sharding.device_set) == 8 for array in one)
count = {"whole": 0, "split": 0}
for array in split:
    wanted = array.ndim > 1 and array.shape[-1] % 8 == 0
    assert len(array.addressable_shards) == 8
    assert array.sharding.shard_shape(array.shape)[-1] == array.shape[-1] // (8 if wanted else 1)
    count["split" if wanted else "whole"] += 1
kernel = next(array for array in split if array.shape[-1:] == (8,) and array.ndim > 1)
rows = {"whole": kernel.shape[-1], "shard": kernel.addressable_shards[3].data.shape[-1]}
equal = all(np.array_equal(one, two) for one, two in zip(plain, split, strict=True))
try:
    TextToImage.from_pretrained(sys.argv[-1], sharding=NamedSharding(mesh, P("model")))
except UserError as error:
    refused = str(error)
print(json.dumps({"refused": refused, "equal": equal, "rows": rows, "names": names, **count}))
"""
)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "msgpack", "bin", "orbax"])
def test_memory_stays_near_the_weights(tmp_path, dtype, suffix):
    # Large enough that what is not weights hardly counts, and of many sizes, as a model's tensors are.
    shapes = {f"{index}.weight": (64 * (index + 1), 512, 3, 3) for index in range(20)}
    tensors = {key: np.full(shape, 0.5, np.float32) for key, shape in shapes.items()}
    if suffix == "orbax":
        kernels = {(*key.split(".")[:1], "kernel"): from_torch(("kernel",), array) for key, array in tensors.items()}
        write_checkpoint(tmp_path / "checkpoint", kernels)
    elif suffix == "msgpack":
        kernels = {key.split(".")[0]: {"kernel": from_torch(("kernel",), array)} for key, array in tensors.items()}
        (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(kernels))
    elif suffix == "bin":
        torch.save({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / NAME)
    size = sum(math.prod(shape) for shape in shapes.values()) * jnp.dtype(dtype).itemsize
    peak = _run(PEAK, tmp_path, dtype, len(shapes))
    # Of a pickle a part of fixed size stays mapped, here as much as all of it; orbax holds what one call reads, which
    # ends with the array that exceeds the limit.
    beside = {"safetensors": 0, "msgpack": 0, "bin": pickled._REOPEN_BYTES, "orbax": 2 * checkpoint._GROUP_BYTES}
    assert 0.9 * size < peak < 1.3 * size + beside[suffix]


PEAK = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from flax import nnx
from entscale_jax.weights.checkpoint import load_checkpoint
from entscale_jax.weights.files import find_weights
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters
import orbax.checkpoint
if next(Path(sys.argv[1]).glob("*.bin"), None):
    import torch

def build():
    widths = [64 * (index + 1) for index in range(int(sys.argv[3]))]
    return nnx.List([nnx.Conv(512, width, (3, 3), use_bias=False, rngs=AbstractRngs()) for width in widths])

def memory(name):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])

jax.devices()
jax.eval_shape(lambda: jnp.zeros(3))
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
if (checkpoint := Path(sys.argv[1]) / "checkpoint").is_dir():
    module = load_checkpoint(build, checkpoint, sys.argv[2])
else:
    module = load_parameters(build, find_weights(Path(sys.argv[1]), "model", allow_pickle=True), sys.argv[2])
jax.block_until_ready(nnx.state(module))
print(json.dumps(memory("VmHWM") - before))
"""
