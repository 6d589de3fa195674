"""Baseline `upscale` in a sweep: planned as resize is, enlarged once a drawing, told apart by its model's weights."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import sweep_fakes as fakes
from PIL import Image, ImageOps
from sweep_fakes import FakeExecutor, FakeInfo

from entscale_jax import TextToImage, UserError, cli
from entscale_jax.baselines import Resize, Upscale, upscale
from entscale_jax.png import read_text
from entscale_jax.reports.run_folder import read_run
from entscale_jax.sweep import run_sweep
from entscale_jax.sweep.compiles import CompileCounter
from entscale_jax.sweep.drawer import load_upscaler
from entscale_jax.sweep.plan import make_plan
from entscale_jax.sweep.programs import calls_for
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.upscaler import Upscaled, Upscaler
from entscale_jax.weights.upscaler_folder import CleanUpscalerInfo, NoisedUpscalerInfo, PictureNoise

METHOD = "{baseline: upscale, upscaler: of/x4, steps: 6}"
LABEL = "upscale:x4,steps=6"


class FakeUpscaler(Upscaler):
    """Four pixels a side of each, and what it was told."""

    def __init__(self):
        self.calls, self.compiled = [], []

    def compile(self, **keywords):
        self.compiled.append(keywords)
        return {}

    def __call__(self, images, prompts, **keywords):
        self.calls.append({"prompts": list(prompts), **keywords})
        count = len(prompts)
        return Upscaled(images.repeat(4, 1).repeat(4, 2), np.zeros((count, 1, 1, 4)), np.zeros(count, np.int32))


def _info(weights="cd" * 32):
    return NoisedUpscalerInfo(FakeInfo("of/x4", weights=weights), PictureNoise(), 350)


def _plan_of(info, train_size=(64, 64)):
    keys = {"name": "a", "models": ["fake"], "sizes": ["64x64", "96x64", "30x30"], "prompts": ["a", "b"], "batch": 4}
    spec = SweepSpec.model_validate({**keys, "methods": ["resize", {"baseline": "upscale", "upscaler": "of/x4"}]})
    return make_plan(spec, ("a", "b"), {"fake": FakeInfo(train_size=train_size)}, {"of/x4": info})


def _plan(weights="cd" * 32, methods=("resize", {"baseline": "upscale", "upscaler": "of/x4"}), **changes):
    keys = {"name": "a", "models": ["fake"], "sizes": ["64x64", "96x64", "30x30"], "prompts": ["a", "b"], "batch": 4}
    spec = SweepSpec.model_validate({**keys, "methods": list(methods), **changes})
    return make_plan(spec, ("a", "b"), {"fake": FakeInfo()}, {"of/x4": _info(weights)})


@pytest.fixture
def enlarging(fake_models, monkeypatch, tmp_path, spec_file):
    """The small sweep with an upscaler in it, which is returned."""
    fake = FakeUpscaler()
    monkeypatch.setattr("entscale_jax.sweep.api.describe_upscaler", lambda name: _info())
    monkeypatch.setattr("entscale_jax.sweep.drawer._upscalers_elsewhere", lambda cell: fake)
    spec_file.write_text(fakes.SPEC.replace("[original, entropy]", f"[original, {METHOD}]"))
    return fake


def test_sizes_share_a_drawing_and_an_enlargement_and_cost_it():
    plan = _plan()
    (resized, enlarged) = plan.chunks
    assert (enlarged.width, enlarged.height) == (64, 64)
    assert enlarged.sizes == resized.sizes == dict.fromkeys([(64, 64), (96, 64), (30, 30)], 2)
    # 25 guided steps on 16x16 cells, then 75 guided ones on 64x64.
    assert enlarged.cost == resized.cost * (1 + 16 * 75 / 25)
    more = calls_for(enlarged.program) - calls_for(resized.program)
    assert {kind[:2] for kind in more} == {(kind, "of/x4") for kind in ("text", "denoise", "decode")}
    assert plan.weights == {"fake": "ab" * 32, "of/x4": "cd" * 32}


def test_one_without_text_costs_half_as_it_is_not_guided():
    (resized, enlarged) = _plan_of(CleanUpscalerInfo(FakeInfo("of/x4"))).chunks
    assert enlarged.cost == resized.cost * (1 + 16 * 75 / (2 * 25))
    (resized, enlarged) = _plan_of(CleanUpscalerInfo(FakeInfo("of/x4")), (64, 80)).chunks
    assert enlarged.cost == resized.cost * (1 + 64 / 80 * 16 * 75 / (2 * 25))  # of 80 pixels it sees 64
    with pytest.raises(UserError, match="a picture of 64x24 is too small for model 'of/x4'"):
        _plan_of(CleanUpscalerInfo(FakeInfo("of/x4")), (24, 64))


def test_a_cell_is_told_apart_by_the_upscaler_s_weights_and_options():
    plain, same, other = _plan(), _plan(), _plan(weights="ef" * 32)
    shrunk = _plan(methods=["resize", {"baseline": "upscale", "upscaler": "of/x4", "noise_level": 5}])
    ids = [{cell.id for cell in plan.cells if cell.method != Resize()} for plan in (plain, same, other, shrunk)]
    assert ids[0] == ids[1]
    assert len(set.union(*ids)) == 3 * 6
    rest = [
        {cell.id for cell in plan.cells if cell.method == Resize()} for plan in (plain, other, _plan("", ["resize"]))
    ]
    assert rest[0] == rest[1] == rest[2]


def test_it_runs_resumes_and_is_reported(sweep, enlarging, console, tmp_path):
    executor, run = FakeExecutor(), tmp_path / "run"
    assert sweep(executor, dry_run=True) == 0
    assert f"64x64 4 256/64/16 {LABEL} - 10" in " ".join(console.file.getvalue().split())
    assert sweep(executor) == 0
    rows = [row for row in pq.read_table(run / "samples.parquet").to_pylist() if row["method"] == LABEL]
    assert len(rows) == 3 * 10
    assert sum(len(call["prompts"]) for call in enlarging.calls) == 10  # once for all sizes
    assert {(call["steps"], call["guidance"], call["noise_level"]) for call in enlarging.calls} == {(6, None, None)}
    assert enlarging.compiled == [{"height": 64, "width": 64, "steps": 6, "guidance": None, "tiling": False}]
    assert f"of/x4 {'cd' * 32}" in {read_text(run / row["image"])["upscaler"] for row in rows}
    assert "of/x4: " + "cd" * 32 in (run / "spec.yaml").read_text()
    found = read_run(run)
    assert found.methods == ["original", LABEL]
    assert list(found.scalings) == ["original"]
    before = {row["cell"]: (run / row["image"]).read_bytes() for row in rows}
    _lose(run, rows[3])
    enlarging.calls.clear()
    assert sweep(FakeExecutor()) == 0
    assert [len(call["prompts"]) for call in enlarging.calls] == [1]  # what is wanted, of a batch of four
    assert {row["cell"]: (run / row["image"]).read_bytes() for row in rows} == before


def test_one_without_text_runs_and_resumes(sweep, spec_file, tiny_ldm_upscaler_folder, monkeypatch, tmp_path):
    """The real model enlarges what the fake one drew; captions and the first model's guidance are left unread."""
    upscaler, calls, run = Upscaler.from_pretrained(tiny_ldm_upscaler_folder), [], tmp_path / "run"
    spec_file.write_text(fakes.SPEC.replace("[original, entropy]", f"[original, {METHOD.replace('6', '1')}]"))
    label = LABEL.replace("6", "1")
    monkeypatch.setattr("entscale_jax.sweep.api.describe_upscaler", lambda name: upscaler.info)
    monkeypatch.setattr("entscale_jax.sweep.drawer._upscalers_elsewhere", lambda cell: upscaler)
    made = upscaler._made
    monkeypatch.setattr(upscaler, "_made", lambda *given, **more: calls.append(1) or made(*given, **more))
    assert sweep(FakeExecutor()) == 0
    rows = [row for row in pq.read_table(run / "samples.parquet").to_pylist() if row["method"] == label]
    assert len(rows) == 3 * 10
    assert len(calls) == 10
    assert f"of/x4 {upscaler.info.weights_hash}" in {read_text(run / row["image"])["upscaler"] for row in rows}
    assert read_run(run).methods == ["original", label]
    before = {row["cell"]: (run / row["image"]).read_bytes() for row in rows}
    _lose(run, rows[3])
    assert sweep(FakeExecutor()) == 0
    assert len(calls) == 11
    assert {row["cell"]: (run / row["image"]).read_bytes() for row in rows} == before


