"""Networks of metrics are opened when a sweep is planned: right ones pass, and no device is touched."""

import os
import subprocess
import sys

import pytest
import sweep_fakes as fakes
import torch
from inception_reference import random_weights
from sweep_fakes import FakeExecutor

from entscale_jax import UserError


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(random_weights(), file)
    return file


def _measuring(spec_file, metrics, extractors):
    text = fakes.SPEC.replace("[entropy, objects]", metrics)
    spec_file.write_text(f"{text}  extractors: {extractors}\n")


def test_right_networks_are_planned_with(sweep, spec_file, inception, tiny_clip_folder):
    _measuring(spec_file, "[fid, kid, clip]", f"{{inception: {inception}, clip: {tiny_clip_folder}}}")
    assert sweep(FakeExecutor(), dry_run=True) == 0
    # The control: the same file, cut off.
    cut = spec_file.parent / "cut.pth"
    cut.write_bytes(inception.read_bytes()[:-1000])
    _measuring(spec_file, "[fid, kid, clip]", f"{{inception: {cut}, clip: {tiny_clip_folder}}}")
    with pytest.raises(UserError, match=r"small.yaml:11: extractors.inception: .*cut.pth can't be read as weights of"):
        sweep(FakeExecutor(), dry_run=True)


def test_what_no_metric_needs_is_not_opened(sweep, spec_file):
    _measuring(spec_file, "[objects]", "{inception: nofile.pth, clip: ./nowhere/clip}")
    assert sweep(FakeExecutor(), dry_run=True) == 0


def test_no_device_is_touched(inception, tiny_clip_folder):
    """Where JAX has no device at all, as a planner that took a GPU would keep its memory from the workers."""
    code = (
        "from entscale_jax.metrics.clip_score import open_clip\n"
        "from entscale_jax.metrics.inception import match_inception\n"
        f"match_inception({str(inception)!r}), open_clip({str(tiny_clip_folder)!r})\n"
        "import jax\n"
        "try: jax.devices()\n"
        "except RuntimeError: print('no device')\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "nothing_here"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "no device\n"
