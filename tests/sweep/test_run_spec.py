import pytest
import yaml
from sweep_fakes import FakeInfo

from entscale_jax.errors import UserError
from entscale_jax.sweep.plan import make_plan
from entscale_jax.sweep.run_spec import check_same, describe_calibrated, dump_spec
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.sweep.sweep_file import read_sweep
from entscale_jax.train_entropy import TrainEntropy

AWKWARD = ("no", "on", "1e3", "010", "0x40", "1:30", "null", "~", "- a", "a: b", "#", "'", '"', "grün\nund blau", "3")


def _spec(**changes):
    keys = {"name": "a", "model": "m", "sizes": ["64x48"], "methods": ["original"], "prompts": list(AWKWARD)}
    return SweepSpec.model_validate({**keys, **changes})


def test_every_caption_comes_back_by_either_reading_of_yaml(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(_spec(), AWKWARD, {"m": "ab"}))
    assert read_sweep(path).spec.prompts == AWKWARD
    assert yaml.safe_load(path.read_text())["sweep"]["prompts"] == list(AWKWARD)


def test_all_of_a_spec_comes_back(tmp_path):
    spec = _spec(
        methods=["entropy", {"rule": "fixed", "multiplier": 0.8}, {"rule": "fixed", "multiplier": [0.1, 1]}],
        seeds=[3, 1],
        train_size="96x64",
        batch=3,
        metrics=["objects"],
        sampler={"steps": 7, "guidance": 1},
    )
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec, AWKWARD, {}))
    assert read_sweep(path).spec == spec
    check_same("there", path.read_text(), dump_spec(spec.model_copy(update={"workers": 9}), AWKWARD, {}))


def test_a_seed_for_each_caption_comes_back_and_is_told_from_another(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(_spec(seeds={"first": 3}), AWKWARD, {}))
    assert read_sweep(path).spec == _spec(seeds={"first": 3})
    with pytest.raises(UserError, match=r"seeds\.first is 3 there and 4 here"):
        check_same("there", path.read_text(), dump_spec(_spec(seeds={"first": 4}), AWKWARD, {}))
    with pytest.raises(UserError, match=r"seeds is .* there and 3 here"):
        check_same("there", path.read_text(), dump_spec(_spec(seeds=[3]), AWKWARD, {}))


def test_a_long_difference_is_cut(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(_spec(), AWKWARD, {}))
    other = _spec(seeds=[1], sizes=["8x8"], methods=["entropy"], batch=2, prompts=["x" * 500])
    with pytest.raises(UserError) as caught:
        check_same("there", path.read_text(), dump_spec(other, ["x" * 500], {}))
    assert "sizes has 64x48 there and 8x8 here; methods has original there and entropy here" in str(caught.value)
    assert "and 2 more" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_what_calibrated_was_drawn_with_comes_back(tmp_path):
    own = {"rule": "calibrated", "train_entropy": {"mid": 1.25}}
    spec = _spec(methods=["calibrated", own])
    layers = tuple((name, 0.1 + 0.2) for name in sorted(FakeInfo().unet.self_attention))
    info = FakeInfo("m")
    info.__dict__["train_entropy"] = TrainEntropy(layers, shipped=True)
    plan = make_plan(_spec(methods=["original", "calibrated"], sizes=["64x48", "20x16"]), AWKWARD, {"m": info})
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec, AWKWARD, {"m": "ab"}, describe_calibrated(plan)))
    found = read_sweep(path)
    assert found.spec.methods == spec.methods
    assert found.train_entropy == {"m": dict(layers)}
    assert describe_calibrated(make_plan(_spec(), AWKWARD, {"m": info})) == {}


def test_what_is_not_drawn_is_written_with_its_reason():
    info = FakeInfo("m")
    info.__dict__["train_entropy"] = TrainEntropy(tuple((n, 1.0) for n in info.unet.self_attention), shipped=True)
    plan = make_plan(_spec(methods=["original", "calibrated"], sizes=["64x48", "20x16"]), AWKWARD, {"m": info})
    (entry,) = describe_calibrated(plan)["undefined"]
    assert (entry["model"], entry["size"], entry["method"]) == ("m", "20x16", "calibrated")
    assert "N = 2, T = 16, E_T = 1" in entry["reason"]
