"""Inception's features are PyTorch's, of a reference written apart and, where it is installed, of torch-fidelity."""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inception_reference import Inception, random_weights
from safetensors.torch import save_file

from entscale_jax.errors import UserError
from entscale_jax.metrics import inception
from entscale_jax.metrics.inception import inception_extractor, load_inception
from entscale_jax.metrics.resize import clean_batch

# Relative to the largest feature.
FLOAT32, FLOAT64 = 1e-5, 1e-12  # measured 5.2e-7 (torch-fidelity 0.4.0, 299x299) and 2.4e-15
SIZE = (107, 91)  # the network asks for 75 or more; both pools meet odd and even grids on the way


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, file)
    return file


@pytest.mark.parametrize("height", [4, 5])
def test_pools_are_those_of_the_published_graph(height):
    """Averages of what lies inside, and maxima that go past the edge; beside them what later versions do."""
    hidden = np.random.default_rng(0).normal(size=(2, height, 3, 5)).astype(np.float32) - 3
    there = torch.from_numpy(hidden.transpose(0, 3, 1, 2))
    average = F.avg_pool2d(there, 3, 1, 1, count_include_pad=False).numpy().transpose(0, 2, 3, 1)
    padded = F.avg_pool2d(there, 3, 1, 1).numpy().transpose(0, 2, 3, 1)
    maximum = F.max_pool2d(there, 3, 1, 1).numpy().transpose(0, 2, 3, 1)
    assert np.abs(inception._average(jnp.asarray(hidden)) - average).max() < 1e-6
    assert np.abs(average - padded).max() > 1
    assert np.array_equal(inception._maximum(jnp.asarray(hidden), stride=1), maximum)
    halved = F.max_pool2d(there, 3, 2).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(inception._maximum(jnp.asarray(hidden)), halved)


def _pixels(count=1, size=SIZE):
    return np.random.default_rng(0).uniform(0, 255, (count, *size, 3)).astype(np.float32)


def _torch(model, pixels, dtype=torch.float32):
    return model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).to(dtype)).numpy()


def _far(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.full
def test_features_in_float64(weights, file):
    with jax.enable_x64():
        module = load_inception(file, jnp.float64)
        found = np.asarray(jax.jit(module.__call__)(jnp.asarray(_pixels(), jnp.float64)))
    wide = {name: tensor.double() for name, tensor in weights.items()}
    expected = _torch(Inception(wide), _pixels(), torch.float64)
    assert found.shape == (1, 2048)
    assert expected.std() > 0.01 * expected.max()
    assert _far(found, expected) < FLOAT64
    # Controls: what torchvision's Inception does instead, each by itself.
    assert _far(_torch(Inception(wide, count_padding=True), _pixels(), torch.float64), expected) > 1e-3
    assert _far(_torch(Inception(wide, average_last=True), _pixels(), torch.float64), expected) > 1e-3


@pytest.mark.full
def test_an_extractor_resizes_and_names_its_weights(weights, file, tmp_path, monkeypatch):
    monkeypatch.setattr("entscale_jax.metrics.inception.SIDE", 83)
    save_file({name: tensor for name, tensor in weights.items() if "fc" not in name}, tmp_path / "i.safetensors")
    extractor = inception_extractor(tmp_path / "i.safetensors")
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 48, 3), np.uint8)
    expected = _torch(Inception(weights), clean_batch(images, 83, 83))
    assert _far(extractor(images, batch=2), expected) < FLOAT32
    assert (extractor.width, extractor.resize[:11]) == (2048, "PIL bicubic")
    assert extractor.hash != inception_extractor(file).hash


def test_other_files_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="do not exist"):
        load_inception(tmp_path / "absent.pth")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(UserError, match=r"end in '.h5': read are .safetensors, .pth"):
        load_inception(tmp_path / "weights.h5")
    some = {name: tensor for name, tensor in weights.items() if "Mixed_7c.branch1x1" not in name}
    torch.save({**some, "AuxLogits.fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"missing key Mixed_7c.branch1x1.bn.bias; .*unused key AuxLogits.fc.bias"):
        load_inception(tmp_path / "other.pth")


@pytest.mark.full
def test_features_of_the_published_class(file, monkeypatch):
    """At 299x299, where the class that comes with the published weights resizes nothing."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torch-fidelity is not installed: it asks for torchvision, which goes with few builds of torch")
    # The package as a whole imports torchvision; the module of this network does not.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    published = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    model = published.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    images = np.random.default_rng(2).integers(0, 256, (2, 299, 299, 3), np.uint8)
    (expected,) = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert _far(inception_extractor(file)(images, batch=2), expected.numpy()) < FLOAT32
