"""`entscale calibrate`, its file, and rule `calibrated` in the pipeline that reads it."""

import json
import math
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from entscale_jax import Scaling, UserError, calibration
from entscale_jax.calibration import read_prompts, run
from entscale_jax.scales import UndefinedScale
from entscale_jax.scenes.captions import balanced_captions
from entscale_jax.train_entropy import FILE
from entscale_jax.weights.folder import describe

CAPTIONS = ("a red circle", "a blue square", "a green triangle")
QUICK = {"height": 24, "width": 40, "steps": 2, "decode": False}
SEEDS = 4, 90
OPTIONS = {"steps": 2, "seeds": SEEDS, "guidance": 2.0, "sampler": None}


class Opened:
    """Stands for TextToImage, so that the command draws with the model that is open, whose programs are compiled."""

    def __init__(self, pipe):
        self.pipe = pipe

    def from_pretrained(self, model, **opening):
        return self.pipe


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """What the command writes of the tiny model."""
    path = tmp_path_factory.mktemp("calibration") / "e.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "TextToImage", Opened(tiny))
        run("tiny", list(CAPTIONS), path, console=Console(file=StringIO()), **OPTIONS)
    return path


def test_the_config_knows_every_layer_and_its_level(tiny):
    found = {name: level for name, (level, _, _) in tiny.layers.items()}
    assert tiny.info.unet.self_attention == found
    assert len(set(found.values())) == 2


def test_entropy_is_the_mean_over_images_of_the_captions_half(tiny, file):
    options = {"steps": 2, "guidance": 2.0, "measure_entropy": True, "decode": False}
    drawn = [tiny(CAPTIONS, rule="original", seed=seed, **options).entropy for seed in SEEDS]
    other = tiny(CAPTIONS, rule="fixed", multiplier=2.0, seed=4, **options).entropy
    content = json.loads(file.read_text())
    assert set(content["layers"]) == set(tiny.layers)
    for name, layer in content["layers"].items():
        images = np.concatenate([entropy[name].mean(axis=(0, 2)) for entropy in drawn])
        assert len(images) == 6
        assert layer["entropy"] == pytest.approx(images.mean(), abs=1e-5)
        assert layer["standard_error"] == pytest.approx(images.std(ddof=1) / math.sqrt(6), abs=1e-5)
        assert layer["train_tokens"] == tiny.info.train_tokens[tiny.layers[name][0]]
        assert abs(other[name].mean() - layer["entropy"]) > 1e-3


def test_the_file_says_what_it_was_measured_with(tiny, file):
    content = json.loads(file.read_text())
    assert content["weights_hash"] == tiny.info.weights_hash
    assert (content["train_size"], content["rule"], content["sampler"]) == ("32x32", "original", "ddim")
    assert (content["steps"], content["guidance"], content["seeds"], content["images"]) == (2, 2.0, [4, 90], 6)
    assert content["prompts"]["count"] == 3
    assert len(content["prompts"]["sha256"]) == 64


def test_the_pipeline_scales_each_layer_by_its_own_entropy(tiny, file):
    """The scales of a call, by hand from the file, against those that the layers are traced with."""
    scaling = tiny.info.scaling("calibrated", train_entropy=file)
    bucket = tiny.info.bucket(24, 40)
    layers = json.loads(file.read_text())["layers"]
    now = {0: 6 * 10, 1: 3 * 5}
    for name, module in tiny.unet.attention_layers().items():
        trained, tokens = layers[name]["train_tokens"], now[module.level]
        ratio = (math.log(tokens) - layers[name]["entropy"]) / (math.log(trained) - layers[name]["entropy"])
        expected = math.sqrt(ratio / module.head_dim) if ratio > 0 else None
        if expected is None:
            with pytest.raises(UndefinedScale, match=name):
                module.scale(tokens, scaling)
        else:
            assert type(module.scale(tokens, scaling)) is float
            assert module.scale(tokens, scaling) == pytest.approx(expected, rel=1e-12)
    assert len(tiny.info.multipliers(bucket, scaling)) == 2


def test_calibrated_draws_by_a_mapping_and_is_none_of_the_other_rules(tiny):
    entropies = {name: 2.5 if level else 4.0 for name, (level, _, _) in tiny.layers.items()}
    tiny.compile(rule="calibrated", train_entropy=entropies, **QUICK)
    before = tiny.programs.compile_seconds
    drawn = tiny(CAPTIONS[0], rule="calibrated", train_entropy=entropies, **QUICK).latents
    assert tiny.programs.compile_seconds == before
    zero = tiny(CAPTIONS[0], rule="calibrated", train_entropy=dict.fromkeys(entropies, 0.0), **QUICK).latents
    papers = tiny(CAPTIONS[0], rule="entropy", **QUICK).latents
    np.testing.assert_allclose(zero, papers, atol=1e-5)
    assert np.abs(drawn - papers).max() > 1e-2


