"""The study's own files with few captions, steps and sizes, drawn whole, stopped, gone on with and reported."""

import io

import pytest
import sweep_fakes as fakes
import yaml
from rich.console import Console
from sweep_fakes import FakeExecutor
from test_sweep_files import STUDY, SWEEPS

from entscale_jax.reports import write_study
from entscale_jax.sweep import run_sweep

CAPTIONS = dict(zip(STUDY, (3, 2, 1), strict=True))
MARKS = "<!-- measured: study -->\n<!-- end of measured: study -->\n"


def quick(folder, name, *, sizes, model, methods=None):
    """A part of the study in little, as a file in `folder`."""
    sweep = yaml.safe_load((SWEEPS / name).read_text())["metadata"]["sweep"]
    sweep["prompts"]["scenes"] = CAPTIONS[name]
    sweep["sampler"]["steps"] = 2
    sweep |= {"sizes": sizes, "model": str(model), **({"methods": methods} if methods else {})}
    path = folder / name
    path.write_text(yaml.safe_dump({"sweep": sweep}))
    return path


def draw(path, executor):
    console = Console(file=io.StringIO())
    return run_sweep(
        path, out=path.with_suffix(""), console=console, open_executor=fakes.opening(executor)
    ), path.with_suffix("")


class StopAfter:
    """Ctrl-C at the given call, once."""

    def __init__(self, call):
        self.left = call

    def __call__(self, worker, task):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_study_is_drawn_resumed_and_told_in_the_document(tmp_path, monkeypatch):
    def describe(model, *, train_size=None):
        return fakes.FakeInfo(str(model), train_size=(32, 32), levels=1)

    monkeypatch.setattr("entscale_jax.sweep.api.describe", describe)
    monkeypatch.setattr(fakes.FakePipe, "layers", {"down_blocks/0/attentions/0/transformer_blocks/0/attn1": (0, 2, 8)})
    model = describe("fake")

    def load(cell):
        return fakes.FakePipe(model)

    runs = []
    for name in STUDY:
        path = quick(tmp_path, name, sizes=["16x16", "32x32", "64x64"], model="fake")
        code, run = draw(path, FakeExecutor(fault=StopAfter(2), load=load))
        assert code == 130
        assert draw(path, FakeExecutor(load=load))[0] == 0
        runs.append(run)
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_study(runs, document)
    text = document.read_text()
    assert "of 3 captions are drawn exactly" in text
    assert "Rule `fixed` at all levels, 2 captions a size:" in text
    assert "| exact (%) | 0.5 | 0.7 | 0.8 | 0.9 | 1 | 1.1 | 1.25 | 1.6 | 2 |" in text
    assert "The UNet has self-attention at one level alone: there are no other levels to scale apart." in text
    assert "| down 0.0.0 |" in text
    # sqrt(log 16 / log 64) and sqrt(log 256 / log 64).
    assert "| 16x16 | 0.816 |" in text
    assert "| 64x64 | 1.155 |" in text
    assert "Unfinished" not in text


@pytest.mark.full
def test_a_real_model_is_studied(tmp_path, tiny, tiny_folder):
    sizes = {name: ["16x16", "32x32", "64x64"] for name in STUDY}
    methods = [{"rule": "fixed", "multiplier": [0.5, 1.0]}, {"rule": "fixed", "multiplier": [1.0, 0.5]}]
    runs = []
    for name in STUDY:
        own = methods if name == STUDY[1] else None
        path = quick(tmp_path, name, sizes=sizes[name], model=tiny_folder, methods=own)
        code, run = draw(path, FakeExecutor(load=lambda cell: tiny))
        assert code == 0
        runs.append(run)
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_study(runs, document)
    text = document.read_text()
    assert "Rule `fixed` at the finest level alone, 2 captions a size:" in text
    assert "Rule `fixed` at the other levels alone, 2 captions a size:" in text
    assert "at one level alone" not in text
    assert len(list(tmp_path.glob("*.png"))) == 7
