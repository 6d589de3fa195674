"""What a sweep costs beside a bare loop: 200 cells of the built-in model, the same programs, pictures and measurements.

python benchmarks/sweep_overhead.py [--rounds 3] [--steps 10]

Five sizes, two methods, ten captions and two seeds in calls of up to eight pictures, objects and entropy measured. The
sweep is `run_sweep` as the command calls it: a Ray cluster of this machine, one worker, every row stored and synced,
events and progress told. The bare loop is one process without Ray that knows the same calls beforehand: it draws,
measures, and writes each PNG and a JSON row without syncing. Each run is a process of its own, the sides alternate, and
both read their programs from one cache, which an uncounted run of a call a program has filled. A run fails where a
picture's SHA-256, its objects or its entropy differ between the sides, or where a program was compiled.

Both draw with as many threads as the machine has cores, free to run on each. Ray would start its worker at niceness
15, which an idle machine does not notice; here it has the loop's, so that what else runs disturbs both alike. The
driver and Ray's own processes share the cores with the worker: what that costs is in the figures.

Clocks run from the first call begun, where the sweep's worker is there and the loop's imports are done, to the last row
stored; loading the model is within, on both sides. Few steps are the harder case: what a cell costs beside its drawing
does not grow with them.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from timing import Seconds, write

SPEC = """\
sweep:
  name: overhead
  model: scenes
  sizes: [128x96, 128x128, 96x128, 192x128, 256x64]
  methods: [original, entropy]
  prompts: {{scenes: 10}}
  seeds: [0, 1]
  sampler: {{name: ddim, steps: {steps}, guidance: 2.0}}
  metrics: [entropy, objects]
"""
LINES = {
    "wall": "first call begun to last row stored",
    "ready": "of it reading programs from the cache",
    "rest": "the rest: the cost that counts",
    "later": "the same from the first call's end on, without the model's loading",
    "drawing": "of it in the pipeline's calls",
    "outside": "of it outside of them: measuring, storing, waiting",
    "start": "before: the process's start to the first call begun",
    "end": "after: to the process's end, with the sweep's tables",
}
APART = ("start", "end")
"""What is no work on cells."""
OBJECTS = ("objects_exact", "objects_missing", "objects_extra")
EXACT = ("cell", "width", "height", "method", "prompt", "seed", "sha256", "image", *OBJECTS)
"""Columns that are the same on both sides."""
MEASURED = ("entropy", "logit_gap")
TOLERANCE = 1e-6
"""Relative, between mean entropies in nats: the sweep's are the shortest decimals of float32."""


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "SPEC", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, spec, out = options.side
        SIDES[side](Path(spec), Path(out))
        return
    with tempfile.TemporaryDirectory() as folder:
        found, cells = measure(Path(folder), options.steps, options.rounds)
    report(found, options.rounds, cells)


def measure(folder: Path, steps: int, rounds: int) -> tuple[dict[str, list[dict[str, float]]], int]:
    """The clocks of every run of both sides, which drew and measured the same, and the number of cells."""
    spec = folder / "sweep.yaml"
    spec.write_text(SPEC.format(steps=steps))
    run("warm", spec, folder / "warm")
    found: dict[str, list[dict[str, float]]] = {"sweep": [], "loop": []}
    for number in range(rounds):
        for side in list(found)[:: -1 if number % 2 else 1]:
            found[side].append(run(side, spec, folder / f"{side}-{number}"))
            print(side, {key: round(value, 3) for key, value in found[side][-1].items()}, flush=True)
        compare(*(folder / f"{side}-{number}" / "rows" for side in found))
    return found, len(list((folder / "loop-0" / "rows").iterdir()))


