"""SD3's and SD3.5's transformer against PyTorch under every rule; mistakes and other readings must not pass."""

import json
import math
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel as TorchTransformer
from parity_cases import ENTROPY, ORIGINAL
from safetensors.numpy import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.models.joint_attention import JointAttention
from entscale_jax.parity import random_sd3
from entscale_jax.parity.bounds import CONTROL
from entscale_jax.parity.compare import call, precision, relative_error
from entscale_jax.parity.random_models import ENTROPY_MARGIN
from entscale_jax.parity.reference_sd3 import JointProcessor, ReferenceSD3
from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.weights.part import open_part
from entscale_jax.weights.torch_format import save_parameters

BOUNDS = {"float64": 1e-9, "float32": 1e-5}
"""Rounding: measured at worst are 2.5e-14 and 2.0e-6."""
FIXED = Scaling(ScaleRule.FIXED, 0.8)
KINDS = tuple(random_sd3.CONFIGS)
TRAINED = {"sd3": (12, 12), "sd3.5": (15, 15)}
BELOW = {"sd3": (8, 14), "sd3.5": (9, 21)}
ABOVE = {"sd3": (22, 18), "sd3.5": (24, 18)}
"""Latent cells, with a side of as many patches as there are positions for."""
FILE = "diffusion_pytorch_model.safetensors"


def _cases():
    for kind in KINDS:
        for grid in (BELOW, TRAINED, ABOVE):
            for scaling in (ORIGINAL, ENTROPY, FIXED):
                quick = grid is BELOW or (grid is ABOVE and scaling is ENTROPY)
                marks = () if quick else pytest.mark.full
                yield pytest.param(kind, grid[kind], scaling, marks=marks, id=f"{kind}-{grid[kind]}-{scaling.label}")


