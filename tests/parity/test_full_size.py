"""The comparison at full size, on small models: what it must see, what it keeps, and what it has written."""

import itertools
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import full_size
import full_size_steps as steps
import jax
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as TorchUNet
from full_size import Model, Row
from published import SIZES, TRAIN_TOKENS, UNETS
from safetensors.torch import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.parity.reference import install

PLAIN = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "block_out_channels": [16, 24],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4],
    "norm_num_groups": 8,
    "cross_attention_dim": 20,
    "in_channels": 4,
    "out_channels": 4,
}
TOLD = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 10,
    "projection_class_embeddings_input_dim": 14 + 6 * 10,
}
ONE = Model("one", PLAIN, ((56, 104),))
"""13x7 cells."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "parity-full.md"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARAMETERS = {"SD 1.5": 859.52, "SD 2.1 base": 865.91, "SD 2.1": 865.91, "LDM": 872.30, "SDXL": 2567.46}
"""Millions, of which public logs tell: "DiffusionWrapper has 859.52 M params." is what CompVis' and Stability's code
prints on loading a model; SDXL's 2,567,463,684 stand in logs of training it."""


def here(step, *arguments):
    return step(*arguments)


def after(named, meddle):
    """Runs the steps here, and `meddle` on the folder after the one of that name."""

    def run(step, *arguments):
        done = step(*arguments)
        if step.__name__ == named:
            meddle(arguments[1] if named == "write" else arguments[0])
        return done

    return run


def change_weights(change):
    def meddle(folder):
        tensors = load_file(folder / WEIGHTS)
        save_file({name: change(name, tensor.clone()) for name, tensor in tensors.items()}, folder / WEIGHTS)

    return meddle


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "parity-full.md"
    file.write_text("before\n<!-- measured: parity-full -->\n<!-- end of measured: parity-full -->\nafter\n")
    return file


@pytest.mark.parametrize(
    "model",
    [Model("plain", PLAIN, ((56, 104), (136, 56))), Model("told sizes", {**PLAIN, **TOLD}, ((104, 56),))],
    ids=lambda model: model.name,
)
def test_equal_models_pass_at_every_size_and_rule(model, tmp_path):
    found = full_size.measure(model, tmp_path / "weights", here)
    sizes = [f"{width}x{height}" for width, height in model.sizes]
    assert [(row.size, row.rule) for row in found.rows] == [(size, rule) for size in sizes for rule in steps.RULES]
    assert found.passed
    assert all(0 < row.error < 1e-5 < 1e-3 < row.other_rule for row in found.rows)
    assert found.margin > 0.1
    assert found.parameters == sum(each.numel() for each in TorchUNet.from_config(dict(model.config)).parameters())
    assert not (tmp_path / "weights").exists()


def negated(name, tensor):
    return -tensor if name == "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight" else tensor


def uniform(name, tensor):
    return tensor * 0 if name.endswith("attn1.to_q.weight") else tensor


def test_a_wrong_weight_fails(tmp_path):
    found = full_size.measure(ONE, tmp_path / "weights", after("expect", change_weights(negated)))
    assert not any(row.passed for row in found.rows)
    assert all(row.error > 1e-3 for row in found.rows)


def test_the_wrong_rule_fails(tmp_path):
    def swap(folder):
        outputs = dict(np.load(folder / "expected.npz"))
        np.savez(folder / "expected.npz", **dict(zip(outputs, [*outputs.values()][::-1], strict=True)))

    found = full_size.measure(ONE, tmp_path / "weights", after("expect", swap))
    assert not any(row.passed for row in found.rows)
    assert all(row.error > 1e-3 > 1e-5 > row.other_rule for row in found.rows)


def test_attention_that_no_rule_acts_on_fails(tmp_path):
    found = full_size.measure(ONE, tmp_path / "weights", after("write", change_weights(uniform)))
    assert all(row.error < 1e-5 for row in found.rows)
    assert found.margin == pytest.approx(0, abs=1e-5)
    assert not any(row.passed for row in found.rows)


@pytest.mark.parametrize(
    ("error", "other_rule", "passed"),
    [
        (1e-6, 2e-4, True),
        (1e-6, 0.9e-4, False),
        (1e-6, None, True),
        (1.1e-4, 1.0, False),
        (math.nan, 1.0, False),
        (1e-6, math.nan, False),
    ],
)
def test_a_row_passes_within_the_bound_and_where_its_control_misses(error, other_rule, passed):
    row = Row("8x8", "entropy", error, other_rule, 1.0, 2.0)
    assert row.passed is passed
    assert ("FAILED" in " ".join(full_size._cells(row))) is not passed


class Canned:
    """In place of the steps: writes down which are asked for, stops at one of them, and has the same to say of any."""

    def __init__(self, stop=None, error=1e-6):
        self.steps, self.stop, self.error = [], stop, error

    def __call__(self, step, *arguments):
        self.steps.append(step.__name__)
        if len(self.steps) == self.stop:
            raise KeyboardInterrupt
        if step is steps.write:
            arguments[1].mkdir()
            return steps.Written(123_456, 1.0)
        calls = list(itertools.product(arguments[1], steps.RULES))
        if step is steps.expect:
            return steps.Expected([2.0 for _ in calls], 0.5, 10**9)
        return steps.Compared([steps.Error(*call, self.error, 1e-2, 3.0) for call in calls], 4.0, 10**9)


