"""Every mistake in a sweep's file is one line with the file, the line in it, and the remedy."""

import json

import pytest
from sweep_fakes import SPEC

from entscale_jax.errors import UserError
from entscale_jax.sampling import SAMPLERS
from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.sweep.spec import Device, Metric, ParquetPrompts, ScenePrompts, SeedOfCaption, Sharding
from entscale_jax.sweep.sweep_file import read_sweep

GOOD = """\
sweep:
  name: good
  model: scenes
  sizes: [64x48, 128x32]
  methods: [original, entropy, {rule: fixed, multiplier: 0.8}]
  prompts: {scenes: 8}
  seeds: [0, 3]
  sampler: {name: ddim, steps: 25, guidance: 5}
  metrics: [entropy, objects]
"""

MISTAKES = [
    ("sizes:", "sises:", 4, "unknown key 'sises': did you mean 'sizes'?"),
    ("model:", "modle:", 3, "unknown key 'modle': did you mean 'model'?"),
    ("model: scenes", "model: scenes\n  colour: blue", 4, "unknown key 'colour': use one of name, models, sizes"),
    ("steps:", "step:", 8, "unknown key 'step': did you mean 'steps'?"),
    ("{scenes: 8}", "{sceens: 8}", 6, "unknown key 'sceens': did you mean 'scenes'?"),
    ("{scenes: 8}", "{parquet: f, colum: a, count: 3}", 6, "unknown key 'colum': did you mean 'column'?"),
    ("multiplier:", "multipler:", 5, "methods[2]: unknown key 'multipler' of a method: did you mean 'multiplier'?"),
    (
        "[64x48, 128x32]",
        "\n    - 64x48\n    - 0x0",
        6,
        "sizes[1]: size '0x0' has no pixels: give a positive width and height",
    ),
    ("64x48", "wide", 4, "sizes[0]: size 'wide' is not WIDTHxHEIGHT: write for example 224x160"),
    ("64x48", "64", 4, "sizes[0]: size 64 is not WIDTHxHEIGHT"),
    ("64x48", "0x40", 4, "sizes[0]: size '0x40' has no pixels"),
    ("[64x48, 128x32]", "64x48", 4, "sizes is '64x48': give a list"),
    ("[64x48, 128x32]", "[]", 4, "sizes: this list is empty: give one entry or more"),
    ("entropy, {", "entrpy, {", 5, "methods[1]: unknown rule 'entrpy': did you mean 'entropy'?"),
    ("entropy, {", "resise, {", 5, "methods[1]: unknown rule 'resise': did you mean 'resize'?"),
    ("entropy, {", "{rule: multidiffusion}, {", 5, "methods[1]: 'multidiffusion' is no rule but a baseline"),
    (
        "entropy, {",
        "fixed, {",
        5,
        "methods[1]: rule 'fixed' needs its multiplier: write {rule: fixed, multiplier: 0.8}",
    ),
    ("entropy, {", "{rule: entropy, train_entropy: {a: 1}}, {", 5, "methods[1]: rule 'entropy' takes no train_entropy"),
    (
        "entropy, {",
        "{rule: calibrated, train_entropy: {a: x}}, {",
        5,
        "methods[1]: train_entropy of layer 'a' is 'x': give its mean entropy in nats",
    ),
    ("entropy, {", "3, {", 5, "methods[1]: method 3 is neither a rule's name nor"),
    ("0.8", "-1", 5, "methods[2]: multiplier is -1: give a finite number above 0"),
    ("{scenes: 8}", "[]", 6, "prompts: this list is empty: give one entry or more"),
    ("{scenes: 8}", "[a, '']", 6, "prompts[1] is '': give a text that is not empty"),
    ("{scenes: 8}", "[a, 3]", 6, "prompts[1] is 3: it should be a valid string"),
    ("{scenes: 8}", "{scenes: 0}", 6, "prompts.scenes is 0: it should be greater than or equal to 1"),
    ("[0, 3]", "[-1]", 7, "seeds[0] is -1: it should be greater than or equal to 0"),
    ("[0, 3]", "0", 7, "seeds is 0: give a list"),
    ("[0, 3]", "{frist: 3}", 7, "unknown key 'frist': did you mean 'first'?"),
    ("[0, 3]", "{first: -3}", 7, "seeds.first is -3: it should be greater than or equal to 0"),
    ("{scenes: 8}", "{scenes: 8, sead: 1}", 6, "unknown key 'sead': did you mean 'seed'?"),
    ("steps: 25", "steps: '25'", 8, "sampler.steps is '25': it should be a valid integer"),
    ("steps: 25", "steps: 0", 8, "sampler.steps is 0: it should be greater than or equal to 1"),
    ("ddim", "eular", 8, "sampler.name is 'eular': it should be 'ddim', 'pndm', 'euler'"),
    ("guidance: 5", "guidance: .nan", 8, "sampler.guidance is nan: it should be a finite number"),
    ("[entropy, objects]", "[entropi]", 9, "metrics[0]: unknown metric 'entropi': did you mean 'entropy'?"),
    ("name: good", "name: a/b", 2, "name is 'a/b': use letters, digits, dots, dashes and underscores"),
    ("name: good", "name: good\n  name: bad", 3, "key 'name' stands here twice: keep one"),
    ("name: good", "name: good\n  batch: 0", 3, "batch: 0 is neither auto nor a whole number above 0"),
    ("name: good", "name: good\n  workers: two", 3, "workers: 'two' is neither auto nor a whole number above 0"),
    ("name: good", "name: good\n  train_size: 64", 3, "train_size: size 64 is not WIDTHxHEIGHT"),
    ("name: good", "name: [good", 3, "this is no valid YAML"),
    ("  model: scenes\n", "", 1, "key 'model' is missing: add it"),
    ("  sizes: [64x48, 128x32]\n", "", 1, "key 'sizes' is missing: add it"),
    ("model: scenes", "model: scenes\n  models: [a]", 1, "sweep: both model and models are given: keep one"),
    *(
        ("name: good", f"name: good\n  {wrong}", 3, message)
        for wrong, message in [
            ("device: gpu", "device is 'gpu': it should be a valid"),
            ("device: {kind: gpus}", "device.kind is 'gpus': it should be 'auto', 'tpu', 'gpu' or 'cpu'"),
            ("device: {knid: gpu}", "unknown key 'knid': did you mean 'kind'?"),
            ("device: {per_worker: 0}", "device.per_worker is 0: it should be greater than 0"),
            ("device: {per_worker: 1.5}", "device: per_worker is 1.5: give whole devices, or a share below 1 of a GPU"),
            ("device: {kind: tpu, per_worker: 3}", "device: per_worker is 3: a worker can have 1, 2, 4, 8 TPU chips"),
            ("device: {kind: cpu, per_worker: 0.5}", "device: per_worker is 0.5: give a whole number, as shares"),
            ("device: {memory_fraction: 1.5}", "device.memory_fraction is 1.5: it should be less than or equal to 1"),
            ("device: {kind: tpu, memory_fraction: 0.5}", "device: memory_fraction is of a GPU's memory: leave it out"),
            ("sharding: row", "sharding: unknown sharding 'row': did you mean 'rows'?"),
        ]
    ),
    ("name: good", "name: good\n  sharding: rows", 3, "sharding is rows and a worker has one device"),
    (
        "name: good",
        "name: good\n  device: {per_worker: 4}",
        3,
        "device.per_worker is 4 and sharding is none, so all but one would idle: write sharding: rows",
    ),
    ("sweep:", "sweeep:", 1, "unknown key 'sweeep' at the top: did you mean 'sweep'?"),
]


