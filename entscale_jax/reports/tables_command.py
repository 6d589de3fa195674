"""`entscale tables`: reads a run, compares it with its reference, and writes its tables in one format."""

from pathlib import Path

from ..errors import UserError
from ..marks import find_section, replace_section
from ..metrics.extractor import Extractor
from .paper_tables import make_tables
from .records import Run
from .run_folder import read_run
from .table_formats import FORMATS, as_csv, latex, markdown

SECTION = "tables"
_WRITERS = dict(zip(FORMATS, (markdown, as_csv, latex), strict=True))


def write_tables(folder: Path, *, reference: Path | None = None, form: str = "markdown", column: str = "image") -> str:
    """The tables of the run in `folder` as text.

    Args:
        folder: a run folder.
        reference: see `paper_tables.make_tables`.
        form: markdown, csv or latex.
        column: of a Parquet reference, the one with the pictures.

    Raises UserError for an unknown form, and as `make_tables` does.
    """
    if form not in _WRITERS:
        raise UserError(f"--format {form!r} is unknown: use one of {', '.join(FORMATS)}")
    run = read_run(folder)
    return _WRITERS[form](make_tables(run, reference, open_extractor, column))


def write_section(folder: Path, document: Path, *, reference: Path | None = None, column: str = "image") -> None:
    """Replaces the section `tables` of a Markdown document by the run's tables and what made them.

    Raises UserError where the document has no such section, and as `write_tables` does.
    """
    find_section(document, SECTION)
    run = read_run(folder)
    text = markdown(make_tables(run, reference, open_extractor, column))
    replace_section(document, SECTION, [*_origin(run, folder, reference), "", *text.splitlines()])


def _origin(run: Run, folder: Path, reference: Path | None) -> list[str]:
    """What a reader needs to make the tables again."""
    sampler = run.spec.get("sampler", {})
    drawn = sum(sample.error is None for sample in run.samples)
    weights = ", ".join(f"{model} `{found[:12]}`" for model, found in run.weights.items())
    compared = f" --reference {reference}" if reference else ""
    made = f"`entscale tables {folder}{compared} --document`; {drawn:,} of {run.planned:,} images drawn"
    how = f"{sampler.get('name')}, {sampler.get('steps')} steps, guidance {sampler.get('guidance')}"
    return [f"{made}, weights {weights}, commit `{run.environment.get('commit')}`: {how}."]


def open_extractor(identity: str, run: Run) -> Extractor:
    """The extractor that saw a run's pictures, for those of a reference. Raises UserError where it is another now."""
    if identity.startswith("scenes"):
        from ..metrics.scenes_models import scenes_extractor

        found = scenes_extractor()
    else:
        from ..metrics.inception import inception_extractor

        found = inception_extractor(Path(run.spec["extractors"]["inception"]))
    if found.identity != identity:
        raise UserError(
            f"the run's features are of {identity}, and what is installed now is {found.identity}: give a run as "
            "--reference that was drawn with the same, or draw again"
        )
    return found
