"""The bare loop that `sweep_overhead.py` compares a sweep with: calls, measurements and files, and nothing else."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from entscale_jax import TextToImage
from entscale_jax.compilation import enable_cache
from entscale_jax.metrics.objects import compare
from entscale_jax.png import png_bytes
from entscale_jax.sweep import plan_sweep
from entscale_jax.sweep.compiles import CompileCounter
from entscale_jax.sweep.environment import versions
from entscale_jax.sweep.plan import Cell, Chunk, Program


def draw_all(spec: Path, out: Path, *, once: bool = False) -> None:
    """Draws the cells of a sweep's file into a folder, or with `once` the first call of each program alone.

    `marks.json` gets when the first call began and when each call's rows were stored (seconds since the epoch), the
    seconds of making programs ready and of drawing by calls, and how many programs were compiled and not read.
    """
    chunks = plan_sweep(spec).plan.chunks
    for name in ("images", "rows"):
        (out / name).mkdir(parents=True)
    enable_cache(every_program=True)
    loop = Loop(out)
    chosen = {chunk.program: chunk for chunk in reversed(chunks)}.values() if once else chunks
    for chunk in chosen:
        loop.draw(chunk)
    (out / "marks.json").write_text(json.dumps(loop.marks))


class Loop:
    """Draws chunk after chunk; the model is loaded when it is made."""

    def __init__(self, out: Path):
        self._out = out
        self._counter = CompileCounter()
        self.marks: dict[str, Any] = {"begun": time.time(), "ends": [], "ready": [], "drawing": [], "compiled": 0}
        self._pipe = TextToImage.from_pretrained("scenes")
        self._ready: set[Program] = set()
        self._count()
        self._layers = {name: level for name, (level, _, _) in self._pipe.layers.items()}
        self._versions = " ".join(f"{name}-{version}" for name, version in versions().items())

    def draw(self, chunk: Chunk) -> None:
        """Draws, measures and writes a chunk."""
        first = chunk.cells[0]
        same = {name: getattr(first, name) for name in ("height", "width", "sampler", "steps", "guidance")}
        same |= {"rule": first.method, "measure_entropy": True}
        if chunk.program not in self._ready:
            self._pipe.compile(batch=chunk.program.batch, **same)
            self._ready.add(chunk.program)
        ahead = self._count()
        begin = time.perf_counter()
        cells = [*chunk.cells, *[first] * (chunk.program.batch - len(chunk.cells))]
        output = self._pipe([cell.prompt for cell in cells], seed=[cell.seed for cell in cells], **same)
        seconds = time.perf_counter() - begin
        late = self._count()
        self.marks["ready"].append(ahead + late)
        self.marks["drawing"].append(seconds - late)
        for place, cell in enumerate(chunk.cells):
            self._keep(cell, output, place, (seconds - late) / len(chunk.cells))
        self.marks["ends"].append(time.time())

    def _count(self) -> float:
        made, seconds = self._counter.take()
        self.marks["compiled"] += sum(not each.cached for each in made)
        return seconds

    def _keep(self, cell: Cell, output: Any, place: int, seconds: float) -> None:
        """Measures a picture and writes it, and then its row."""
        objects = compare(output.images[place], cell.prompt)
        layers = self._measured(cell, output, place)
        png = png_bytes(output.images[place], self._text(cell))
        (self._out / "images" / f"{cell.id}.png").write_bytes(png)
        row = {
            "cell": cell.id,
            "model": cell.model,
            "width": cell.width,
            "height": cell.height,
            "method": cell.method.label,
            "prompt": cell.prompt,
            "seed": cell.seed,
            "image": f"images/{cell.id}.png",
            "seconds": seconds,
            "objects_exact": objects.exact,
            "objects_missing": objects.missing,
            "objects_extra": objects.extra,
            "entropy": float(np.mean([layer["entropy"] for layer in layers])),
            "sha256": hashlib.sha256(png).hexdigest(),
            "entropy_layers": layers,
        }
        (self._out / "rows" / f"{cell.id}.json").write_text(json.dumps(row))

    def _measured(self, cell: Cell, output: Any, place: int) -> list[dict[str, Any]]:
        info = self._pipe.info
        tokens, train_tokens = info.tokens(info.bucket(cell.height, cell.width)), info.train_tokens
        return [
            {
                "layer": name,
                "tokens": tokens[level],
                "train_tokens": train_tokens[level],
                "entropy": output.entropy[name][:, place].mean(-1, dtype=np.float64).tolist(),
                "logit_gap": output.logit_gap[name][:, place].mean(-1, dtype=np.float64).tolist(),
            }
            for name, level in self._layers.items()
        ]

    def _text(self, cell: Cell) -> dict[str, str]:
        """The text chunks of the sweep's PNG files, so that both are the same bytes."""
        return {
            "model": f"{cell.model} {cell.weights_hash}",
            "caption": cell.prompt,
            "seed": str(cell.seed),
            "rule": cell.method.label,
            "size": f"{cell.width}x{cell.height}",
            "sampler": f"{cell.sampler} steps {cell.steps} guidance {cell.guidance:g}",
            "versions": self._versions,
        }
