"""Every kind of bad input to the command: one line on standard error, exit code 2, nothing left behind."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from entscale_jax import cli
from entscale_jax.png import read_text
from entscale_jax.weights.folder import describe

UNET = "unet/diffusion_pytorch_model.safetensors"
SWEEP = {
    "name": "bad",
    "model": "MODEL",
    "sizes": ["32x32"],
    "methods": ["original"],
    "prompts": ["a red circle"],
    "sampler": {"name": "ddim", "steps": 2, "guidance": 1.0},
}


@pytest.fixture
def entscale(monkeypatch, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["entscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(result: tuple[int, str, str], *said: str) -> None:
    code, _, error = result
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("entscale: ")
    for part in said:
        assert part in error


def test_generate_writes_a_picture_that_says_what_made_it(entscale, tiny_folder, tmp_path):
    file = tmp_path / "out.png"
    options = ("--model", tiny_folder, "--size", "30x22", "--steps", 2, "--rule", "fixed", "--multiplier", "0.9,0.8")
    code, _, _ = entscale("generate", "a red circle", *options, "--seed", 5, "-o", file)
    assert code == 0
    assert np.asarray(Image.open(file)).shape == (22, 30, 3)
    record = read_text(file)
    wanted = {
        "caption": "a red circle",
        "seed": "5",
        "rule": "fixed:0.9,0.8",
        "size": "30x22",
        "model": str(tiny_folder),
    }
    assert wanted.items() <= record.items()
    assert json.loads(record["sampler"]) == {"name": "ddim", "steps": 2, "guidance": 7.5}
    assert json.loads(record["versions"])["jax"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("rule", ["resize", pytest.param("multidiffusion", marks=pytest.mark.full)])
def test_generate_draws_by_the_methods_of_the_comparison(entscale, tiny_folder, tmp_path, rule):
    file, start = tmp_path / "out.png", tmp_path / "in.png"
    options = ("--model", tiny_folder, "--steps", 1, "--rule", rule, "-o", file)
    code, _, error = entscale("generate", "a red circle", "--size", "40x24", *options)
    assert code == 0, error
    assert error.strip().endswith(f"out.png: 40x24, {rule}")
    assert np.asarray(Image.open(file)).shape == (24, 40, 3)
    assert read_text(file)["rule"] == rule
    Image.new("RGB", (32, 32)).save(start)
    refused(entscale("generate", "a red circle", "--image", start, *options), f"--rule {rule} draws from noise")


@pytest.mark.full
def test_generate_draws_and_enlarges(entscale, tiny_folder, tiny_upscaler_folder, tmp_path):
    options = ("--model", tiny_folder, "--steps", 1, "--rule", "upscale", "--upscaler", tiny_upscaler_folder)
    code, _, error = entscale("generate", "a red circle", "--size", "40x24", *options, "-o", tmp_path / "out.png")
    assert code == 0, error
    assert np.asarray(Image.open(tmp_path / "out.png")).shape == (24, 40, 3)
    assert read_text(tmp_path / "out.png")["rule"] == f"upscale:{tiny_upscaler_folder.name}"


def test_several_captions_are_numbered(entscale, tiny_folder, tmp_path):
    options = ("--model", tiny_folder, "--size", "16x16", "--steps", 1, "-o", tmp_path / "pair.png")
    assert entscale("generate", "a red circle", "a blue square", *options)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair-0.png", "pair-1.png"]


def test_generate_from_a_picture_draws_at_its_size(entscale, tiny_folder, tmp_path):
    given, made = tmp_path / "given.png", tmp_path / "made.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (22, 30), np.uint8)).save(given)  # grey
    options = ("--model", tiny_folder, "--image", given, "--strength", 0.5, "--steps", 2, "--sampler", "euler")
    assert entscale("generate", "a red circle", *options, "-o", made)[0] == 0
    assert np.asarray(Image.open(made)).shape == (22, 30, 3)
    record = read_text(made)
    assert {"image": str(given), "strength": "0.5", "size": "30x22"}.items() <= record.items()
    assert json.loads(record["sampler"])["name"] == "euler"


def test_inspect_prints_a_model_from_its_configs_alone(entscale, broken):
    for file in broken.rglob("*.safetensors"):
        file.unlink()
    code, out, _ = entscale("inspect", broken, "--size", "64x64")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert ["family:", "Stable", "Diffusion"] in lines
    assert ["training", "size:", "32x32"] in lines
    # 8x8 cells in training, 16x16 now: sqrt(log 256 / log 64) and sqrt(log 64 / log 16).
    assert ["0", "2", "8", "64", "256", "1.155"] in lines
    assert ["1", "4", "8", "16", "64", "1.225"] in lines


def test_generate_in_turns_in_tiles_and_half_precision(entscale, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    options = ("--model", folder, "--size", "16x16", "--steps", 1, "-o", tmp_path / "out.png")
    refused(entscale("generate", "a red circle", *options), "no weights of variant=None: there is 'fp16'")
    options += ("--variant", "fp16", "--dtype", "bfloat16", "--tiling", "--max-batch", 1)
    assert entscale("generate", "a red circle", "a blue square", *options)[0] == 0
    assert read_text(tmp_path / "out-1.png")["dtype"] == "bfloat16"
    refused(entscale("generate", "a red circle", *options, "--dtype", "int8"), "dtype 'int8' is not one of float32")
    refused(entscale("generate", "a red circle", *options, "--max-batch", 0), "max_batch")


def test_convert_and_export(entscale, tiny_folder, tmp_path):
    assert entscale("convert", tiny_folder, tmp_path / "converted")[:2] == (0, f"wrote {tmp_path / 'converted'}\n")
    assert entscale("export", tmp_path / "converted", tmp_path / "again")[0] == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tiny_folder / weights).read_bytes()
    refused(entscale("convert", tiny_folder, tmp_path / "converted"), "converted exists already")
    refused(entscale("convert", tmp_path / "missing", tmp_path / "out"), "does not exist")
    refused(entscale("export", tiny_folder, tmp_path / "out"), "holds no entscale_manifest.json")
    assert not (tmp_path / "out").exists()


def test_inspect_refuses(entscale, tiny_folder, tmp_path):
    refused(entscale("inspect", tiny_folder, "--size", "4x4"), "1 token at the deepest of 2 levels")
    refused(entscale("inspect", tmp_path / "missing"), "does not exist")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("generate",),
        ("inspect",),
        ("convert",),
        ("export",),
        ("sweep",),
        ("submit",),
        ("status",),
        ("report",),
        ("sheet",),
        ("entropy",),
        ("parity",),
        ("train", "scenes"),
    ],
)
def test_help_of_every_command(entscale, command):
    code, out, _ = entscale(*command, "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "0x0"), ("size '0x0' has no pixels", "give a positive width and height")),
        (("--size", "big"), ("size 'big' is not WIDTHxHEIGHT", "write for example 224x160")),
        (("--size", "3x64"), ("below one latent cell of 4x4 pixels",)),
        (("--size", "4x4"), ("1 token at the deepest of 2 levels",)),
        (
            ("--rule", "entropi"),
            ("unknown rule 'entropi'", "original, entropy, fixed, calibrated, resize, multidiffusion, upscale"),
        ),
        (("--rule", "upscale"), ("--rule upscale needs --upscaler", "a diffusers folder or hub id that enlarges")),
        (("--upscaler", "a"), ("--upscaler is of --rule upscale, and --rule is entropy",)),
        (("--rule", "upscale", "--upscaler", "gone"), ("model folder 'gone' does not exist",)),
        (("--rule", "fixed", "--multiplier", "much"), ("--multiplier 'much' is no number",)),
        (("--rule", "fixed", "--multiplier", "1,1,1"), ("3 values and the model 2 levels",)),
        (("--rule", "entropy", "--multiplier", "0.8"), ("takes no multiplier",)),
        (("--rule", "resize", "--multiplier", "0.8"), ("--rule resize has the scale of training", "--multiplier")),
        (("--steps", "0"), ("steps is 0", "1 to 1000")),
        (("--train-size", "4x4"), ("1 token at the deepest",)),
        (("--seed", "-1"), ("seed -1",)),
        (("--image", "missing.png"), ("--image missing.png can't be read as a picture",)),
        (("--sampler", "heun"), ("sampler 'heun' is none", "ddim, pndm, euler")),
        (("--out", "picture.jpg"), ("no .png file",)),
        (("--out", "no/such/folder/a.png"), ("folder no/such/folder does not exist",)),
    ],
)
def test_generate_refuses(entscale, tiny_folder, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    refused(entscale("generate", "a red circle", "--model", tiny_folder, *options), *said)
    assert list(tmp_path.iterdir()) == []


def test_generate_does_not_write_over_a_folder(entscale, tiny_folder, tmp_path):
    (tmp_path / "d-1.png").mkdir()
    out = "--out", tmp_path / "d.png"
    refused(entscale("generate", "a red circle", "a blue square", "--model", tiny_folder, *out), "d-1.png is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["d-1.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "a", "--steps", "abc"), ("Invalid value for '--steps'", "entscale generate --help")),
        (("generate", "a", "--nope"), ("No such option", "--nope", "entscale generate --help")),
        (("generate",), ("Missing argument 'CAPTION...'", "entscale generate --help")),
        (("draw",), ("No such command 'draw'", "entscale --help")),
        (("train",), ("Missing command", "entscale train --help")),
    ],
)
def test_a_call_that_is_not_understood(entscale, arguments, said):
    refused(entscale(*arguments), *said)


@pytest.mark.parametrize("arguments", [(), ("--",)])
def test_no_command_is_answered_with_help(entscale, arguments):
    code, out, _ = entscale(*arguments)
    assert code == 2
    assert "Usage" in out


def test_the_version_alone(entscale):
    for rest in ((), ("inspect", "no-such-model")):
        code, out, _ = entscale("--version", *rest)
        assert (code, len(out.split())) == (0, 1)


def test_an_interrupt_is_no_traceback(entscale, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("entscale_jax.weights.folder.describe", interrupted)
    assert entscale("inspect", "scenes")[0] == 130


def test_a_partial_file_is_removed_and_a_folder_of_its_name_is_not(entscale, tiny_folder, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError("no space left")

    options = ("--model", tiny_folder, "--size", "16x16", "--steps", 1, "-o", tmp_path / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        refused(entscale("generate", "a red circle", *options), "a.png can't be written: no space left")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.png.partial").mkdir()
    refused(entscale("generate", "a red circle", *options), "a.png can't be written")
    assert [path.name for path in tmp_path.iterdir()] == [".a.png.partial"]


def test_missing_folder(entscale, tmp_path):
    missing = tmp_path / "missing"
    refused(entscale("generate", "a", "--model", missing), f"model folder '{missing}' does not exist")


def test_folder_of_something_else(entscale, tmp_path):
    refused(entscale("generate", "a", "--model", tmp_path), "model_index.json is missing")


def test_key_missing(entscale, broken):
    tensors = load_file(broken / UNET)
    del tensors["conv_in.bias"], tensors["conv_out.bias"]
    save_file(tensors, broken / UNET)
    refused(entscale("generate", "a", "--model", broken), UNET, "missing key conv_in.bias; missing key conv_out.bias")


def test_wrong_shape(entscale, broken):
    tensors = load_file(broken / UNET)
    tensors["conv_in.bias"] = tensors["conv_in.bias"][:-1]
    save_file(tensors, broken / UNET)
    refused(entscale("generate", "a", "--model", broken), "wrong shape conv_in.bias: [15], the config asks for [16]")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "class_embed_type", "timestep"),
        ("unet", "not_a_field", 3),
        ("vae", "shift_factor", 0.1),
        ("text_encoder", "hidden_act", "relu"),
    ],
)
def test_unsupported_config_value(entscale, broken, part, field, value):
    file = broken / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    refused(entscale("generate", "a", "--model", broken), f"{field}={value!r}")


def test_weights_that_are_no_safetensors(entscale, broken):
    (broken / UNET).write_bytes(b"not at all")
    refused(entscale("generate", "a", "--model", broken), "can't be read as safetensors")


def _sweep(tmp_path: Path, model: Path, **changes: object) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"sweep": {**SWEEP, "model": str(model), **changes}}))
    return file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ["a"]}, ("prompt", "prompts", "sweep.yaml:")),
        ({"sizes": ["0x0"]}, ("0x0", "sweep.yaml:")),
        ({"sizes": ["wide"]}, ("wide", "sweep.yaml:")),
        ({"methods": ["entropi"]}, ("entropi", "sweep.yaml:")),
        ({"prompts": []}, ("prompts", "sweep.yaml:")),
        ({"prompts": "missing.txt"}, ("missing.txt",)),
    ],
)
def test_sweep_refuses(entscale, tiny_folder, tmp_path, changes, said):
    file = _sweep(tmp_path, tiny_folder, **changes)
    refused(entscale("sweep", file, "--out", tmp_path / "run"), *said)
    assert not (tmp_path / "run").exists()


def test_sweep_into_a_place_that_can_not_be_written(entscale, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(
        entscale("sweep", _sweep(tmp_path, tiny_folder), "--out", tmp_path / "file" / "run"), str(tmp_path / "file")
    )


def test_status_of_no_run(entscale, tmp_path):
    refused(entscale("status", tmp_path / "nothing"), str(tmp_path / "nothing"), "holds no run")
    refused(entscale("status", "s3://bucket"), "s3://bucket names no folder")


def test_submit_refuses_what_no_cluster_of_ray_is(entscale, tmp_path):
    (tmp_path / "job.yaml").write_text("apiVersion: ray.io/v1\nkind: RayJob\n")
    refused(entscale("submit", tmp_path / "job.yaml"), "kubectl apply")
    refused(entscale("submit", tmp_path / "missing.yaml"), "missing.yaml can't be read")
    refused(entscale("submit", tmp_path / "missing.yaml", "--out", "s3://bucket"), "s3://bucket names no folder")
    refused(entscale("submit", tmp_path / "missing.yaml", "--out", "ftp://host/run"), "ftp://host/run is no place")


def test_report_of_no_run(entscale, tmp_path):
    refused(entscale("report", tmp_path / "nothing"), str(tmp_path / "nothing"))


def test_report_of_several_runs_with_their_study(entscale, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("entscale_jax.reports.write_report", lambda run: asked.append(("report", run)) or run)
    monkeypatch.setattr("entscale_jax.reports.write_study", lambda *arguments: asked.append(("study", *arguments)))
    runs, document = [tmp_path / "one", tmp_path / "two"], tmp_path / "scenes.md"
    code, out, _ = entscale("report", *runs, "--study", document)
    assert code == 0
    assert asked == [("report", runs[0]), ("report", runs[1]), ("study", runs, document)]
    assert f"study: {document}" in out


def test_a_missing_extra_is_named(entscale, monkeypatch, tmp_path):
    def absent(**_):
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")

    monkeypatch.setattr(cli.application, "app", absent)
    refused(entscale("report", tmp_path), "jinja2 is not installed: pip install 'entscale-jax[report]'")


def test_calibrate_writes_what_generate_and_a_sweep_take(entscale, tiny_folder, tmp_path):
    file, picture = tmp_path / "e.json", tmp_path / "out.png"
    quick = ("--steps", 1, "--guidance", 1)
    code, _, error = entscale("calibrate", tiny_folder, "--prompts", "a red circle", *quick, "-o", file)
    assert code == 0, error
    layers = json.loads(file.read_text())["layers"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "layers": {k: {"entropy": 1.0} for k in layers}}))
    options = ("--model", tiny_folder, "--rule", "calibrated", *quick, "--size", "40x24")
    code, _, error = entscale("generate", "a red circle", *options, "--train-entropy", file, "-o", picture)
    assert code == 0, error
    assert read_text(picture)["rule"].startswith("calibrated:")
    # sqrt((log 60 - 1) / (log 64 - 1)), sqrt((log 15 - 1) / (log 16 - 1)).
    assert "multipliers 0.990, 0.982" in error
    refused(entscale("generate", "a red circle", *options, "-o", picture), "does not ship", "entscale calibrate")
    methods = ["original", {"rule": "calibrated", "train_entropy": "e.json"}]
    sweep = {**SWEEP, "model": str(tiny_folder), "sizes": ["40x24", "8x16"], "methods": methods}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"sweep": sweep}))
    code, out, error = entscale("sweep", tmp_path / "s.yaml", "--dry-run", "--out", tmp_path / "run")
    assert code == 0, error
    assert "0.990/0.982" in out
    assert "undefined" in out
    assert "at N = 2, T = 16, E_T = 1: log N = 0.6931 does not exceed E_T" in " ".join(out.split())


def test_inspect_says_what_calibrated_would_multiply_by(entscale):
    shipped = json.loads((describe("scenes").folder / "train_entropy.json").read_text())["layers"].values()
    values = [math.sqrt((math.log(1024) - layer["entropy"]) / (math.log(256) - layer["entropy"])) for layer in shipped]
    code, out, _ = entscale("inspect", "scenes", "--size", "256x256")
    assert code == 0
    assert f"{min(values):.3f}-{max(values):.3f}" in out
    code, out, _ = entscale("inspect", "scenes", "--size", "64x64")
    assert "undefined" in out
