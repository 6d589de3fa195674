"""The paper's Table 4 without its FID: time and memory at 128, 224, 512, and at 512 with the picture then resized.

python benchmarks/table4.py [--sizes 128,224,512] [--rounds 3]

The shape of Stable Diffusion 1.5 with random weights, 4 steps of DDIM and one decode, batch 1 with guidance, float32;
each line is a process of its own, whose programs were compiled before the clock starts. The paper has 50 steps on an
A100, so its seconds can't be compared, and ratios only with care.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from against_torch import ours
from PIL import Image
from sd_shape import write_sd_shape
from timing import Seconds, alternate, write

TRAIN = 512


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--sizes", default="128,224,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "SIZE", "TO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, size, to = options.worker
        print(json.dumps(measure(Path(folder), int(size), int(to), options.rounds)))
        return
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        source = write_sd_shape(Path(folder) / "sd")
        plans = [(size, size) for size in sizes] + [(TRAIN, size) for size in sizes if size < TRAIN]
        rows = [row(source, size, to, options.rounds) for size, to in plans]
    whole = next(row["seconds"].median for row in rows if row["size"] == f"{TRAIN}x{TRAIN}")
    for line in rows:
        line["ratio"] = f"{line['seconds'].median / whole:.3f}"
    header = {"size": "size", "seconds": "seconds a picture", "memory": "peak memory, GB", "ratio": f"time / {TRAIN}'s"}
    write("table4", [f"Medians of {options.rounds} (least to most)."], rows, header)


def row(source: Path, size: int, to: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", str(source), str(size), str(to), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    name = f"{size}x{size}" if size == to else f"{size}x{size}, resized to {to}x{to}"
    print(name, found, flush=True)
    return {"size": name, "seconds": Seconds(tuple(found["seconds"])), "memory": f"{found['peak'] / 1e9:.2f}"}


def measure(source: Path, size: int, to: int, rounds: int) -> dict[str, Any]:
    draw = ours("sd", source, "float32")

    def picture() -> Any:
        image = Image.fromarray(draw(size)[0])
        return np.asarray(image if size == to else image.resize((to, to), Image.Resampling.LANCZOS))

    seconds = alternate({"picture": picture}, rounds)["picture"].values
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"seconds": seconds, "peak": 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])}


if __name__ == "__main__":
    main()
