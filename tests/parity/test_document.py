"""The written table is what was measured: it has the bounds of today and no failed cell."""

import re
from pathlib import Path

import pytest

from entscale_jax.buckets import Bucket
from entscale_jax.parity import document
from entscale_jax.parity.bounds import BOUNDS
from entscale_jax.parity.compare import Row
from entscale_jax.scales import ScaleRule, Scaling

BEGIN, END = "<!-- measured: parity -->", "<!-- end of measured: parity -->"
DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"
README = Path(__file__).parents[2] / "README.md"
MODELS = [
    "Stable Diffusion 1.x",
    "Stable Diffusion 2.x base",
    "Stable Diffusion 2.x, v-prediction",
    "Latent Diffusion, AutoencoderKL",
    "Latent Diffusion, VQModel",
    "Stable Diffusion XL",
    "the built-in model, scenes",
]
DOUBLE = ("VAE encode", "VAE decode", "UNet", "UNet, other rule")
SINGLE = ("VAE encode", "VAE decode", "UNet", "DDIM latents", "DDIM, other rule", "DDIM images")


def test_only_what_is_between_the_marks_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "_models", lambda _: iter(()))
    file = tmp_path / "parity.md"
    file.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n".replace("parity", "works"))
    document.main(file, readme)
    once = file.read_text()
    document.main(file, readme)
    assert file.read_text() == once
    assert once.startswith(f"before\n\n{BEGIN}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once


def test_a_line_has_the_rows_of_its_size_and_rule():
    double = [
        Row("VAE decode", "8x8", "-", 1e-15, 1e-9),
        Row("UNet", "8x8", "entropy", 2e-15, 1e-9),
        Row("UNet", "8x8", "original", 3e-15, 1e-9),
        Row("UNet", "16x8", "entropy", 4e-15, 1e-9),
    ]
    single = [Row("UNet", "8x8", "entropy", 2e-6, 1e-4), Row("DDIM images", "8x8", "entropy", 2.5, 1.0)]
    line = document._line(double, single, Bucket(8, 8), Scaling(ScaleRule.ENTROPY))
    empty = ("",) * 2
    assert line == ("8x8", "entropy", "", "1.0e-15", "2.0e-15", "", *empty, "2.0e-06", *empty, "2.5e+00 FAILED")


@pytest.fixture(scope="module")
def written():
    """Model -> (its sentences, its table's header, its table's rows), of the committed document."""
    sections = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].split("\n## ")[1:]
    models = {}
    for section in sections[:-1]:
        lines = section.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        models[lines[0].split(": trained")[0]] = (lines[2], cells[0], cells[2:])
    return models


def test_every_model_is_written_at_every_size_and_no_row_failed(written):
    assert list(written) == MODELS
    for _, header, rows in written.values():
        assert header[2:] == [*(f"{name}, float64" for name in DOUBLE), *(f"{name}, float32" for name in SINGLE)]
        assert len({(row[0], row[1]) for row in rows}) == len(rows) == 2 * (1 + len(document.GRIDS))
        optional = {header.index(name) for name in header if "other rule" in name}
        assert all(cell for row in rows for index, cell in enumerate(row) if index not in optional)
        assert any(row[header.index("UNet, other rule, float64")] for row in rows)
    assert "FAILED" not in DOCUMENT.read_text()


def test_the_bounds_are_those_of_today_and_no_figure_passes_one(written):
    listed = {}
    for line in DOCUMENT.read_text().split("\n## Bounds")[1].split(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] != "module":
            listed[cells[0], cells[1]] = cells[2:]
    listed.pop(("---", "---"))
    assert listed.keys() == BOUNDS.keys()
    for key, (limit, measured, reason) in listed.items():
        assert (limit, reason) == (f"{BOUNDS[key].limit:.0e}", BOUNDS[key].reason)
        found = _column(written, *key)
        assert not found or float(measured) == max(found) <= BOUNDS[key].limit


def test_the_readme_says_what_the_document_says(written):
    """Worked out from the committed document, not from the code that wrote both."""
    lines = []
    for model, (_, header, rows) in written.items():
        columns = {
            name: [float(row[index]) for row in rows if row[index]] for index, name in enumerate(header) if index > 1
        }
        unet, other = max(columns["UNet, float64"]), min(columns["UNet, other rule, float64"])
        images = max(columns["DDIM images, float32"])
        lines.append(f"| {model} | yes | {unet:.1e} | {other:.1e} | {images:.2f} |")
    section = README.read_text().split("<!-- measured: works -->")[1].split("<!-- end of measured: works -->")[0]
    assert [line for line in section.splitlines() if line.startswith("| ")][2:] == lines


def _column(written, module, dtype):
    """All figures of a module in a dtype."""
    found = []
    for sentences, header, rows in written.values():
        name = f"{module}, {dtype}"
        if name in header:
            found += [float(row[header.index(name)]) for row in rows]
        told = sentences.split(f"In {dtype}: ")[1].split(". Axes")[0]
        found += [float(each) for each in re.findall(rf"(?:^|, ){module} (\S+?)(?:,|$)", told)]
    return found
