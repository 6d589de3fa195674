"""Peak memory of drawing one picture, here and by PyTorch diffusers, each size and side in a process of its own.

python benchmarks/memory.py [--cases scenes:128,scenes:256,sd:256,sd:512]

Resident memory at its most, as Linux counts it, weights, libraries and compiling included; on CUDA run the
frameworks' own counters instead. `sd` has the shape of Stable Diffusion 1.5 with random weights: one step, one decode.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from against_torch import ours, scenes_folder, theirs
from sd_shape import write_sd_shape
from timing import write

SIDES = ("entscale_jax", "eager")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--cases", default="scenes:128,scenes:256,sd:256,sd:512")
    parser.add_argument("--worker", nargs=4, metavar=("SIDE", "MODEL", "FOLDER", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, model, folder, size = options.worker
        print(json.dumps(peak(side, model, Path(folder), int(size))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases.split(","):
            model, size = case.split(":")
            source = Path(folder) / "sd" if model == "sd" else scenes_folder()
            if not source.exists():
                write_sd_shape(source)
            rows.append(
                {"model": model, "size": f"{size}x{size}", **{side: run(side, model, source, size) for side in SIDES}}
            )
            rows[-1]["ratio"] = f"{rows[-1]['entscale_jax'] / rows[-1]['eager']:.2f}"
    header = {"model": "model", "size": "size", "entscale_jax": "entscale_jax, GB", "eager": "PyTorch, GB"}
    write("memory", ["One picture, float32, batch 1 with guidance."], rows, {**header, "ratio": "ratio"})


def run(side: str, model: str, source: Path, size: str) -> float:
    command = [sys.executable, __file__, "--worker", side, model, str(source), size]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(json.loads(done.stdout.splitlines()[-1]) / 1e9, 2)


def peak(side: str, model: str, source: Path, size: int) -> int:
    draw: Any = (
        ours(model, source, "float32") if side == "entscale_jax" else theirs(model, source, "float32", compiled=False)
    )
    draw(size)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main()