@pytest.mark.parametrize(("right", "wrong", "line", "message"), MISTAKES, ids=[row[1].strip()[:24] for row in MISTAKES])
def test_a_mistake_is_one_line_with_its_place(tmp_path, right, wrong, line, message):
    path = tmp_path / "s.yaml"
    assert right in GOOD
    path.write_text(GOOD.replace(right, wrong, 1))
    with pytest.raises(UserError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(caught.value)


def test_entropies_are_given_or_read_beside_the_sweeps_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "s.yaml"
    path.write_text(GOOD.replace("entropy, {", "{rule: calibrated, train_entropy: e.json}, {", 1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r":5: methods\[1\]: train_entropy: .*sub/e.json can't be read"):
        read_sweep("sub/s.yaml")
    content = {"weights_hash": "ab", "train_size": "8x8", "layers": {"a": {"entropy": 1.5}}}
    (tmp_path / "sub" / "e.json").write_text(json.dumps(content))
    found = read_sweep("sub/s.yaml").spec.methods[1]
    assert found == Scaling.of("calibrated", train_entropy={"a": 1.5})
    assert found.train_entropy.weights_hash == "ab"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file holds no keys"),
        ("- a\n", ":1: the file holds no keys"),
        ("cluster_name: a\n", ":1: no sweep in this cluster configuration: write it under `metadata: sweep:`"),
        ("cluster_name: a\nmetadata: {sweeps: 1}\n", ":2: no sweep in this cluster configuration"),
        ("cluster_name: a\nmetadata:\n  sweep: 3\n", ":3: metadata.sweep holds no keys"),
    ],
)
def test_a_file_without_a_sweep(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml can't be read: No such file"):
        read_sweep(tmp_path / "nowhere.yaml")


def test_the_right_file_is_read_whole(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(GOOD)
    spec = read_sweep(path).spec
    assert spec.models == ("scenes",)
    assert spec.sizes == ((64, 48), (128, 32))
    assert spec.methods == (Scaling(ScaleRule.ORIGINAL), Scaling(ScaleRule.ENTROPY), Scaling(ScaleRule.FIXED, 0.8))
    assert spec.prompts == ScenePrompts(scenes=8)
    assert spec.metrics == (Metric.ENTROPY, Metric.OBJECTS)
    assert (spec.sampler.steps, spec.sampler.guidance, spec.seeds) == (25, 5.0, (0, 3))
    assert (spec.batch, spec.workers, spec.train_size) == ("auto", "auto", None)


def test_other_forms(tmp_path):
    path = tmp_path / "s.yaml"
    text = GOOD.replace("model: scenes", "models: [a, b]\n  batch: 4\n  workers: 2\n  train_size: 96x64")
    text = text.replace("{scenes: 8}", "{parquet: f.parquet, count: 3}").replace(
        "multiplier: 0.8", "multiplier: [0.8, 1]"
    )
    path.write_text(text)
    spec = read_sweep(path).spec
    assert spec.models == ("a", "b")
    assert spec.prompts == ParquetPrompts(parquet="f.parquet", column="caption", count=3, seed=0)
    assert spec.methods[2] == Scaling(ScaleRule.FIXED, (0.8, 1.0))
    assert (spec.batch, spec.workers, spec.train_size) == (4, 2, (96, 64))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_named(tmp_path, name):
    path = tmp_path / "s.yaml"
    path.write_text(GOOD.replace("name: ddim", f"name: {name}"))
    assert read_sweep(path).spec.sampler.name == name


def test_a_seed_for_each_caption(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(GOOD.replace("[0, 3]", "{first: 40}").replace("{scenes: 8}", "{scenes: 8, seed: 2}"))
    spec = read_sweep(path).spec
    assert spec.seeds == SeedOfCaption(first=40)
    assert spec.prompts == ScenePrompts(scenes=8, seed=2)


def test_a_cluster_configuration_as_ray_leaves_it_on_the_head_node(tmp_path):
    path = tmp_path / "ray_bootstrap_config.yaml"
    sweep = {"name": "a", "model": "m", "sizes": ["8x8"], "methods": ["original"], "prompts": ["no"]}
    path.write_text(json.dumps({"cluster_name": "c", "metadata": {"sweep": sweep}}))
    assert read_sweep(path).spec.prompts == ("no",)


def test_captions_that_yaml_1_1_would_take_for_something_else(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SPEC.replace("a red circle, a blue square", "no, off, 1:30, 010, a blue square"))
    assert read_sweep(path).spec.prompts[:4] == ("no", "off", "1:30", "010")


def test_devices_and_sharding_are_read(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(GOOD.replace("name: good", "name: good\n  device: {kind: tpu, per_worker: 4}\n  sharding: rows"))
    spec = read_sweep(path).spec
    assert (spec.device, spec.sharding) == (Device(kind="tpu", per_worker=4), Sharding.ROWS)
    path.write_text(
        GOOD.replace("name: good", "name: good\n  device: {kind: gpu, per_worker: 0.5, memory_fraction: 1}")
    )
    spec = read_sweep(path).spec
    assert (spec.device.per_worker, spec.device.memory_fraction, spec.sharding) == (0.5, 1.0, Sharding.NONE)
    path.write_text(GOOD)
    assert read_sweep(path).spec.device == Device()
