"""Memory of programs in a run's records: told by workers, or read afterwards from programs compiled once more."""

import json

import jax
import pytest
import sweep_fakes as fakes
from flax import nnx
from rich.console import Console
from sweep_fakes import FakeExecutor, FakePipe, small_plan

from entscale_jax import TextToImage
from entscale_jax.errors import UserError
from entscale_jax.program_cache import ProgramMemory
from entscale_jax.sweep import run_sweep
from entscale_jax.sweep.drawer import Drawer
from entscale_jax.sweep.memory import record_memory
from entscale_jax.sweep.programs import note_memory

SMALL, LARGE = (ProgramMemory(arguments=8, outputs=1, temporaries=each, aliased=0) for each in (2, 20))


class TellingPipe(FakePipe):
    def compile(self, **keywords):
        super().compile(**keywords)
        return {"encode_text": SMALL, "denoise_latents": LARGE if keywords["width"] == 96 else SMALL}


def test_a_drawer_tells_what_every_task_of_a_program_needs():
    peaks = iter(range(100, 200))
    drawer = Drawer((), lambda cell: TellingPipe(), fakes.FakeCounter(), "fake", peak=lambda: next(peaks))
    plan = small_plan()
    tasks = plan.tasks({cell.id for cell in plan.cells})
    found = [drawer.draw(task) for task in tasks]
    for task, result in zip(tasks, found, strict=True):
        assert result.memory["denoise_latents"] == (LARGE if task.chunk.width == 96 else SMALL)
    assert [result.device_peak for result in found] == list(range(100, 100 + len(found)))
    assert len(TellingPipe().compiled) == 0
    assert drawer.memory(tasks[0]) == found[0].memory


def test_a_bucket_keeps_its_largest_programs_its_sizes_and_the_nearest_bound():
    plan = small_plan(methods=["resize"], sizes=["64x64", "96x64"])
    (task, *_) = plan.tasks({cell.id for cell in plan.cells})
    entry = {}
    note_memory(entry, task, {"denoise_latents": SMALL}, device_peak=70)
    note_memory(entry, task, {"denoise_latents": LARGE, "decode_latents": SMALL}, device_peak=90)
    note_memory(entry, task, {"denoise_latents": SMALL})
    # `resize` draws once for both sizes.
    assert entry["sizes"] == ["64x64", "96x64"]
    assert {name: each["needed"] for name, each in entry["memory"].items()} == {
        "denoise_latents": 29,
        "decode_latents": 11,
    }
    assert entry["device_peak"] == 70


def test_a_run_keeps_what_its_workers_told(sweep, tmp_path):
    assert sweep(FakeExecutor(load=lambda cell: TellingPipe())) == 0
    buckets = json.loads((tmp_path / "run" / "programs.json").read_text())["buckets"]
    needed = {(entry["width"], entry["method"]): entry["memory"]["denoise_latents"]["needed"] for entry in buckets}
    assert needed[96, "entropy"] == 29
    assert needed[64, "original"] == 11
    assert all("device_peak" not in entry for entry in buckets)
    assert not (tmp_path / "run" / "memory.json").exists()
    record_memory(tmp_path / "run")  # all is recorded
    assert not (tmp_path / "run" / "memory.json").exists()


@pytest.fixture
def tiny_run(tiny_folder, tmp_path):
    """A run of the small model, drawn by a pipeline that tells no memory."""
    text = f"""\
sweep:
  name: tiny
  model: {tiny_folder}
  sizes: [64x32]
  methods: [entropy, multidiffusion]
  prompts: [a red circle, a blue square]
  sampler: {{name: ddim, steps: 2, guidance: 2.0}}
"""
    (tmp_path / "tiny.yaml").write_text(text)
    info = TextToImage.from_pretrained(tiny_folder).info
    executor = FakeExecutor(load=lambda cell: FakePipe(info))
    out = tmp_path / "run"
    run_sweep(tmp_path / "tiny.yaml", out=out, console=Console(quiet=True), open_executor=fakes.opening(executor))
    _drawn_on(out, "cpu")
    return out


def _drawn_on(run, platform):
    found = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**found, "devices": [{"worker": "w0", "platform": platform}]}))


def test_programs_of_a_run_without_the_record_are_compiled_again(tiny_run, tiny):
    said = []
    record_memory(tiny_run, said.append)
    found = json.loads((tiny_run / "memory.json").read_text())
    assert found["made"]["platform"] == "cpu"
    places = [(entry["width"], entry["method"], entry["batch"], entry["sizes"]) for entry in found["buckets"]]
    assert places == [(64, method, 2, ["64x32"]) for method in ("entropy", "multidiffusion")]
    scaled, windowed = (entry["memory"]["denoise_latents"] for entry in found["buckets"])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(tiny.unet)))
    for needs in (scaled, windowed):
        assert weights < needs["arguments"] < 1.5 * weights
        assert needs["needed"] > needs["arguments"] + needs["temporaries"]
    # The control: the method matters.
    assert scaled["needed"] != windowed["needed"]
    record_memory(tiny_run, said.append)
    assert said == [f"compiling {method} at 64x32, 2 images a call" for method in ("entropy", "multidiffusion")]


def test_a_run_of_other_devices_is_told(tiny_run):
    _drawn_on(tiny_run, "gpu")
    with pytest.raises(UserError, match="was drawn on gpu and JAX compiles for cpu here"):
        record_memory(tiny_run)
    assert not (tiny_run / "memory.json").exists()


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no programs.json"):
        record_memory(tmp_path)
