"""What a dry run and resuming cost with 100,000 cells, in a folder and at S3: whole commands, with Python's start.

`python benchmarks/sweep_store.py` prints a table and writes benchmarks/results/sweep_store.md and .json. The run is
made by the store's own code, of rows with entropy left out and images of a few bytes; S3 is moto's server on this
machine, in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entscale_jax.environment import commit, versions
from entscale_jax.sweep import plan_sweep
from entscale_jax.sweep.api import Sweep
from entscale_jax.sweep.cell_writer import cell_row, image_name
from entscale_jax.sweep.compaction import PART_ROWS
from entscale_jax.sweep.storage.parts import encode, samples_name, samples_table
from entscale_jax.sweep.tables import write_tables

OUT = Path(__file__).parent / "results"
DRY_RUN_SECONDS, RESUME_SECONDS = 5.0, 10.0
"""What the commands may take."""
SIZES, METHODS = 10, 2
PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
_SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
_COMMAND = """
import sys
from entscale_jax.cli import main
try:
    main()
finally:
    # The kernel's other figure, of getrusage, begins with that of the process that started this one.
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", peak.split()[1], file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000, help="a multiple of 100 at least")
    parser.add_argument("--rounds", type=int, default=3, help="times that each command is run")
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server():
        rows = measure(Path(folder), options.cells, options.rounds)
    content = {"machine": machine(), "load": os.getloadavg()[2], "commit": commit(), "cells": options.cells}
    text = "\n".join([f"{options.cells:,} cells; {machine()}.", "", *table(rows)])
    (options.out / "sweep_store.json").write_text(json.dumps({**content, "commands": rows}, indent=1) + "\n")
    (options.out / "sweep_store.md").write_text(text + "\n")
    print(text)


def measure(folder: Path, cells: int, rounds: int) -> list[dict[str, Any]]:
    """A row a command."""
    spec = write_spec(folder, cells)
    local, remote = str(folder / "run"), "s3://sweep-store/runs/run"
    commands = [("dry run, nothing drawn", [str(spec), "--out", str(folder / "new"), "--dry-run"], DRY_RUN_SECONDS)]
    for name, place in (("folder", local), ("S3", remote)):
        finish(plan_sweep(spec, place))
        commands += [
            (f"dry run, all drawn, {name}", [str(spec), "--out", place, "--dry-run"], DRY_RUN_SECONDS),
            (f"resume, all drawn, {name}", [str(spec), "--out", place], RESUME_SECONDS),
        ]
    return [timed(name, arguments, limit, rounds) for name, arguments, limit in commands]


def write_spec(folder: Path, cells: int) -> Path:
    prompts = [f"a red circle and a blue square, number {number}" for number in range(cells // (SIZES * METHODS))]
    (folder / "captions.txt").write_text("\n".join(prompts) + "\n")
    sizes = ", ".join(f"{128 + 16 * number}x128" for number in range(SIZES))
    spec = folder / "large.yaml"
    spec.write_text(
        f"sweep:\n  name: large\n  model: scenes\n  sizes: [{sizes}]\n  methods: [original, entropy]\n"
        "  prompts: captions.txt\n"
    )
    return spec


def finish(sweep: Sweep) -> None:
    """Makes a run whose cells are all drawn, in parts."""
    run, cells = sweep.run, sweep.plan.cells
    with run.opened():
        run.prepare(sweep.dump(), cells)
        for number, start in enumerate(range(0, len(cells), PART_ROWS)):
            rows = [
                {**cell_row(cell), "image": image_name(cell.id), "seconds": 0.5, "device": "none"}
                for cell in cells[start : start + PART_ROWS]
            ]
            run.files.write(samples_name(number), encode(samples_table(rows)))
        if not run.remote:
            for cell in cells:
                (run.path / image_name(cell.id)).write_bytes(PNG)
        write_tables(run, cells)


@contextmanager
def server() -> Iterator[None]:
    """An S3 server that this process and its children are led to, with one bucket."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        host, port = process.stdout.readline().decode().split()
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://{host}:{port}",
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
        )
        import boto3

        boto3.client("s3").create_bucket(Bucket="sweep-store")
        yield
    finally:
        process.kill()
        process.wait()


def timed(name: str, arguments: list[str], limit: float, rounds: int) -> dict[str, Any]:
    seconds, peaks = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        command = [sys.executable, "-c", _COMMAND, "sweep", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        peaks.append(int(done.stderr.split("peak")[-1]) / 1024)
    row = {"command": name, "seconds": statistics.median(seconds), "all": seconds, "limit": limit, "MiB": max(peaks)}
    print(row, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| command | seconds, median | all | limit | peak memory, MiB |", "|" + "---|" * 5]
    for row in rows:
        each = ", ".join(f"{value:.2f}" for value in row["all"])
        lines.append(f"| {row['command']} | {row['seconds']:.2f} | {each} | {row['limit']:.0f} | {row['MiB']:.0f} |")
    return lines


def machine() -> str:
    software = ", ".join(f"{name} {version}" for name, version in versions(("pyarrow", "s3fs", "moto")).items())
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {software}"


if __name__ == "__main__":
    main()
