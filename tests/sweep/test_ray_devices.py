"""Which environment each worker gets from Ray, with GPUs and TPU chips that a node only pretends to have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
SPECS = {
    "tpu": {},
    "two chips": {"device": {"per_worker": 2}, "sharding": "rows"},
    "gpu": {"device": {"kind": "gpu"}},
    "half a gpu": {"device": {"kind": "gpu", "per_worker": 0.5}},
    "two gpus": {"device": {"kind": "gpu", "per_worker": 2, "memory_fraction": 0.8}, "sharding": "rows"},
    "cpu": {"device": {"kind": "cpu", "per_worker": 2}, "sharding": "rows"},
}


@pytest.fixture(scope="module")
def workers():
    hidden = ("RAY_", "JAX_PLATFORMS", "XLA_", "CUDA_", "TPU_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    command = [sys.executable, str(HERE / "probe.py"), json.dumps(list(SPECS.values()))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(zip([*SPECS, "control"], json.loads(done.stdout.splitlines()[-1]), strict=True))


def _env(workers, name, variable):
    return [worker["env"].get(variable) for worker in workers[name]]


def test_each_worker_sees_the_chips_that_are_its_own(workers):
    assert sorted(_env(workers, "tpu", "TPU_VISIBLE_CHIPS")) == ["0", "1", "2", "3"]
    chips = [seen.split(",") for seen in _env(workers, "two chips", "TPU_VISIBLE_CHIPS")]
    assert sorted(chip for seen in chips for chip in seen) == ["0", "1", "2", "3"]
    assert {len(seen) for seen in chips} == {2} == {worker["count"] for worker in workers["two chips"]}


def test_each_worker_sees_the_gpus_that_are_its_own(workers):
    assert sorted(_env(workers, "gpu", "CUDA_VISIBLE_DEVICES")) == ["0", "1"]
    assert sorted(_env(workers, "half a gpu", "CUDA_VISIBLE_DEVICES")) == ["0", "0", "1", "1"]
    assert _env(workers, "two gpus", "CUDA_VISIBLE_DEVICES") == ["0,1"]


def test_memory_is_limited_where_a_gpu_is_shared_or_the_spec_says_so(workers):
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert _env(workers, "gpu", fraction) == [None] * 2
    assert _env(workers, "half a gpu", fraction) == ["0.450"] * 4
    assert _env(workers, "two gpus", fraction) == ["0.800"]
    assert _env(workers, "tpu", fraction) == [None] * 4


def test_jax_is_left_to_find_the_device_and_kept_to_the_cpu_there(workers):
    for name in ("tpu", "two chips", "gpu", "half a gpu", "two gpus"):
        assert set(_env(workers, name, "JAX_PLATFORMS")) == {""}
    assert _env(workers, "cpu", "JAX_PLATFORMS") == ["cpu"]
    assert _env(workers, "cpu", "XLA_FLAGS") == ["--xla_force_host_platform_device_count=2"]


def test_no_worker_holds_a_cpu_which_one_without_our_options_does(workers):
    assert {worker["cpus"] for name in SPECS for worker in workers[name]} == {0}
    assert workers["control"][0]["cpus"] == 1


@pytest.mark.full
def test_a_sweep_splits_the_rows_of_its_images_over_the_devices_of_a_worker(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    rows = {}
    for name, devices in {"one": "", "split": "device: {kind: cpu, per_worker: 2}\n  sharding: rows"}.items():
        (tmp_path / f"{name}.yaml").write_text(SPEC.format(model=model, devices=devices))
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "RAY_AUTH_MODE": "disabled"}
        script = HERE.parents[1] / "sweeps" / "run.py"
        command = [sys.executable, script, tmp_path / f"{name}.yaml", "--out", tmp_path / name, "--address", "local"]
        subprocess.run(list(map(str, command)), env=environment, check=True, timeout=300)
        rows[name] = pq.read_table(tmp_path / name / "samples.parquet").to_pylist()
    assert {row["device"].split("@")[0] for row in rows["one"]} == {"cpu:0"}
    assert {row["device"].split("@")[0] for row in rows["split"]} == {"cpu:0+1"}
    for one, split in zip(rows["one"], rows["split"], strict=True):
        pictures = [np.asarray(Image.open(tmp_path / name / one["image"]), int) for name in rows]
        assert one["cell"] == split["cell"]
        assert abs(pictures[0] - pictures[1]).max() <= 1 < abs(pictures[0]).max()


SPEC = """\
sweep:
  name: rows
  model: {model}
  sizes: [32x64]
  methods: [entropy]
  prompts: {{scenes: 4}}
  sampler: {{name: ddim, steps: 4, guidance: 5.0}}
  batch: 2
  {devices}
"""
