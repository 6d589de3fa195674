"""The table of a profile: that its modules are those of the models, and that a trace is left."""

from io import StringIO

import pytest
from rich.console import Console

from entscale_jax import UserError
from entscale_jax.profiling import print_profile, profile_picture

DRAW = {"size": (24, 40), "steps": 2, "rule": "entropy", "dtype": "float32"}


def test_time_is_told_by_program_module_and_operation(tiny_folder, tmp_path):
    found = profile_picture(str(tiny_folder), tmp_path / "trace", **DRAW)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    programs = {program for program, _, _ in found.operations}
    assert {"denoise_latents", "decode_latents", "encode_text"} <= programs
    modules = {module for program, module, _ in found.operations if program == "denoise_latents"}
    assert {"down_blocks.0/attn1", "up_blocks.1/attn2", "down_blocks.0/ff", "up_blocks.0/resnet"} <= modules
    assert not any("attn" in module for program, module, _ in found.operations if program == "decode_latents")
    assert 0 < max(found.operations.values()) < 2 * found.wall
    text = StringIO()
    print_profile(found, Console(file=text, width=140))
    assert "down_blocks.0/attn1" in text.getvalue()
    assert "dot_general" in text.getvalue()


def test_a_folder_that_can_not_be_made_is_one_line(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file.* can't be written"):
        profile_picture(str(tiny_folder), tmp_path / "file", **DRAW)
