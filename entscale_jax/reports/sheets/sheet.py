"""A contact sheet: pictures of a run side by side for a paper or a slide, as PNG, WebP or PDF."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ...errors import UserError
from ...png import png_bytes
from ..entropy.fitted_text import FONT, any_letters, plain, wrap
from ..records import Run
from ..run_folder import read_run
from .sheet_choice import Cell, Choice, choose, read_cell
from .sheet_layout import CAPTION, FOOT, METHOD, NOTE, SIZE, Layout, Spot, column_text, columns_text, foot_text

SUFFIXES = (".png", ".webp", ".pdf")
_STYLE: dict[Any, Any] = {"font.family": FONT, "text.parse_math": False, "pdf.fonttype": 42, "text.color": "#111111"}
_FAINT, _FRAME = "#555555", "#999999"
_DETAIL = 2
"""Pixels of a picture in a PDF over those that the sheet would have as PNG, at most: a reader may zoom in."""


def write_sheet(run: Path | str, file: Path, choice: Choice | None = None) -> Path:
    """Writes pictures of a run: a row a caption and seed, a column a size and method.

    The file's kind follows from its suffix. It carries a text alternative: of PNG in the text chunk `Description`, of
    WebP as XMP `dc:description`, of PDF as its subject. The same run and choice give the same bytes.

    Raises UserError for another suffix, as `read_run` and `choose` do, and where the file can't be written.
    """
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise UserError(f"{file} has no known kind: give a name that ends in {', '.join(SUFFIXES)}")
    found, choice = read_run(Path(run)), choice or Choice()
    layout = Layout(run=found, shown=choose(found, choice), scaled=choice.scaled)
    layout.check(kind)
    with matplotlib.rc_context(_STYLE), any_letters():
        content = _pdf(layout) if kind == ".pdf" else _raster(layout, kind)
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error
    return file


def describe_sheet(layout: Layout, notes: Sequence[Sequence[str]]) -> str:
    """The sheet in words; `notes` are those of the cells, row by row."""
    run, shown = layout.run, layout.shown
    lines = [f"Contact sheet of run {run.name}. Columns: {columns_text(run, shown.columns)}."]
    for number, ((prompt, seed), row) in enumerate(zip(shown.pairs, notes, strict=True), 1):
        told = [f"{column_text(run, column)}: {note}" for column, note in zip(shown.columns, row, strict=True) if note]
        found = f" {plain('; '.join(told))}." if told else ""
        lines.append(f"Row {number}: {plain(prompt)}, seed {seed}.{found}")
    return "\n".join([*lines, foot_text(run, shown, layout.scaled)])


def _raster(layout: Layout, kind: str) -> bytes:
    figure, notes = _draw(layout, enlarged=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    text = describe_sheet(layout, notes)
    if kind == ".png":
        return png_bytes(pixels, {"Title": _title(layout.run), "Description": text})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=90, method=6, xmp=_xmp(text))
    return buffer.getvalue()


def _pdf(layout: Layout) -> bytes:
    figure, notes = _draw(layout, enlarged=False)
    buffer = io.BytesIO()
    about = {"Title": _title(layout.run), "Subject": describe_sheet(layout, notes)}
    nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    figure.savefig(buffer, format="pdf", dpi=layout.dpi, metadata={**about, **nothing})
    return buffer.getvalue()


def _title(run: Run) -> str:
    return f"Contact sheet of run {run.name}"


def _xmp(text: str) -> bytes:
    """Where image viewers and search engines look for a description."""
    about = f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(text)}</rdf:li></rdf:Alt></dc:description>'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">{about}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def _draw(layout: Layout, *, enlarged: bool) -> tuple[Figure, list[list[str]]]:
    """The sheet on one pair of axes whose unit is its pixel, and the notes of its cells row by row."""
    # A trifle more, as sizes are cut to whole pixels after they went through inches.
    inches = [(side + 0.01) / layout.dpi for side in (layout.width, layout.height)]
    figure = Figure(figsize=(inches[0], inches[1]), dpi=layout.dpi, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    notes = []
    for index in range(len(layout.shown.pairs)):
        if index < layout.across:
            _draw_head(axes, layout, layout.block_left(index))
        _draw_lines(axes, layout, layout.block_left(index), layout.block_top(index), layout.captions(index), CAPTION)
        notes.append(_draw_row(axes, layout, index, enlarged))
    foot_top = layout.height - layout.dots(0.06) - len(layout.foot) * layout.line(FOOT)
    _draw_lines(axes, layout, layout.block_left(0), foot_top, layout.foot, FOOT, color=_FAINT)
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0), aspect="auto")
    axes.axis("off")
    return figure, notes


def _draw_head(axes: Axes, layout: Layout, left: int) -> None:
    top = layout.dots(0.06)
    for x, lines in layout.size_labels:
        _draw_lines(axes, layout, left + x, top, lines, SIZE, weight="bold")
    for x, lines in layout.method_labels:
        _draw_lines(axes, layout, left + x, layout.method_top, lines, METHOD)


def _draw_lines(
    axes: Axes, layout: Layout, x: int, y: int, lines: Sequence[str], points: float, **style: object
) -> None:
    for number, line in enumerate(lines):
        top = y + number * layout.line(points)
        axes.text(x, top, line, fontsize=points, va="top", ha="left", **style)  # pyright: ignore[reportArgumentType]


def _draw_row(axes: Axes, layout: Layout, index: int, enlarged: bool) -> list[str]:
    notes = []
    for number, column in enumerate(layout.shown.columns):
        cell, spot = read_cell(layout.run, column, layout.shown.pairs[index]), layout.spot(index, number)
        if cell.image is None:
            _draw_frame(axes, layout, spot, cell)
        else:
            extent = (spot.x, spot.x + spot.width, spot.y + spot.height, spot.y)
            shown = np.asarray(_fitted(cell.image, spot, enlarged))
            axes.imshow(shown, extent=extent, interpolation="nearest" if enlarged else "none")
        notes.append(cell.note)
    return notes


def _draw_frame(axes: Axes, layout: Layout, spot: Spot, cell: Cell) -> None:
    inset = 1 + layout.dpi // 200
    sides = spot.width - 2 * inset, spot.height - 2 * inset
    axes.add_patch(Rectangle((spot.x + inset, spot.y + inset), *sides, fill=False, edgecolor=_FRAME, linewidth=0.6))
    room = max(1, int(layout.points(spot.height) / (NOTE * 1.25)) - 1)
    lines = wrap(plain(cell.note), layout.points(spot.width) - 6, NOTE, lines=room)
    margin = layout.dots(3 / 72)
    _draw_lines(axes, layout, spot.x + margin, spot.y + margin, lines, NOTE, color=_FAINT)


def _fitted(image: Image.Image, spot: Spot, enlarged: bool) -> Image.Image:
    """The picture at the pixels of its spot: enlarged by repeating its own, so that nothing is smoothed into it.

    In a PDF, which scales by itself, only reduced.
    """
    if enlarged:
        smaller = spot.width < image.width or spot.height < image.height
        how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
        return image.resize((spot.width, spot.height), how)
    most = _DETAIL * spot.width, _DETAIL * spot.height
    if image.width <= most[0] and image.height <= most[1]:
        return image
    return image.resize(most, Image.Resampling.LANCZOS)
