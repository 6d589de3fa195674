"""PyTorch's `.bin` is read where it is allowed, gives the same numbers, and never runs code."""

import os
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from entscale_jax.errors import UserError
from entscale_jax.weights import pickled
from entscale_jax.weights.pickled import open_pickled


class _Malicious:
    """A pickle of it runs a command when it is opened by `pickle.load`."""

    def __init__(self, witness):
        self._witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self._witness}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_arrive(tmp_path, dtype, zipped):
    expected = {"a.weight": torch.randn(3, 5).to(dtype), "b": torch.randn(7, 2).to(dtype).T}
    torch.save(expected, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    found = open_pickled(tmp_path / "x.bin")
    assert {key: tensor.shape for key, tensor in found.items()} == {"a.weight": (3, 5), "b": (2, 7)}
    for key, tensor in expected.items():
        array = found[key].read()
        assert array.dtype == jnp.dtype(str(dtype).removeprefix("torch."))
        assert np.array_equal(array.astype(np.float64), tensor.double().numpy())


def test_a_file_is_mapped_anew_on_the_way(tmp_path, monkeypatch):
    tensors = {f"{index}.weight": torch.randn(3, index + 1) for index in range(5)}
    torch.save(tensors, tmp_path / "x.bin")
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(options) or load(*args, **options))
    monkeypatch.setattr(pickled, "_REOPEN_BYTES", 30)
    found = open_pickled(tmp_path / "x.bin")
    assert all(np.array_equal(found[key].read(), tensor.numpy()) for key, tensor in tensors.items())
    assert len(opened) > 2
    assert all(options["mmap"] and options["weights_only"] for options in opened)


def _save_with_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, _save_with_pickle])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path, save):
    file, witness = tmp_path / "x.bin", tmp_path / "ran"
    save({"a": _Malicious(witness)}, file)
    with pytest.raises(
        UserError, match=r"x\.bin is refused: its pickle asks for \w+\.system, .*could run code"
    ) as caught:
        open_pickled(file)
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    # The control: PyTorch's own loader with its guard down does run it.
    if save is torch.save:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a"], "something else than tensors by name"),
        ({"state_dict": {"a": torch.zeros(2)}}, "something else than tensors by name"),
        ({"a": torch.zeros(2), "epoch": 3}, "something else than tensors by name"),
    ],
)
def test_a_file_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match=message):
        open_pickled(tmp_path / "x.bin")


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"no pickle", lambda data: b""])
def test_a_broken_file(tmp_path, spoil):
    torch.save({"a": torch.randn(100)}, tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(spoil((tmp_path / "x.bin").read_bytes()))
    with pytest.raises(UserError, match=r"x\.bin can't be read") as caught:
        open_pickled(tmp_path / "x.bin")
    assert "\n" not in str(caught.value)


def test_every_dtype_is_named_as_in_safetensors(tmp_path):
    tensors = {"position_ids": torch.arange(3), "half": torch.ones(2, dtype=torch.bfloat16), "odd": torch.ones(1) * 1j}
    torch.save(tensors, tmp_path / "x.bin")
    opened = open_pickled(tmp_path / "x.bin")
    assert {key: tensor.dtype for key, tensor in opened.items()} == {
        "position_ids": "I64",
        "half": "BF16",
        "odd": "complex64",
    }
    assert opened["position_ids"].read().tolist() == [0, 1, 2]


def test_without_pytorch(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"PyTorch is not installed: pip install 'entscale-jax\[parity\]'"):
        open_pickled(tmp_path / "x.bin")
