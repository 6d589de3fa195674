"""Names and options of baselines, as users write them and as rows show them."""

import pytest

from entscale_jax import Scaling, UserError, baselines
from entscale_jax.baselines import METHODS, MultiDiffusion, Resize, Upscale, read_baseline, read_method


@pytest.mark.parametrize(
    ("value", "method", "label"),
    [
        ("resize", Resize(), "resize"),
        ("multidiffusion", MultiDiffusion(), "multidiffusion"),
        ({"baseline": "multidiffusion"}, MultiDiffusion(stride=8, at_once=4), "multidiffusion"),
        ({"baseline": "multidiffusion", "stride": 16}, MultiDiffusion(stride=16), "multidiffusion:stride=16"),
        (
            {"baseline": "multidiffusion", "at_once": 1, "stride": 4},
            MultiDiffusion(stride=4, at_once=1),
            "multidiffusion:stride=4,at_once=1",
        ),
        ({"baseline": "upscale", "upscaler": "of/x4"}, Upscale("of/x4", 75, 9.0, 20), "upscale:x4"),
        (
            {"baseline": "upscale", "upscaler": "of/x4", "noise_level": 0, "guidance": 1.0},
            Upscale("of/x4", noise_level=0, guidance=1.0),
            "upscale:x4,guidance=1.0,noise_level=0",
        ),
    ],
)
def test_a_baseline_is_read_and_named(value, method, label):
    assert read_method(value) == method
    assert method.label == label
    assert read_method(method) is method


def test_what_is_no_baseline_is_a_rule():
    assert read_method("entropy") == Scaling.of("entropy")
    assert read_method({"rule": "fixed", "multiplier": 0.8}).label == "fixed:0.8"
    with pytest.raises(UserError, match="unknown baseline 'crop': use one of resize, multidiffusion"):
        read_baseline("crop")


def test_a_method_is_a_file_and_a_name():
    assert [kind.__module__.rpartition(".")[2] for kind in METHODS.values()] == list(METHODS)
    assert baselines.METHODS is METHODS
