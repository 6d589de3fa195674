"""The seconds from the start of a process to its first picture, of the built-in model, and what they go to.

python benchmarks/first_image.py [--rounds 5]

Every round is a process of its own: `entscale_jax` is imported, the model opened, one picture of 128x128 drawn in 25
steps and written. The first process, which is not counted, fills JAX's cache of compiled programs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = {
    "start": "Python itself",
    "import": "importing entscale_jax, and JAX with it",
    "open": "opening the model",
    "programs": "tracing, and reading compiled programs from the cache",
    "draw": "drawing",
    "write": "writing the PNG",
}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", metavar="STARTED", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(draw(options.worker)))
        return
    from timing import Seconds, write  # which imports the package whose import is timed

    runs = [run() for _ in range(options.rounds + 1)][1:]
    rows = [{"stage": name, "seconds": Seconds(tuple(run[key] for run in runs))} for key, name in STAGES.items()]
    total = Seconds(tuple(sum(run.values()) for run in runs))
    rows.append({"stage": "together", "seconds": total})
    write("first_image", [f"Medians of {options.rounds} (least to most)."], rows, {"stage": "", "seconds": "seconds"})


def run() -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(started: float) -> dict[str, float]:
    stamps = {"start": time.time() - started}
    begin = time.perf_counter()

    def stamp(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        stamps[name], begin = now - begin, now

    import entscale_jax as es
    from entscale_jax.png import png_bytes

    stamp("import")
    pipe = es.TextToImage.from_pretrained("scenes")
    stamp("open")
    pipe.compile(height=128, width=128, steps=25)
    stamp("programs")
    out = pipe(["a red circle and a blue square"], height=128, width=128, steps=25)
    stamp("draw")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "out.png").write_bytes(png_bytes(out.images[0], {}))
    stamp("write")
    return stamps


if __name__ == "__main__":
    main()
