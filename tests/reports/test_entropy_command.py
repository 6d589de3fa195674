"""`entscale entropy`: what it prints and writes, with a tiny model, and every bad input in one line."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from entscale_jax import cli
from entscale_jax.cli.options import read_rule
from entscale_jax.entropies import network_order
from entscale_jax.scales import Scaling

SIZES = "16x16,32x32,48x32"
TEXT = "# Title\n\n<!-- measured: entropy -->\nold\n<!-- end of measured: entropy -->\n\nBelow.\n"
STEPS = 2


@pytest.fixture
def entscale(monkeypatch, capsys, tmp_path):
    """Runs the command in a folder of its own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["entscale", "entropy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_tables_values_figures_and_section_are_those_of_the_pipeline(
    entscale, tiny, tiny_folder, tmp_path, monkeypatch
):
    # Opened already, so that what is drawn here for comparison runs a program that is compiled.
    monkeypatch.setattr(
        "entscale_jax.reports.entropy.entropy_command.TextToImage.from_pretrained", lambda *_, **__: tiny
    )
    (tmp_path / "method.md").write_text(TEXT)
    (tmp_path / "captions.txt").write_text("a red circle\n\na blue square\na green triangle\n")
    options = ("--sizes", "16x16,48x32", "--rules", "entropy", "--prompts", "captions.txt", "--count", 2)
    code, printed, _ = entscale(
        *(tiny_folder, *options, "--steps", STEPS, "--batch", 2, "--guidance", 1, "--seed", 7),
        *("--out", "new/out", "--document", "method.md"),
    )
    assert code == 0
    out = tmp_path / "new" / "out"
    content = json.loads((out / "entropy.json").read_text())
    points = {(one["size"], one["rule"]): one for one in content["points"]}
    assert {rule for _, rule in points} == {"original", "entropy"}
    assert len(points) == 5  # the training size, 32x32, under rule original as well
    options = {"steps": STEPS, "guidance": 1.0, "seed": 7, "decode": False, "measure_entropy": True}
    drawn = tiny(["a red circle", "a blue square"], height=32, width=48, rule="entropy", **options).entropy
    mean = np.mean([values.mean() for values in drawn.values()])
    other = points["48x32", "original"]["entropy"][0]
    assert points["48x32", "entropy"]["entropy"][0] == pytest.approx(mean, abs=2e-5)
    assert abs(other - mean) > 1e-3
    assert content["captions"] == ["a red circle", "a blue square"]
    assert content["sampler"] == {"name": "ddim", "steps": STEPS, "guidance": 1.0}
    _check_rows(pq.read_table(out / "entropy.parquet").to_pydict(), drawn, tiny)
    assert f"{points['48x32', 'entropy']['entropy'][0]:.3f} (" in printed
    section = (tmp_path / "method.md").read_text()
    assert section.startswith("# Title\n\n<!-- measured: entropy -->\n\nMade by `entscale entropy ")
    assert section.endswith("<!-- end of measured: entropy -->\n\nBelow.\n")
    slope, (low, high) = (content["lines"]["entropy"][name] for name in ("slope", "slope_interval"))
    assert low < slope < high
    assert f"| entropy | 2 | 2 | {slope:.3f} ({low:.3f} to {high:.3f}) |" in section
    _check_layers(section, points["48x32", "entropy"], drawn, tiny)
    for name in ("entropy-figure5.png", "entropy-figure6.png"):
        assert f"]({name})" in section
        for folder in (tmp_path, out):
            with Image.open(folder / name) as picture:
                assert picture.size[0] > 300
    assert (out / "entropy-figure6.svg").read_text().startswith("<?xml")


def _check_rows(rows, drawn, pipe):
    """The file's values of one size and rule, in the network's order, are the mean over heads of what was drawn."""
    chosen = [
        i
        for i, (w, method) in enumerate(zip(rows["width"], rows["method"], strict=True))
        if (w, method) == (48, "entropy")
    ]
    for i in chosen:
        name, step, image = rows["layer"][i], rows["step"][i], rows["seed"][i] - 7
        assert rows["entropy"][i] == pytest.approx(drawn[name][step, image].mean(), abs=2e-5)
        assert rows["tokens"][i] == (96, 24)[pipe.layers[name][0]]
    assert len(chosen) == len(drawn) * STEPS * 2


def _check_layers(section, point, drawn, pipe):
    """A row a layer, whose mean and bounds are between the two pictures that were drawn."""
    assert point["images"] == 2
    rows = [line for line in section.splitlines() if line.startswith("| 48x32 |") and " | entropy | 2 | " in line]
    assert len(rows) == 1 + len(drawn)  # beside the mean over layers
    for name, (mean, low, high) in zip(sorted(drawn, key=network_order), point["layers"], strict=True):
        images = sorted(drawn[name].mean(axis=(0, 2)))
        assert (low, mean, high) == pytest.approx((images[0], np.mean(images), images[1]), abs=2e-5)
        assert any(f"| {mean:.3f} ({low:.3f} to {high:.3f}) |" in row for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sizes", "16x16,big"), "size 'big' is not WIDTHxHEIGHT"),
        (("--sizes", "16x16"), "sizes 16x16 have 1 token count: no line against log N can be fitted"),
        (("--sizes", "32x16,16x32"), "have 1 token count"),
        (("--sizes", ","), "have 0 token count"),
        (("--sizes", "3x3,16x16"), "below one latent cell"),
        (("--sizes", "4x4,16x16"), "1 token at the deepest of 2 levels"),
        (("--rules", "entropi"), "unknown rule 'entropi'"),
        (("--rules", "fixed:much"), "'much' is no number"),
        (("--rules", "entropy:0.8"), "takes no multiplier"),
        (("--prompts", "none.txt"), "none.txt can't be read (No such file"),
        (("--prompts", "empty.txt"), "empty.txt has no caption"),
        (("--count", "3"), "have 1 captions and count is 3"),
        (("--count", "0"), "count is 0"),
        (("--steps", "0"), "steps is 0"),
        (("--batch", "0"), "batch is 0"),
        (("--seed", "-1"), "seed -1"),
        (("--guidance", "nan"), "guidance is nan"),
        (("--out", "empty.txt/out"), "empty.txt is no folder that can be written"),
        (("--document", "none.md"), "none.md can't be read"),
        (("--document", "empty.txt"), "has no section 'entropy'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left_behind(entscale, tiny_folder, tmp_path, options, said):
    (tmp_path / "empty.txt").write_text("\n \n")
    given = {"--sizes": SIZES, "--prompts": "a red circle", "--out": "out", options[0]: options[1]}
    code, _, error = entscale(tiny_folder, *(part for pair in given.items() for part in pair))
    assert code == 2
    assert said in error
    assert error.startswith("entscale: ")
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_an_unknown_model_and_one_without_captions(entscale, tiny_folder):
    for model, said in (("no/such", "no/such"), (tiny_folder, "prompts are missing: give --prompts")):
        prompts = ("--prompts", "a red circle") if model == "no/such" else ()
        code, _, error = entscale(model, "--sizes", SIZES, *prompts)
        assert code == 2
        assert said in error
        assert len(error.strip().splitlines()) == 1


def test_a_rule_has_its_multiplier():
    assert read_rule("fixed:0.8") == Scaling.of({"rule": "fixed", "multiplier": 0.8})
    assert read_rule("entropy") == Scaling.of("entropy")
