"""The seconds that each notebook takes from a fresh installation: from the start of its kernel to its end.

python benchmarks/notebooks.py [--rounds 3] [NAME ...]

Every round is a new kernel in an empty folder, with no cache in its place: programs are compiled, and matplotlib lists
the fonts of the machine anew. Installing is not counted.
"""

import argparse
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

from timing import Seconds, write

LIMIT = 45
"""Seconds on two cores."""
SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "notebooks" / "execute.py"))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in ("JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR"):  # which would be taken before the folder of caches
        os.environ.pop(name, None)
    rows = []
    for path in SCRIPT["paths"](options.names):
        taken = Seconds(tuple(measure(path) for _ in range(options.rounds)))
        fits = "yes" if taken.median <= LIMIT else "no"
        rows.append({"notebook": path.name, "seconds": taken, "fits": fits})
        print(path.name, taken, flush=True)
    text = [f"Medians of {options.rounds} (least to most), kernels and caches new each time. The limit is {LIMIT} s."]
    write("notebooks", text, rows, {"notebook": "notebook", "seconds": "seconds", "fits": "within the limit"})
    if any(row["fits"] == "no" for row in rows):
        sys.exit(1)


def measure(path: Path) -> float:
    """Seconds of one execution; raises CellExecutionError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        here, caches = Path(folder, "here"), Path(folder, "caches")
        here.mkdir()
        begin = time.perf_counter()
        SCRIPT["execute"](path, here, {"XDG_CACHE_HOME": str(caches), "IPYTHONDIR": str(Path(folder, "ipython"))})
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
