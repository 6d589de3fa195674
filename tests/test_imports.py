"""What importing and drawing bring in: nothing that a user without the extras lacks, and nothing slow."""

import os
import subprocess
import sys
from pathlib import Path

EXTRAS = ("torch", "ray", "diffusers", "matplotlib", "pyarrow", "orbax.checkpoint")
ROOT = str(Path(__file__).parents[1])


def run(code: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # It would have every import compile anew.
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_no_extra():
    assert run(f"import sys, entscale_jax; print([m for m in {EXTRAS!r} if m in sys.modules])").strip() == "[]"


def test_drawing_brings_no_extra(tiny_folder):
    code = f"""
import sys
from entscale_jax import TextToImage
TextToImage.from_pretrained(sys.argv[1])("a red circle", height=16, width=16, steps=1)
print([m for m in {EXTRAS!r} if m in sys.modules])
"""
    assert run(code, str(tiny_folder)).splitlines()[-1] == "[]"


def test_the_check_sees_an_extra():
    assert run("import sys, matplotlib; print('matplotlib' in sys.modules)").strip() == "True"


def test_import_takes_under_two_seconds():
    """Of processor time, which a busy machine does not stretch; the best of three, as the first reads a cold disk."""
    code = "import time; start = time.process_time(); import entscale_jax; print(time.process_time() - start)"
    assert min(float(run(code)) for _ in range(3)) < 2.0