def _lose(run, row):
    for file in run.rglob(f"*{row['cell']}*"):
        file.unlink()
    for file in [*run.glob("samples*"), *(run / "samples").glob("*")]:
        if file.is_file():
            file.unlink()


def test_a_picture_is_enlarged_and_then_fills_the_frame():
    images = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), np.uint8)
    made = Upscale("of/x4").enlarge(FakeUpscaler(), images, ["a"], [3]).images
    got = Upscale("of/x4").finish(made, (40, 60))
    whole = Image.fromarray(images[0]).resize((96, 96), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(got[0], ImageOps.fit(whole, (60, 40), Image.Resampling.LANCZOS))
    assert np.abs(got.astype(int) - Resize().finish(images, (40, 60))).max() > 20  # what resize makes of it


def test_weights_that_are_not_the_plan_s_are_refused(tiny_upscaler_folder, monkeypatch):
    cell = replace(_plan().cells[-1], method=Upscale(str(tiny_upscaler_folder)))
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda folder: SimpleNamespace(info=_info("00" * 32)))
    with pytest.raises(UserError, match="has the weights 000000000000 and not those of the plan, cdcdcdcdcdcd"):
        load_upscaler({})(cell)


BAD = {
    "too much noise": ("noise_level: 40", "methods[1]: noise_level is 40: model"),
    "too many steps": ("steps: 1001", "methods[1]: steps is 1001: give a whole number from 1 to 1000"),
    "steps of a word": ("steps: many", "methods[1]: steps is 'many': give a value such as 75"),
    "guidance without end": ("guidance: .inf", "methods[1]: guidance is inf: give a finite number"),
    "a model of that kind to draw with": (None, "is a StableDiffusionUpscalePipeline, which enlarges pictures and"),
    "two of one name": ("", "methods: two upscalers are both called 'upscale:"),
}


