"""Memory and time of the moments of many synthetic samples, and the same result after the process is killed on the way.

`python benchmarks/fid_memory.py [--samples 50000] [--width 2048]` writes benchmarks/results/fid_memory.md. A child
process gathers; its parent kills it by SIGKILL half-way, starts it again, and compares with one that nobody disturbed.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from entscale_jax.metrics.frechet import fid
from entscale_jax.metrics.moments import Moments, gather

RESULT = Path(__file__).parent / "results" / "fid_memory.md"
BATCH, EVERY = 250, 10
POINTS = 10


def features(index: int, width: int, shift: float) -> np.ndarray:
    """Batch `index` of positive, correlated features of mean far from zero, as Inception's are."""
    rng = np.random.default_rng((7, index, int(100 * shift)))
    common = rng.standard_normal((BATCH, 1), np.float32)
    return np.abs(rng.standard_normal((BATCH, width), np.float32) + common + np.float32(shift))


def child(file: Path, batches: int, width: int, shift: float) -> None:
    """Gathers, and prints after each batch its number, resident memory in MiB and seconds so far."""
    began = time.perf_counter()

    def batch(index: int) -> np.ndarray:
        print(index, resident(), f"{time.perf_counter() - began:.1f}", flush=True)
        return features(index, width, shift)

    gather(batch, batches, file, extractor="synthetic", every=EVERY)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("peak", f"{peak:.0f}", f"{time.perf_counter() - began:.1f}", flush=True)


def resident() -> int:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def start(file: Path, batches: int, width: int, shift: float) -> subprocess.Popen:
    """A child in the background."""
    arguments = [sys.executable, __file__, "--child", file, "--batches", batches, "--width", width, "--shift", shift]
    return subprocess.Popen([str(part) for part in arguments], stdout=subprocess.PIPE, text=True)


def undisturbed(file: Path, batches: int, width: int, shift: float) -> tuple[list[tuple[int, int, float]], int]:
    """What a child says of its memory on the way, and its peak."""
    process, rows, peak = start(file, batches, width, shift), [], 0
    assert process.stdout is not None
    for line in process.stdout:
        what, memory, seconds = line.split()
        if what == "peak":
            peak = int(memory)
        else:
            rows.append((int(what), int(memory), float(seconds)))
    assert process.wait() == 0
    return rows, peak


def killed_at(file: Path, batches: int, width: int, shift: float, at: int) -> tuple[int, int]:
    """Kills a child when it begins batch `at`, lets another finish: batches kept at the kill, and the next's first."""
    process = start(file, batches, width, shift)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[0] == str(at):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = Moments.load(file).batches
    rows, _ = undisturbed(file, batches, width, shift)
    return kept, rows[0][0]


def measure(samples: int, width: int) -> list[str]:
    """The lines of the result."""
    batches = samples // BATCH
    with tempfile.TemporaryDirectory() as folder:
        whole, parts, reference = (Path(folder) / f"{name}.npz" for name in ("whole", "parts", "reference"))
        rows, peak = undisturbed(whole, batches, width, 0.5)
        at = batches // 2 + EVERY // 2
        kept, first = killed_at(parts, batches, width, 0.5, at)
        undisturbed(reference, batches // 5, width, 0.4)
        found, again, against = (Moments.load(file) for file in (whole, parts, reference))
    same = found.mean.tobytes() == again.mean.tobytes() and found.deviations.tobytes() == again.deviations.tobytes()
    began = time.perf_counter()
    distances = [fid(moments, against) for moments in (found, again)]
    seconds = (time.perf_counter() - began) / 2
    picked = [rows[round(index)] for index in np.linspace(0, len(rows) - 1, POINTS)]
    table = [f"| {(index + 1) * BATCH} | {memory} | {time_so_far:.1f} |" for index, memory, time_so_far in picked]
    held, after = samples * width * 4 / 2**20, [memory for index, memory, _ in rows if index >= EVERY]
    return [
        "# Moments of many samples",
        "",
        f"Made by `python benchmarks/fid_memory.py --samples {samples} --width {width}`: synthetic features in",
        f"batches of {BATCH}, kept every {EVERY} batches (NumPy {np.__version__}, {os.cpu_count()} cores, other work",
        "beside it).",
        "",
        "| samples so far | resident MiB | seconds |",
        "| --- | --- | --- |",
        *table,
        "",
        f"After the first writing memory stays from {min(after)} to {max(after)} MiB; peak {peak} MiB. The features",
        f"alone would be {held:.0f} MiB in float32.",
        "",
        f"Killed by SIGKILL at batch {at} of {batches}, when {kept} were kept, the second run began at batch {first}.",
        f"Mean and deviations have {'the same' if same else 'OTHER'} bits as the undisturbed run's. FID to",
        f"{against.count} samples of another distribution: {distances[0]!r} and {distances[1]!r} ({seconds:.1f} s).",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shift", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.batches, options.width, options.shift)
        return
    RESULT.write_text("\n".join(measure(options.samples, options.width)))
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