def test_a_folder_that_ships_it_needs_no_argument(tiny, tiny_folder, file, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    with pytest.raises(UserError, match=r"needs E_T, which model .* does not ship: measure it by `entscale calibrate"):
        describe(folder).scaling("calibrated")
    shutil.copy(file, folder / FILE)
    info = describe(folder)
    assert info.weights_hash == tiny.info.weights_hash
    scaling = info.scaling("calibrated")
    assert scaling == tiny.info.scaling("calibrated", train_entropy=file)
    assert scaling.label == "calibrated"
    content = json.loads(file.read_text())
    (folder / FILE).write_text(json.dumps({**content, "weights_hash": "ff" * 32}))
    with pytest.raises(UserError, match="measured on the weights ffffffffffff"):
        describe(folder).scaling("calibrated")
    with pytest.raises(UserError, match=r"measured at 32x32, .* is taken as trained at 64x64"):
        describe(folder, train_size=(64, 64)).scaling("calibrated", train_entropy=file)


def test_layers_have_to_be_the_models(tiny):
    known = dict.fromkeys(tiny.layers, 0.5)
    first = min(known)
    with pytest.raises(UserError, match=f"has no E_T for {first}"):
        tiny(CAPTIONS[0], rule="calibrated", train_entropy={k: v for k, v in known.items() if k != first}, **QUICK)
    with pytest.raises(UserError, match="names layers that it lacks: elsewhere/attn1"):
        tiny(CAPTIONS[0], rule="calibrated", train_entropy={**known, "elsewhere/attn1": 1.0}, **QUICK)
    with pytest.raises(UserError, match="rule 'entropy' takes no train_entropy"):
        tiny(CAPTIONS[0], train_entropy=known, **QUICK)


def test_no_value_is_an_error_before_anything_is_drawn(tiny):
    entropies = {name: 2.71 if level else 1.0 for name, (level, _, _) in tiny.layers.items()}
    with pytest.raises(UndefinedScale, match=r"in layer .*attn1 at N = 15, T = 16, E_T = 2.71: log N = 2.708"):
        tiny(CAPTIONS[0], rule="calibrated", train_entropy=entropies, **QUICK)


def test_the_built_in_model_ships_its_own():
    info = describe("scenes")
    scaling = info.scaling("calibrated")
    assert [name for name, _ in scaling.train_entropy.layers] == sorted(info.unet.self_attention)
    assert all(0 < value < math.log(256) for _, value in scaling.train_entropy.layers)
    content = json.loads((info.folder / FILE).read_text())
    assert content["prompts"]["count"] == 64
    assert all(layer["standard_error"] < 0.1 for layer in content["layers"].values())
    least, most = info.multipliers(info.bucket(256, 256), scaling)[0]
    assert 1 < math.sqrt(math.log(1024) / math.log(256)) < least < most
    assert info.multipliers(info.bucket(64, 64), scaling) == (None,)
    assert info.multipliers(info.bucket(128, 128), scaling) == (1.0,)


def test_prompts_are_captions_files_or_scenes(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red circle\n\n a blue square \n")
    assert read_prompts([str(path), "a dog"], "m") == ("captions.txt", ("a red circle", "a blue square", "a dog"))
    assert read_prompts([], "scenes") == ("scenes", tuple(balanced_captions(64)))
    assert read_prompts(["a dog"], "m")[0] == "command line"
    for given, said in (
        ([], "prompts are missing: give --prompts"),
        ([str(tmp_path / "none.txt")], "can't be read"),
        ([str(tmp_path / "none")], "can't be read"),
    ):
        with pytest.raises(UserError, match=said):
            read_prompts(given, "m")


def test_nothing_is_drawn_where_the_file_could_not_be_written(tmp_path):
    with pytest.raises(UserError, match=r"--out .*give the name of a file in a folder that exists"):
        run("scenes", [], tmp_path / "no" / "e.json", console=Console(file=StringIO()), **OPTIONS)


def test_a_rule_without_a_model_needs_every_layer(tiny):
    with pytest.raises(UserError, match="has no E_T, which rule 'calibrated' needs"):
        next(iter(tiny.unet.attention_layers().values())).scale(60, Scaling.of("calibrated"))