ALL = ["write", "expect", "compare"]


def test_a_stopped_run_goes_on_with_the_model_that_it_stopped_at(tmp_path, document):
    models, kept = [ONE, Model("two", PLAIN, ((72, 40),))], tmp_path / "kept"
    stopped = Canned(stop=5)
    with pytest.raises(KeyboardInterrupt):
        full_size.main(document, models, kept=kept, run=stopped)
    assert stopped.steps == [*ALL, "write", "expect"]
    text = document.read_text()
    assert "| one | 56x104 | entropy | 1.0e-06 | 1.0e-02 | 2 | 3 |" in text
    assert "| two |" not in text
    assert f"Not measured yet: {', '.join(SIZES)}, two." in text
    assert [file.name for file in kept.iterdir()] == ["rows.json"]
    rest = Canned(error=2e-6)
    assert full_size.main(document, models, kept=kept, run=rest) == 0
    assert rest.steps == ALL
    text = document.read_text()
    assert "| one | 56x104 | entropy | 1.0e-06 |" in text
    assert "| two | 72x40 | original | 2.0e-06 |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ONE, []),
        (Model("one", {**PLAIN, "layers_per_block": 2}, ONE.sizes), ALL),
        (Model("one", PLAIN, ((104, 56),)), ALL),
    ],
)
def test_what_passed_is_kept_for_the_same_config_and_sizes(tmp_path, document, model, expected):
    full_size.main(document, [ONE], kept=tmp_path, run=Canned())
    again = Canned()
    assert full_size.main(document, [model], kept=tmp_path, run=again) == 0
    assert again.steps == expected


def test_what_failed_is_said_and_measured_again(tmp_path, document):
    assert full_size.main(document, [ONE], kept=tmp_path, run=Canned(error=2e-4)) == 1
    assert document.read_text().count("FAILED") == 2
    again = Canned()
    assert full_size.main(document, [ONE], kept=tmp_path, run=again) == 0
    assert again.steps == ALL
    assert "FAILED" not in document.read_text()


def test_a_document_without_the_section_is_refused_before_anything_is_measured(tmp_path):
    file = tmp_path / "other.md"
    file.write_text("# Other\n")
    with pytest.raises(UserError, match="parity-full"):
        full_size.main(file, [ONE], kept=tmp_path / "kept", run=Canned(stop=1))


def test_unknown_models_are_refused():
    assert [model.name for model in full_size.published(["LDM", "SD 1.5"])] == ["LDM", "SD 1.5"]
    with pytest.raises(UserError, match=r"'SD 9'.*SD 1\.5, .*SDXL"):
        full_size.published(["SD 9"])


def test_a_full_disk_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000_000))
    with pytest.raises(UserError, match=r"10\.0 GB free and the weights take 10\.3 GB.*--models"):
        steps.write(UNETS["SDXL"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_step_has_a_process_of_its_own_and_its_death_is_said():
    assert full_size.in_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match=r"'_exit' was killed.*memory"):
        full_size.in_process(os._exit, 9)


def test_inputs_have_the_sizes_asked_for():
    plain = steps.inputs(UNETS["SD 1.5"], (296, 520))
    assert (plain.latents.shape, plain.states.shape, plain.added) == ((1, 65, 37, 4), (1, 77, 768), None)
    told = steps.inputs(UNETS["SDXL"], (592, 1040)).added
    assert told.text_embeds.shape == (1, 1280)
    assert told.time_ids.tolist() == [[1080, 1920, 60, 210, 1040, 592]]
    assert {array.dtype for array in (plain.latents, plain.states, *told)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("model", UNETS)
def test_pytorchs_unets_are_those_published(model):
    """The reference derives T by itself; parameters are counted by the models' own authors."""
    with torch.device("meta"):
        unet = TorchUNet.from_config(UNETS[model])
    assert round(sum(each.numel() for each in unet.parameters()) / 1e6, 2) == PARAMETERS[model]
    side = UNETS[model]["sample_size"]
    layers = install(unet, (side, side)).values()
    assert {layer.level: layer.train_tokens for layer in layers} == TRAIN_TOKENS[model]


@pytest.mark.parametrize("model", SIZES)
def test_the_rules_are_apart_at_every_size_and_one_at_the_training_size(model):
    assert all(full_size.rules_apart(UNETS[model], size) for size in SIZES[model])
    side = steps.FACTOR * UNETS[model]["sample_size"]
    assert not full_size.rules_apart(UNETS[model], (side, side))


def test_the_document_has_every_row_of_what_it_lists_and_no_failure():
    text = DOCUMENT.read_text()
    listed = [name for name in SIZES if f"| {name} |" in text]
    assert listed == list(SIZES)
    assert "FAILED" not in text
    for name in listed:
        expected = [(f"{width}x{height}", rule) for width, height in SIZES[name] for rule in steps.RULES]
        lines = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {name} |")][: len(expected)]
        assert [(line[1], line[2]) for line in lines] == expected
        for line in lines:
            error, control = float(line[3]), float(line[4])
            assert error <= 1e-4
            assert control >= 100 * error
