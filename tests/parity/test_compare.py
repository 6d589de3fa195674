"""`compare` as the command calls it: the rows, what fails, and what a user got wrong."""

import io
import json
import math
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.parity import Row, compare, exit_status, markdown, print_table
from entscale_jax.parity.bounds import BOUNDS
from entscale_jax.parity.compare import REFERENCES, image_error, relative_error
from entscale_jax.weights.folder import describe


@pytest.fixture(scope="module", autouse=True)
def _switches():
    # Half the time of compiling; these tests are about the table.
    jax.config.update("jax_disable_most_optimizations", True)
    # flax asks for the common type of float64 and float32 in its norms, which "strict" refuses.
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def rows(folders):
    return compare(folders["sd1"], size=(104, 56), steps=2)


def test_every_module_has_a_row_that_passes(rows):
    assert [(row.module, row.rule) for row in rows] == [
        ("text encoder", "-"),
        ("text encoder, swapped", "-"),
        ("time embedding", "-"),
        ("VAE encode", "-"),
        ("VAE encode, swapped", "-"),
        ("VAE decode", "-"),
        ("VAE decode, swapped", "-"),
        ("UNet", "original"),
        ("UNet", "entropy"),
        ("DDIM latents", "original"),
        ("DDIM images", "original"),
        ("DDIM, other rule", "original"),
        ("DDIM latents", "entropy"),
        ("DDIM images", "entropy"),
        ("DDIM, other rule", "entropy"),
    ]
    assert {row.size for row in rows} == {"-", "104x56"}
    assert all(row.passed for row in rows)
    assert exit_status(rows) == 0


@pytest.mark.parametrize("model", ["ldm-kl", "ldm-vq", "sdxl"])
def test_every_family_is_compared(folders, model):
    rows = compare(folders[model], size=(104, 56), rules=["entropy"], steps=1)
    found = {row.module for row in rows}
    assert {"text encoder", "VAE encode", "VAE decode", "UNet", "DDIM latents", "DDIM, other rule"} <= found
    assert ("pooled text" in found) == (model == "sdxl")
    assert [row for row in rows if not row.passed] == []


def test_float64_adds_the_control_of_the_unet(folders):
    rows = compare(folders["sd1"], size=(104, 56), rules=["entropy"], float64=True)
    by_module = {row.module: row for row in rows}
    assert by_module["UNet"].bound == 1e-9
    assert by_module["UNet, other rule"].control
    assert by_module["UNet, other rule"].bound == pytest.approx(1e-7)
    assert all(row.passed for row in rows)


def test_calibrated_without_value_is_told_before_anything_is_opened(folders):
    entropies = dict.fromkeys(describe(folders["sd1"]).unet.self_attention, 3.0)
    with pytest.raises(UserError, match=r"no value in layer .*attn1 at N = "):
        compare(folders["sd1"], size=(104, 56), rules=["calibrated"], train_entropy=entropies)


def test_other_weights_fail(folders, tmp_path, monkeypatch):
    """The JAX side gets a folder with one weight of the UNet altered by 1e-3."""
    altered = tmp_path / "altered"
    shutil.copytree(folders["sd1"], altered)
    file = altered / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    opened = REFERENCES["StableDiffusionPipeline"]
    monkeypatch.setitem(REFERENCES, "StableDiffusionPipeline", lambda _, **options: opened(folders["sd1"], **options))
    rows = compare(altered, size=(104, 56), rules=["original"])
    assert [row.module for row in rows if not row.passed] == ["UNet"]
    assert exit_status(rows) == 1


def test_train_size_moves_both_sides_and_each_layers_entropy_its_scale(folders):
    """16x16 cells under a training size of 32x32 ask for multipliers below 1, and the reference finds them itself.

    E_T differs from layer to layer, so that one taken for another would show; the control is the paper's rule.
    """
    layers = describe(folders["sd1"]).unet.self_attention
    # Of 4 tokens at the deepest level log N is 1.386.
    entropies = {name: 1.2 + 0.04 * (index % 5) for index, name in enumerate(layers)}
    given = {"train_entropy": entropies, "train_size": (256, 256)}
    rows = compare(folders["sd1"], size=(128, 128), rules=["entropy", "calibrated"], float64=True, **given)
    controls = [row.rule.split(":")[0] for row in rows if row.module == "UNet, other rule"]
    assert controls == ["entropy", "calibrated"]
    assert {row.bound for row in rows if row.module == "UNet"} == {1e-9}
    assert all(row.passed for row in rows)


@pytest.mark.parametrize(
    ("error", "bound", "control", "passed"),
    [(1, 2, False, True), (2, 1, False, False), (1, 2, True, False), (2, 1, True, True), (math.nan, 1, False, False)],
)
def test_a_row_passes_below_its_bound_and_a_control_above(error, bound, control, passed):
    assert Row("UNet", "8x8", "entropy", error, bound, control).passed is passed
    assert exit_status([Row("UNet", "8x8", "entropy", error, bound, control)]) == (0 if passed else 1)


def test_no_rows_are_no_success():
    assert exit_status([]) == 1


def test_table_names_what_failed():
    rows = [
        Row("UNet", "104x56", "entropy", 2e-3, 1e-9),
        Row("UNet, other rule", "104x56", "entropy", 2e-3, 1e-7, True),
    ]
    stream = io.StringIO()
    print_table(rows, Console(file=stream, width=100))
    for text in (stream.getvalue(), markdown(rows)):
        assert "2.0e-03" in text
        assert "≤ 1.0e-09" in text
        assert "≥ 1.0e-07" in text
        assert text.count("FAILED") == text.count("ok") == 1


def test_errors_are_defined_as_documented():
    assert relative_error(np.array([1.0, -4.0]), np.array([2.0, -5.0])) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="shapes differ"):
        relative_error(np.zeros((2, 3)), np.zeros((3, 2)))
    expected = np.full((1, 10, 100, 1), 0.5)
    images = np.full(expected.shape, 128, np.uint8)
    assert image_error(images, expected) == pytest.approx(0.5)
    images[0, 0, :2] = 90
    assert image_error(images, expected) > 1  # two values in a thousand
    with pytest.raises(ValueError, match="shapes differ"):
        image_error(images, expected[:, :5])


def test_every_bound_has_its_reason():
    assert {dtype for _, dtype in BOUNDS} == {"float32", "float64"}
    assert all(bound.reason for bound in BOUNDS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 0)}, "width is 0|height is 0"),
        ({"size": (4, 64)}, "one latent cell"),
        ({"size": (8, 8)}, "deepest"),
        ({"rules": []}, "rules is empty"),
        ({"rules": ["entropic"]}, "unknown rule 'entropic'"),
        ({"rules": [{"rule": "fixed", "multiplier": [0.9, 1.0]}]}, "4 levels"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
    ],
)
def test_bad_input_is_one_line(folders, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        compare(folders["sd1"], **{"size": (104, 56), **arguments})
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        compare(tmp_path / "nowhere", size=(64, 64))


def test_an_unsupported_config_is_named(folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders["sd1"], broken)
    file = broken / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "class_embed_type": "timestep"}))
    with pytest.raises(UserError, match="class_embed_type"):
        compare(broken, size=(104, 56))
