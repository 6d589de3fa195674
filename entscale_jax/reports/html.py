"""Writes the report of a run: one HTML file that needs no network, and shows its pictures larger beside their run."""

import os
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..scales import LevelMultiplier, multiplier_text
from ..statistics import RESAMPLES, interval, signed
from .entropy.entropy_runs import entropy_studies, paper_figures
from .figures import entropy_figure, objects_figure
from .gallery import galleries
from .levels import find_levels
from .page_parts import embedded_json, gallery_data, script, templates
from .records import Run
from .run_folder import read_run
from .tables import entropy_tables, failed_cells, flatten, objects_tables, program_lines

SCRIPTS = ("elements", "theme", "tables", "filters", "cards", "viewer", "main")
PAGE = "report"
"""The folder of the page within that of the run."""


def write_report(run: Path | str) -> Path:
    """Writes `report/index.html` into a run folder, whether its sweep is finished or not, and returns the path.

    Raises UserError where the folder is no run, has no finished cell, holds a broken file or can't be written.
    """
    folder = Path(run)
    text = render(read_run(folder))
    target = folder / PAGE / "index.html"
    try:
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror}): make its folder writable") from error
    return target


def render(run: Run) -> str:
    """The report of a run as HTML."""
    levels = find_levels(run)
    counted = objects_tables(run, levels)
    entropy = entropy_tables(run)
    found = galleries(run, levels, run.folder / PAGE)
    code = script(*(f"report/{name}.js" for name in SCRIPTS))
    studies = {study.model: study for study in entropy_studies(run)}
    return (
        templates(interval=interval, signed=signed, counts=_counts, multipliers=_multipliers)
        .get_template("report.html.j2")
        .render(
            run=run,
            version=__version__,
            environment=flatten(run.environment),
            galleries=found,
            states={picture.state for gallery in found for card in gallery.cards for picture in card.pictures},
            data=embedded_json(gallery_data(found, run.methods)),
            script=code,
            levels=levels,
            objects=counted,
            objects_figure=objects_figure(counted, run.methods) if counted else None,
            entropy=[
                (table, entropy_figure(table, run.methods), *paper_figures(studies[table.model])) for table in entropy
            ],
            programs=program_lines(run),
            failed=failed_cells(run),
            resamples=RESAMPLES,
        )
    )


def _counts(values: Sequence[int]) -> str:
    return " / ".join(map(str, values))


def _multipliers(values: Sequence[LevelMultiplier]) -> str:
    return " / ".join(map(multiplier_text, values))
