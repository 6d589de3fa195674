"""The written table is what was measured: it has the bounds of today and no failed cell."""

from pathlib import Path

from entscale_jax.buckets import Bucket
from entscale_jax.parity import document
from entscale_jax.parity.compare import Row
from entscale_jax.scales import ScaleRule, Scaling

BEGIN, END = "<!-- measured: parity -->", "<!-- end of measured: parity -->"
DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"


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
    single = [Row("DDIM images", "8x8", "entropy", 2.5, 1.0)]
    line = document._line(double, single, Bucket(8, 8), Scaling(ScaleRule.ENTROPY))
    assert line == ("8x8", "entropy", "1.0e-15", "2.0e-15", "", "", "", "2.5e+00 FAILED")


def test_the_document_has_the_bounds_of_today_and_no_failure():
    text = DOCUMENT.read_text()
    assert document._bounds() in text
    assert "| original |" in text
    assert "FAILED" not in text
