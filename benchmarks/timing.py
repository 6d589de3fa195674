"""What the benchmarks share: alternating measurement of several sides, its statistics, the machine, and the results."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from entscale_jax.marks import table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "numpy", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Seconds:
    """The seconds of one side, one value a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        unit, factor = ("ms", 1e3) if self.median < 1 else ("s", 1.0)
        middle, least, most = (f"{value * factor:.3g}" for value in (self.median, min(self.values), max(self.values)))
        return f"{middle} {unit} ({least} to {most})"


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, Seconds]:
    """Times every side once a round, each round beginning with another side; `warm` calls of each come before.

    A side has to wait for its result itself. Alternating lets a disturbance of the machine meet all sides alike.
    """
    for call in sides.values():
        for _ in range(warm):
            call()
    names, found = list(sides), {name: [] for name in sides}
    for start in range(rounds):
        for name in (*names[start % len(names) :], *names[: start % len(names)]):
            begin = time.perf_counter()
            sides[name]()
            found[name].append(time.perf_counter() - begin)
    return {name: Seconds(tuple(values)) for name, values in found.items()}


@dataclass(frozen=True)
class Ratio:
    """One side's seconds over another's, by rounds: the median, and the 95% interval of the median by order."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(ours: Seconds, theirs: Seconds) -> Ratio:
    """The ratio within each round; its interval is exact for the median whatever the distribution (binomial)."""
    values = sorted(one / other for one, other in zip(ours.values, theirs.values, strict=True))
    cut = _rank(len(values))
    return Ratio(statistics.median(values), values[cut], values[-1 - cut])


def _rank(count: int) -> int:
    """The largest r for which the r-th least and r-th most of `count` values cover the median with 95%, from 0."""
    from math import comb

    tail, rank = 1.0, 0
    while rank < count // 2:
        tail = sum(comb(count, k) for k in range(rank + 1)) / 2**count
        if 2 * tail > 0.05:
            break
        rank += 1
    return max(rank - 1, 0)


def machine() -> dict[str, Any]:
    """What the measurements depend on."""
    import jax

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "memory GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "device": f"{jax.devices()[0].platform} {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def processor() -> str:
    """The processor's name and widest vector instructions, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in fields.items()}
    wide = [name for name in ("avx2", "avx512f", "amx_tile") if name in told.get("flags", "").split()]
    return " ".join([told.get("model name", platform.machine()), *wide])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write(name: str, text: Sequence[str], rows: Sequence[Mapping[str, Any]], header: Mapping[str, str]) -> None:
    """Prints a table, and writes it with the machine's description and the command to `results/NAME.md` and `.json`.

    Args:
        name: of the benchmark.
        text: lines above the table.
        rows: one a line of the table; what `header` does not name is in the JSON alone.
        header: key of a row -> heading of its column.
    """
    described = machine()
    lines = [*table(tuple(header.values()), [tuple(str(row[key]) for key in header) for row in rows])]
    told = ", ".join(f"{key} {value}" for key, value in described.items())
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    document = [f"# {name.replace('_', ' ').capitalize()}", "", *text, "", f"`{command}`", "", f"{told}.", "", *lines]
    print("\n".join(document), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(document) + "\n")
    kept = {"command": command, "machine": described, "rows": [dict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, Seconds) else vars(value)