def run(side: str, spec: Path, out: Path) -> dict[str, float]:
    """One run in a process of its own, and its clocks."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(spec.parent / "xla")}
    environment["RAY_worker_niceness"] = "0"
    command = [sys.executable, __file__, "--side", side, str(spec), str(out)]
    begin = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    if side == "warm":
        return {}
    marks = sweep_marks(out) if side == "sweep" else json.loads((out / "marks.json").read_text())
    if marks["compiled"]:
        raise SystemExit(f"{side} compiled {marks['compiled']} programs that the warm run should have kept")
    ends, ready, drawing = marks["ends"], marks["ready"], sum(marks["drawing"][1:])
    later = ends[-1] - ends[0] - sum(ready[1:])
    return {
        "start": marks["begun"] - begin,
        "wall": ends[-1] - marks["begun"],
        "ready": sum(ready),
        "rest": ends[-1] - marks["begun"] - sum(ready),
        "later": later,
        "drawing": drawing,
        "outside": later - drawing,
        "end": end - ends[-1],
    }


def sweep(spec: Path, out: Path) -> None:
    from entscale_jax.sweep import run_sweep

    code = run_sweep(spec, out=out, address="local")
    if code:
        raise SystemExit(code)


def sweep_marks(out: Path) -> dict[str, Any]:
    """When a sweep's first call began and each was stored, from its event log; seconds; programs that were compiled."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    chunks = [event for event in events if event["event"] == "chunk"]
    (workers,) = (event for event in events if event["event"] == "workers")
    programs = [
        count
        for worker in json.loads((out / "programs.json").read_text())["workers"]
        for count in (*worker["programs"].values(), *worker["other"].values())
    ]
    return {
        "begun": datetime.fromisoformat(workers["time"]).timestamp(),
        "ends": [datetime.fromisoformat(chunk["time"]).timestamp() for chunk in chunks],
        "ready": [chunk["compile_seconds"] for chunk in chunks],
        "drawing": [chunk["steady_seconds"] for chunk in chunks],
        "compiled": sum(count["compiled"] for count in programs),
    }


def loop(spec: Path, out: Path) -> None:
    from bare_loop import draw_all

    draw_all(spec, out)


def warm(spec: Path, out: Path) -> None:
    from bare_loop import draw_all

    draw_all(spec, out, once=True)


def compare(ours: Path, theirs: Path) -> None:
    """Raises SystemExit where two folders do not hold the same rows of the same pictures."""
    names = sorted(path.name for path in ours.iterdir())
    if not names or names != sorted(path.name for path in theirs.iterdir()):
        raise SystemExit("the sides drew different cells")
    for name in names:
        one, other = (json.loads((rows / name).read_text()) for rows in (ours, theirs))
        differing = [key for key in EXACT if one[key] != other[key]]
        if differing or not close(means(one), means(other)):
            raise SystemExit(f"{name} differs in {differing or 'entropy'}")
        for row, rows in ((one, ours), (other, theirs)):
            if hashlib.sha256((rows.parent / row["image"]).read_bytes()).hexdigest() != row["sha256"]:
                raise SystemExit(f"{name}'s picture is not the one of its row")


def means(row: dict[str, Any]) -> dict[str, list[float]]:
    layers = {f"{each['layer']} {name}": each[name] for each in row["entropy_layers"] for name in MEASURED}
    return {"entropy": [row["entropy"]], **layers}


def close(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    return one.keys() == other.keys() and all(
        len(one[key]) == len(other[key])
        and all(math.isclose(*pair, rel_tol=TOLERANCE) for pair in zip(one[key], other[key], strict=True))
        for key in one
    )


def report(found: dict[str, list[dict[str, float]]], rounds: int, cells: int) -> None:
    rows = []
    for key, told in LINES.items():
        ours, theirs = (Seconds(tuple(run[key] for run in found[side])) for side in ("sweep", "loop"))
        compared = "" if key in APART else spread(ours, theirs)
        rows.append({"what": told, "key": key, "sweep": ours, "loop": theirs, "ratio": compared})
    text = [f"Medians of {rounds} (least to most). Both sides drew {cells} cells with the same SHA-256, each round."]
    write("sweep_overhead", text, rows, {"what": "", "sweep": "sweep", "loop": "bare loop", "ratio": "sweep / loop"})


def spread(ours: Seconds, theirs: Seconds) -> str:
    """The ratio within each round: the median, the least and the most."""
    ratios = [one / other for one, other in zip(ours.values, theirs.values, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


SIDES = {"sweep": sweep, "loop": loop, "warm": warm}


if __name__ == "__main__":
    main()
