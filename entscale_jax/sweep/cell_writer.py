"""Stores one cell: what the driver does in a folder and what each worker does at a URI."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ..errors import UserError
from .executor import Drawn, Failure, Result
from .plan import Cell, Task
from .storage.files import PatientFiles

Row = dict[str, Any]
_CELLS_AT_ONCE = 8


def cell_row(cell: Cell) -> Row:
    """The columns of a row that the plan knows already."""
    return {
        "cell": cell.id,
        "model": cell.model,
        "width": cell.width,
        "height": cell.height,
        "method": cell.method.label,
        "prompt": cell.prompt,
        "seed": cell.seed,
    }


def drawn_row(cell: Cell, drawn: Drawn) -> Row:
    """The row of a drawn cell, but for where its image is."""
    features = {"features": dict(drawn.features)} if drawn.features else {}
    return {**cell_row(cell), **drawn.columns, "error": None, "entropy_layers": list(drawn.entropy), **features}


def image_name(cell: str) -> str:
    """The file of a cell's image."""
    return f"images/{cell}.png"


def row_name(cell: str) -> str:
    """The file of a cell's row while it is in no part."""
    return f"rows/{cell}.json"


def dump_json(value: object) -> str:
    """A JSON file's text."""
    return json.dumps(value, indent=1) + "\n"


def store_cell(files: PatientFiles, cell: str, png: bytes, row: Row) -> bool:
    """Stores a drawn cell where others may be storing it, too; False where another's row was there first and stays.

    An image without a row is of a writer that died between them, or that is about to write its row. Where it is another
    image than this one, it is left as it is and this one gets a name of its own: a row always names its own image.
    """
    image = image_name(cell)
    if not files.create(image, png):
        image = f"images/{cell}-{hashlib.sha256(png).hexdigest()[:12]}.png"
        files.write(image, png)
    return files.create(row_name(cell), dump_json({**row, "image": image}).encode())


def store_result(files: PatientFiles, task: Task, result: Result) -> Result | Failure:
    """Stores what a worker drew and returns the rest of the result, which is small; a failure where it can't."""
    cells = {cell.id: cell for cell in task.wanted_cells}

    def store(drawn: Drawn) -> Drawn:
        if drawn.error is not None:
            return drawn
        store_cell(files, drawn.cell, drawn.png, drawn_row(cells[drawn.cell], drawn))
        return replace(drawn, png=b"", entropy=(), features={}, stored=True)

    try:
        with ThreadPoolExecutor(_CELLS_AT_ONCE) as pool:
            return replace(result, drawn=list(pool.map(store, result.drawn)))
    except UserError as error:
        return Failure(str(error), fatal=True)
