"""What `entscale entropy` does: draws, prints the tables, and writes values, figures and a document's section."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from ...entropies import EntropyStudy, size_text
from ...entropy_study import Measurement, Plan, complete, layers_in_order, make_study, measure
from ...environment import commit, versions
from ...errors import UserError
from ...marks import find_section, replace_section, table
from ...pipeline import TextToImage
from ...statistics import Interval
from ...weights.folder import ModelInfo
from ..studies.study_figures import save_figure
from .entropy_figures import draw_against_tokens, draw_layers
from .entropy_tables import INTERVALS, SHARE, Table, layers_table, line_text, lines_table, shares_text, sizes_table

SECTION = "entropy"
_PACKAGES = ("entscale-jax", "jax", "jaxlib", "flax", "numpy")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the command."""

    model: str
    plan: Plan
    train_size: tuple[int, int] | None
    """(height, width) in pixels; the model's own if None."""
    out: Path
    document: Path | None
    """Markdown whose section `SECTION` is replaced, its figures beside it."""
    command: str
    """As it was given, for whoever wants the same again."""


def run(job: Job, console: Console) -> EntropyStudy:
    """Measures, prints and writes. Nothing is drawn where something is wrong that shows before."""
    if job.document is not None:
        find_section(job.document, SECTION)
    _check_out(job.out)
    with console.status(f"opening {job.model}") as status:
        pipe = TextToImage.from_pretrained(job.model, train_size=job.train_size)
        count = len(complete(job.plan, pipe.info))
        done: list[int] = []

        def say(size: tuple[int, int], scaling: Any) -> None:
            done.append(1)
            status.update(
                f"{len(done)} of {count}: {len(job.plan.captions)} images of {size_text(size)}, {scaling.label}"
            )

        found = measure(pipe, job.plan, say)
    layers = layers_in_order(pipe)
    study = make_study(pipe.info, layers, job.plan, found)
    print_study(study, Console())
    _write(job, pipe.info, study, found)
    console.print(f"wrote {job.out}", soft_wrap=True, highlight=False)
    if job.document is not None:
        write_section(job, pipe.info, study)
        console.print(f"wrote section {SECTION} of {job.document}", soft_wrap=True, highlight=False)
    return study


def print_study(study: EntropyStudy, console: Console) -> None:
    """The tables in a terminal."""
    console.print(_rich("mean entropy of self-attention, nats", sizes_table(study)))
    others = [size for size in study.sizes if size != study.train_size]
    console.print(_rich("layer by layer", layers_table(study, others)))
    for sentence in _sentences(study):
        console.print(sentence, highlight=False)
    console.print(SHARE, highlight=False)
    console.print(INTERVALS, highlight=False)


def figures(study: EntropyStudy) -> dict[str, Figure]:
    """The study's figures by the names of their files."""
    layers = draw_layers(study)
    found = {"entropy-figure5": draw_against_tokens(study)}
    return found if layers is None else found | {"entropy-figure6": layers}


def write_section(job: Job, info: ModelInfo, study: EntropyStudy) -> None:
    """Replaces the section of the document and writes its pictures beside it."""
    if job.document is None:
        return
    pictures = figures(study)
    replace_section(job.document, SECTION, section(job, info, study))
    for name, figure in pictures.items():
        save_figure(figure, job.document.with_name(f"{name}.png"))


def section(job: Job, info: ModelInfo, study: EntropyStudy) -> list[str]:
    """The lines of the section."""
    guidance = info.guidance if job.plan.guidance is None else job.plan.guidance
    shown = study.panels()
    lines = [
        f"Made by `{job.command}` with the weights `{info.weights_hash[:12]}`, commit `{commit()}`: "
        f"{len(job.plan.captions)} captions, {job.plan.steps} steps, guidance {guidance:g} (the caption's half is "
        "measured); at one size a caption has the same noise under every rule. Means in nats over heads, rows, layers, "
        f"steps and images. {INTERVALS}",
        "",
        *(f"- {sentence}" for sentence in _sentences(study)),
        "",
        "![Mean entropy against log N](entropy-figure5.png)",
        "",
        "N is the token count of the finest level that has self-attention; the other levels have a quarter, a "
        "sixteenth and so on of it, up to rounding, which moves log N by a constant and leaves the slope alone. "
        "Lines are by least squares. Open markers are of another aspect ratio than the training size.",
        "",
        *table(*lines_table(study)),
        "",
        *table(*sizes_table(study)),
        "",
        SHARE,
    ]
    if shown:
        lines += ["", "![Entropy of each layer](entropy-figure6.png)", "", *table(*layers_table(study, shown))]
    return lines