@pytest.mark.parametrize(("option", "said"), BAD.values(), ids=list(BAD))
def test_what_can_t_be_is_told_by_its_line(
    tiny_folder, tiny_upscaler_folder, tmp_path, monkeypatch, capsys, option, said
):
    own = f"{{baseline: upscale, upscaler: {tiny_upscaler_folder}{f', {option}' if option else ''}}}"
    twin = f"{{baseline: upscale, upscaler: a/{tiny_upscaler_folder.name}}}"
    methods = f"[original, {own}, {twin}]" if option == "" else f"[original, {own}]"
    text = fakes.SPEC.replace("fake", str(tiny_upscaler_folder if option is None else tiny_folder))
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("[original, entropy]", methods))
    monkeypatch.setattr("sys.argv", ["entscale", "sweep", str(path), "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert f"{path}:{3 if option is None else 5}: " in line


NONE = {
    "guidance": ("guidance: 4.0", "guidance is 4.0: model"),
    "noise": ("noise_level: 5", "noise_level is 5: model"),
    "steps": ("steps: 0", "steps is 0: give a whole number from 1 to 1000"),
}


@pytest.mark.parametrize(("option", "said"), NONE.values(), ids=list(NONE))
def test_an_option_that_one_without_text_has_not_is_told_by_its_line(
    tiny_folder, tiny_ldm_upscaler_folder, tmp_path, monkeypatch, capsys, option, said
):
    own = f"{{baseline: upscale, upscaler: {tiny_ldm_upscaler_folder}, {option}}}"
    path = tmp_path / "bad.yaml"
    path.write_text(fakes.SPEC.replace("fake", str(tiny_folder)).replace("[original, entropy]", f"[original, {own}]"))
    monkeypatch.setattr("sys.argv", ["entscale", "sweep", str(path), "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert f"{path}:5: " in line


@pytest.mark.full
@pytest.mark.parametrize(("kind", "options"), [("", {"noise_level": 7}), ("ldm_", {})], ids=["caption", "no text"])
def test_pictures_of_a_real_sweep_are_those_of_python(tiny_folder, request, tmp_path, console, kind, options):
    """Drawn by the runner; programs of both models are made ready once, as many as are called for."""
    folder = request.getfixturevalue(f"tiny_{kind}upscaler_folder")
    method = {"upscaler": str(folder), "steps": 2, **options}
    written = ", ".join(f"{name}: {value}" for name, value in method.items())
    text = fakes.SPEC.replace("[original, entropy]", f"[{{baseline: upscale, {written}}}]")
    text = text.replace("fake", str(tiny_folder)).replace("[64x64, 96x64, 30x30]", "[32x32, 40x24]")
    path, run = tmp_path / "real.yaml", tmp_path / "run"
    path.write_text(text.replace("[entropy, objects]", "[objects]").replace("seeds: [0, 7]", "seeds: [3]"))
    own = TextToImage.from_pretrained(tiny_folder)
    executor = FakeExecutor(load=lambda cell: own, counter=CompileCounter)
    assert run_sweep(path, out=run, console=console, open_executor=fakes.opening(executor)) == 0
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    assert len(rows) == 2 * 5
    (worker,) = json.loads((run / "programs.json").read_text())["workers"]
    assert worker["expected"] == {"text": 2, "denoise": 2, "decode": 2}
    assert {kind: found["compiled"] + found["cached"] for kind, found in worker["programs"].items()} == worker[
        "expected"
    ]
    upscale._open.cache_clear()
    for width, height in ((32, 32), (40, 24)):
        mine = [row for row in rows if (row["width"], row["height"]) == (width, height)][:4]
        captions, seeds = [row["prompt"] for row in mine], [row["seed"] for row in mine]
        options = {"height": height, "width": width, "seed": seeds, "sampler": "ddim", "steps": 3, "guidance": 5.0}
        expected, resized = (each.draw(own, captions, **options).images for each in (Upscale(**method), Resize()))
        for row, image, other in zip(mine, expected, resized, strict=True):
            with Image.open(io.BytesIO((run / row["image"]).read_bytes())) as picture:
                np.testing.assert_array_equal(np.asarray(picture), image)
            assert np.abs(image.astype(int) - other).max() > 50