@pytest.fixture(autouse=True)
def _quick_compiling():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd3")
    return {kind: random_sd3.build(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def reference(folders):
    """(kind, dtype) -> the folder in PyTorch."""
    return {
        (kind, dtype): ReferenceSD3(folder, float64=dtype == "float64")
        for kind, folder in folders.items()
        for dtype in BOUNDS
    }


@pytest.fixture(scope="module")
def predicted(folders):
    """(kind, grid, scaling, dtype) -> our prediction, computed once."""

    @cache
    def predict(kind, grid, scaling, dtype="float64"):
        with precision(float64=dtype == "float64"):
            arrays = (array.astype(dtype) for array in _inputs(kind, grid))
            return call(_opened(folders, kind, dtype), *arrays, rule=scaling)

    return predict


@cache
def _inputs(kind, grid):
    return random_sd3.inputs(random_sd3.CONFIGS[kind], grid)


def _opened(folders, kind, dtype="float64"):
    return open_part(folders[kind], jnp.dtype(dtype))


def _expected(reference, kind, grid, scaling, dtype="float64"):
    return reference[kind, dtype].predict(*_inputs(kind, grid), scaling.rule.value, scaling.multiplier)


@pytest.mark.parametrize(("kind", "grid", "scaling"), list(_cases()))
def test_float64(predicted, reference, kind, grid, scaling):
    got, bound = predicted(kind, grid, scaling), BOUNDS["float64"]
    assert got.dtype == np.float64
    assert relative_error(got, _expected(reference, kind, grid, scaling)) <= bound
    for other in {ORIGINAL, ENTROPY, FIXED} - {scaling}:
        error = relative_error(got, _expected(reference, kind, grid, other))
        same = grid == TRAINED[kind] and FIXED not in (scaling, other)
        assert error <= bound if same else error >= CONTROL * bound


@pytest.mark.parametrize("kind", KINDS)
def test_float32(predicted, reference, kind):
    grid, bound = BELOW[kind], BOUNDS["float32"]
    got = predicted(kind, grid, ENTROPY, "float32")
    assert got.dtype == np.float32
    assert relative_error(got, _expected(reference, kind, grid, ENTROPY, "float32")) <= bound
    assert relative_error(got, _expected(reference, kind, grid, ORIGINAL, "float32")) >= CONTROL * bound


@pytest.mark.parametrize("kind", KINDS)
def test_rule_original_is_plain_diffusers(folders, predicted, reference, kind):
    grid = BELOW[kind]
    latents, timesteps, context, pooled = (torch.tensor(array).float() for array in _inputs(kind, grid))
    model = TorchTransformer.from_pretrained(folders[kind]).eval()
    assert not any(isinstance(each, JointProcessor) for each in model.attn_processors.values())
    with torch.no_grad():
        plain = model(latents.permute(0, 3, 1, 2), context, pooled, timesteps).sample.permute(0, 2, 3, 1).numpy()
    # What is left of float64 is what diffusers computes in float32.
    assert relative_error(predicted(kind, grid, ORIGINAL), plain) <= BOUNDS["float32"]
    assert relative_error(_expected(reference, kind, grid, ORIGINAL, "float32"), plain) <= 1e-6
    assert relative_error(predicted(kind, grid, ENTROPY), plain) >= CONTROL * BOUNDS["float32"]


def _counting_text(processor, tokens, head_dim):
    text = random_sd3.TEXT_TOKENS
    return math.sqrt(math.log(tokens + text) / math.log(processor.train_tokens + text) / head_dim)


def _in_cells(processor, tokens, head_dim):
    return math.sqrt(math.log(4 * tokens) / math.log(4 * processor.train_tokens) / head_dim)


@pytest.mark.parametrize(
    ("method", "reading"),
    [
        pytest.param("text_scale", JointProcessor.image_scale, id="text rows scaled too"),
        pytest.param("image_scale", _counting_text, id="text tokens counted in N and T"),
        pytest.param("image_scale", _in_cells, id="latent cells counted, not patches"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_reading_is_seen(predicted, reference, monkeypatch, kind, method, reading):
    grid = BELOW[kind]
    assert relative_error(predicted(kind, grid, ENTROPY), _expected(reference, kind, grid, ENTROPY)) <= 1e-9
    monkeypatch.setattr(JointProcessor, method, reading)
    missed = relative_error(predicted(kind, grid, ENTROPY), _expected(reference, kind, grid, ENTROPY))
    assert missed >= CONTROL * BOUNDS["float64"]


def test_the_second_attention_has_the_rule(predicted, reference, monkeypatch):
    kind, grid = "sd3.5", BELOW["sd3.5"]
    layers = reference[kind, "float64"].layers
    assert [name for name in layers if name.endswith("attn2")] == [f"transformer_blocks/{i}/attn2" for i in (0, 2)]
    monkeypatch.setattr(layers["transformer_blocks/2/attn2"], "image_scale", lambda tokens, d: 1 / math.sqrt(d))
    missed = relative_error(predicted(kind, grid, ENTROPY), _expected(reference, kind, grid, ENTROPY))
    assert missed >= CONTROL * BOUNDS["float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_has_structure_and_every_parameter_varies(reference, kind):
    found = random_sd3.margins(reference[kind, "float64"])
    assert set(found) == set(reference[kind, "float64"].layers)
    assert min(found.values()) >= ENTROPY_MARGIN
    for name, parameter in reference[kind, "float64"].model.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.std() > 0.01, f"{name} is constant"


def test_recorded_entropy(folders, reference):
    kind, grid = "sd3.5", BELOW["sd3.5"]
    # jnp.argmax gives int64 here, which is compared with int32.
    with precision(float64=True), jax.numpy_dtype_promotion("standard"):
        model = _opened(folders, kind)

        def measure(*arrays):
            recorded = {}
            model(*arrays, rule=ENTROPY, record=lambda name, entropy, gap: recorded.update({name: entropy}))
            return recorded

        found = jax.tree.map(np.asarray, jax.jit(measure)(*map(jnp.asarray, _inputs(kind, grid))))
    expected = reference[kind, "float64"].entropies(*_inputs(kind, grid), rule="entropy")
    assert set(found) == set(expected) == set(model.attention_layers())
    assert max(np.abs(found[name] - expected[name]).max() for name in expected) <= 1e-9
    plain = reference[kind, "float64"].entropies(*_inputs(kind, grid), rule="original")
    assert min(np.abs(found[name] - plain[name]).max() for name in expected) >= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_save_is_what_pytorch_saved(folders, kind, tmp_path):
    save_parameters(_opened(folders, kind, "float32"), tmp_path / "saved.safetensors")
    saved, expected = load_file(tmp_path / "saved.safetensors"), load_file(folders[kind] / FILE)
    assert saved.keys() == expected.keys()
    assert all(np.array_equal(saved[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("pos_embed.pos_embed"), "missing key pos_embed.pos_embed"),
        (
            lambda tensors: tensors.pop("transformer_blocks.1.attn.add_q_proj.weight"),
            "missing key transformer_blocks.1.attn.add_q_proj.weight",
        ),
        (lambda tensors: tensors.update(extra=np.zeros(1, np.float32)), "unused key extra"),
        (
            lambda tensors: tensors.update({"proj_out.bias": np.zeros(5, np.float32)}),
            r"wrong shape proj_out.bias: \[5\], the config asks for \[24\]",
        ),
    ],
)
def test_loading_is_strict(folders, tmp_path, change, message):
    folder = shutil.copytree(folders["sd3"], tmp_path / "model")
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    with pytest.raises(UserError, match=message) as caught:
        open_part(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "FluxTransformer2DModel"},
            "'FluxTransformer2DModel': implemented are .*SD3Transformer2DModel",
        ),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm'"),
    ],
)
def test_what_is_not_implemented_is_named_on_opening(folders, tmp_path, change, message):
    raw = json.loads((folders["sd3"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(UserError, match=message) as caught:
        open_part(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "grid", "scaling", "message"),
    [
        ("sd3", (8, 13), None, "grid of 13x8 can't be cut into patches of 2x2"),
        ("sd3.5", (10, 9), None, "grid of 9x10 can't be cut into patches of 3x3"),
        ("sd3", (24, 8), None, "grid of 8x24 is beyond the 22x22 that pos_embed_max_size=11"),
        ("sd3", (2, 2), None, "leaves 1 token"),
        ("sd3", (8, 14), Scaling(ScaleRule.FIXED, (0.8, 0.9)), "multiplier has 2 values and the model 1 levels"),
    ],
)
def test_what_can_not_be_drawn_is_said(folders, kind, grid, scaling, message):
    arrays = [jnp.asarray(array, jnp.float32) for array in _inputs(kind, grid)]
    with pytest.raises(UserError, match=message) as caught:
        _opened(folders, kind, "float32")(*arrays, rule=scaling)
    assert "\n" not in str(caught.value)


def test_layers_are_found_by_their_paths(folders):
    layers = _opened(folders, "sd3.5", "float32").attention_layers()
    assert all(isinstance(layer, JointAttention) and layer.layer == name for name, layer in layers.items())
    assert {layer.train_tokens for layer in layers.values()} == {25}
