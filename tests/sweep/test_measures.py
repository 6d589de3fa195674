"""A row keeps what scored its cosine: the hash of weights, configs and tokenizer, and how the picture was resized."""

import json
import shutil
from hashlib import sha256

import numpy as np
import pytest

from entscale_jax.metrics import scenes_models
from entscale_jax.sweep.measures import Measures
from entscale_jax.sweep.spec import Extractors, Metric

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)


def _hash(*files):
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _clip_columns(folder):
    return Measures([Metric.CLIP], Extractors(clip=str(folder))).columns(IMAGE, "a red circle")


def test_a_clip_is_named_by_its_files_resize_and_crop(tiny_clip_folder, tmp_path):
    columns = _clip_columns(tiny_clip_folder)
    others = sorted(file for file in tiny_clip_folder.iterdir() if file.suffix in (".json", ".txt"))
    code = _hash(tiny_clip_folder / "model.safetensors", *others)
    assert columns.keys() == {"clip", "clip_scorer"}
    assert columns["clip_scorer"] == f"clip {code}, resize PIL bicubic, shorter side 32, crop 32x32"
    shutil.copytree(tiny_clip_folder, tmp_path / "other")
    file = tmp_path / "other" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "resample": 2, "size": 40}))
    other = _clip_columns(tmp_path / "other")
    assert other["clip_scorer"].endswith(", resize PIL bilinear, shorter side 40, crop 32x32")
    assert code not in other["clip_scorer"]
    assert other["clip"] != pytest.approx(columns["clip"], abs=1e-4)


def test_the_scenes_own_is_named_by_its_weights_and_tokenizer():
    columns = Measures([Metric.SCENES_CLIP]).columns(IMAGE, "a red circle")
    tokenizer = sorted((scenes_models.FOLDER.parents[1] / "scenes" / "model" / "tokenizer").iterdir())
    code = _hash(scenes_models.FOLDER / "contrast.safetensors", *tokenizer)
    assert columns.keys() == {"scenes_clip", "scenes_clip_scorer"}
    assert columns["scenes_clip_scorer"] == f"scenes_clip {code}, resize none"
