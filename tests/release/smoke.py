"""Installs what `make dist` built into empty environments, and uses it there as its first user would.

`python tests/release/smoke.py dist`: the packages come from pip's index, in the newest versions that the wheel allows
(PIP_CONSTRAINT restricts them), nothing of this repository is on the path, and the home folder is empty.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_EXTRAS = {"torch", "diffusers", "ray", "pyarrow", "matplotlib", "jinja2"}  # not optax, which Flax brings along
SWEEP = """\
cluster_name: smoke
provider: {type: local, head_ip: 127.0.0.1, worker_ips: []}
auth: {}
metadata:
  sweep:
    name: smoke
    model: scenes
    sizes: [128x96]
    methods: [original, entropy]
    prompts: [a red circle]
    seeds: [0]
    sampler: {name: ddim, steps: 4, guidance: 2.0}
    metrics: [entropy, objects]
"""


def main(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        place = Place(Path(folder))
        with told("the core installs"):
            place.install(str(wheel))
        with told("it holds no framework of an extra, and knows its version"):
            core_alone(place)
            version_of(place, wheel)
        with told("it draws by the rules, in Python and by the command"):
            place.run("python", "-I", Path(__file__).with_name("smoke_drawing.py").resolve())
            place.run("python", "-I", "-c", SAME_PICTURE)
        with told("mistakes are one line"):
            mistakes(place)
        with told("the sdist builds the same wheel"):
            place.run("python", "-m", "pip", "wheel", "-qq", "--no-deps", "-w", "rebuilt", sdist.resolve())
            (rebuilt,) = place.folder.glob("rebuilt/*.whl")
            assert contents(rebuilt) == contents(wheel), "the wheel of the sdist differs"
        with told("the extras sweep and report install"):
            place.install(f"{wheel}[sweep,report]")
        with told("it sweeps and reports"):
            (place.folder / "smoke.yaml").write_text(SWEEP)
            place.run("entscale", "sweep", "smoke.yaml", "--out", "run")
            place.run("entscale", "report", "run")
            place.run("python", "-I", "-c", ROWS)


# The picture of the command is that of Python.
SAME_PICTURE = """
import numpy as np
from PIL import Image
from_python, from_command = (np.asarray(Image.open(f"{name}.png")) for name in ("python", "command"))
assert np.array_equal(from_python, from_command)
"""
ROWS = """
import pyarrow.parquet as parquet
rows = parquet.read_table("run/samples.parquet").to_pylist()
assert sorted(row["method"] for row in rows) == ["entropy", "original"], rows
assert all(row["entropy"] > 0 for row in rows), rows
page = open("run/report/index.html").read()
assert "a red circle" in page and all(row["cell"][:8] in page for row in rows)
"""


class Place:
    """An environment with pip alone, and an empty folder, which is where commands run and their home."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "env" / "bin"
        venv.create(folder / "env", with_pip=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ENTSCALE", "JAX"))}
        self.env = {**kept, "HOME": str(folder), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}

    def install(self, what: str) -> None:
        # pip's own settings stay those of the user, who may have named an index there.
        flags = ("-qq", "--progress-bar", "off", "--disable-pip-version-check")
        path, bracket, extras = what.partition("[")
        command = [self.bin / "python", "-m", "pip", "install", *flags, str(Path(path).resolve()) + bracket + extras]
        subprocess.run(command, cwd=self.folder, check=True, env={**os.environ, "PYTHONPATH": ""}, timeout=3600)

    def run(self, program: str, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=1800)
        if bool(done.returncode) != fails:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@contextmanager
def told(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:6.1f} s  {what}", flush=True)


def core_alone(place: Place) -> None:
    listed = json.loads(place.run("python", "-m", "pip", "list", "--format", "json").stdout)
    names = {package["name"].lower() for package in listed}
    assert {"entscale-jax", "jax"} <= names, names
    assert not names & OF_EXTRAS, names & OF_EXTRAS


def version_of(place: Place, wheel: Path) -> None:
    version = place.run("entscale", "--version").stdout.strip()
    assert wheel.name.split("-")[1] == version, (wheel.name, version)


def mistakes(place: Place) -> None:
    for arguments, said in (
        (("generate", "a red circle", "--size", "0x128"), "entscale: "),
        (("generate", "a red circle", "--rule", "entrpy"), "entscale: "),
        (("report", "no-such-run"), "entscale: "),
        (("sweep", "no-such-sweep.yaml"), "entscale: "),
    ):
        done = place.run("entscale", *arguments, fails=True)
        assert done.returncode == 2, done
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith(said), done.stderr


def contents(wheel: Path) -> dict[str, str]:
    """Every file of a wheel -> its hash."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
