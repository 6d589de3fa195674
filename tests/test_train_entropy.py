"""E_T at the door: what a file or a mapping may say, and which model it is for."""

import json

import pytest

from entscale_jax import UserError
from entscale_jax.train_entropy import FILE, TrainEntropy, read_shipped

LAYERS = {"mid/attn1": 1.5, "down/attn1": 3.25}


def write(path, **changes):
    content = {
        "weights_hash": "ab" * 32,
        "train_size": "64x48",
        "layers": {name: {"train_tokens": 48, "entropy": value} for name, value in LAYERS.items()},
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_a_file_and_a_mapping_say_the_same(tmp_path):
    file = write(tmp_path / "e.json")
    found, given = TrainEntropy.of(file), TrainEntropy.of(LAYERS)
    assert found == given == TrainEntropy.of(str(file))
    assert (found.weights_hash, found.train_size) == ("ab" * 32, "64x48")
    assert given.weights_hash is None
    assert found.layers == (("down/attn1", 3.25), ("mid/attn1", 1.5))
    assert found != TrainEntropy.of({**LAYERS, "mid/attn1": 1.6})


def test_a_folder_may_ship_it(tmp_path):
    assert read_shipped(tmp_path) is None
    write(tmp_path / FILE)
    shipped = read_shipped(tmp_path)
    assert shipped is not None
    assert shipped.shipped
    assert not TrainEntropy.of(tmp_path / FILE).shipped


def test_source_and_layers_have_to_be_the_models(tmp_path):
    found = TrainEntropy.of(write(tmp_path / "e.json"))
    found.check_source("m", "ab" * 32, "64x48")
    found.check_layers("m", LAYERS)
    with pytest.raises(UserError, match=r"on the weights abababababab, and model 'm' has cdcdcdcdcdcd: .*calibrate m"):
        found.check_source("m", "cd" * 32, "64x48")
    with pytest.raises(UserError, match=r"at 64x48, and model 'm' is taken as trained at 64x64"):
        found.check_source("m", "ab" * 32, "64x64")
    with pytest.raises(UserError, match="has no E_T for up/attn1; measure it"):
        found.check_layers("m", [*LAYERS, "up/attn1"])
    with pytest.raises(UserError, match="names layers that it lacks: mid/attn1"):
        found.check_layers("m", ["down/attn1"])
    TrainEntropy.of(LAYERS).check_source("m", "cd" * 32, "1x1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read"),
        ("[]", "lacks"),
        ('{"layers": {"a": {}}}', "lacks 'entropy'"),
        ('{"layers": {"a": 3}}', "lacks"),
        ('{"layers": {"a": {"entropy": 1}}}', "lacks 'weights_hash'"),
        ('{"layers": {"a": {"entropy": "x"}}}', "layer 'a' is 'x'"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, said):
    file = tmp_path / "e.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        TrainEntropy.of(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json can't be read \(No such file"):
        TrainEntropy.of(tmp_path / "none.json")