def _sentences(study: EntropyStudy) -> list[str]:
    told = [text(study, method) for method in study.methods for text in (line_text, shares_text)]
    return [sentence for sentence in told if sentence is not None]


def _rich(title: str, content: Table) -> RichTable:
    header, rows = content
    made = RichTable(box=SIMPLE_HEAD, padding=(0, 1), title=title)
    for name in header:
        made.add_column(name, justify="left" if name in ("size", "rule", "layer") else "right")
    for row in rows:
        made.add_row(*row)
    return made


def _check_out(out: Path) -> None:
    """Raises UserError where the folder could not be made or written."""
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--out {out}: {place} is no folder that can be written; give another")


def _write(job: Job, info: ModelInfo, study: EntropyStudy, found: Sequence[Measurement]) -> None:
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(_content(job, info, study), indent=1)
        (job.out / "entropy.json").write_text(content + "\n", encoding="utf-8")
        pq.write_table(_rows(job, study, found), job.out / "entropy.parquet")
        for name, figure in figures(study).items():
            save_figure(figure, job.out / f"{name}.png")
            figure.savefig(job.out / f"{name}.svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"{job.out} can't be written: {error.strerror or error}") from None


def _content(job: Job, info: ModelInfo, study: EntropyStudy) -> dict[str, Any]:
    """Where the numbers come from, and the numbers of the tables."""
    height, width = info.train_size
    sampler = {"name": info.sampler().name, "steps": job.plan.steps}
    guidance = info.guidance if job.plan.guidance is None else job.plan.guidance
    return {
        "command": job.command,
        "model": info.name,
        "weights_hash": info.weights_hash,
        "train_size": f"{width}x{height}",
        "sampler": sampler | {"guidance": guidance},
        "seed": job.plan.seed,
        "captions": list(job.plan.captions),
        "commit": commit(),
        "versions": versions(_PACKAGES),
        "mean_over": "heads, rows, steps and images, and layers where none is named; nats",
        "lines": {method: _line(study, method) for method in study.methods},
        "layers": [
            {"layer": layer, "train_tokens": tokens}
            for layer, tokens in zip(study.layers, study.train_tokens, strict=True)
        ],
        "points": [_entry(study, index) for index in range(len(study.points))],
    }


def _line(study: EntropyStudy, method: str) -> dict[str, Any] | None:
    line = study.line(method)
    if line is None:
        return None
    fit = None if np.isnan(line.r_squared) else line.r_squared
    found = {"slope": line.slope, "intercept": line.intercept, "r_squared": fit}
    bounds = study.line_intervals(method)
    if bounds is None:
        return found
    return found | {f"{name}_interval": [one.low, one.high] for name, one in zip(found, bounds, strict=False)}


def _entry(study: EntropyStudy, index: int) -> dict[str, Any]:
    point = study.points[index]
    gap, share = study.gap(point), study.share(point)
    return {
        "size": point.label,
        "rule": point.method,
        "tokens": point.tokens,
        "images": point.mean.count,
        "entropy": _bounds(point.mean),
        "gap": None if gap is None else _bounds(gap),
        "brought_back": None if share is None else _bounds(share),
        "layers": [_bounds(layer) for layer in point.layer_intervals],
    }


def _bounds(value: Interval) -> list[float]:
    return [value.mean, value.low, value.high]


def _rows(job: Job, study: EntropyStudy, found: Sequence[Measurement]) -> pa.Table:
    """A row an image, layer and step: means over heads and rows."""
    tables = []
    for one in found:
        layers, steps, images = (axis.ravel() for axis in np.indices(one.entropy.shape))
        width, height = one.size
        columns: dict[str, Any] = {
            "model": [study.model] * len(layers),
            "width": np.full(len(layers), width, np.int32),
            "height": np.full(len(layers), height, np.int32),
            "method": [one.method] * len(layers),
            "prompt": [job.plan.captions[image] for image in images],
            "seed": job.plan.seed + images.astype(np.int64),
            "layer": [study.layers[layer] for layer in layers],
            "tokens": np.array(one.tokens, np.int32)[layers],
            "train_tokens": np.array(study.train_tokens, np.int32)[layers],
            "step": steps.astype(np.int32),
            "entropy": one.entropy.ravel(),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
