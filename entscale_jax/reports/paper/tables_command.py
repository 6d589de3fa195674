"""`entscale tables`: reads a run, compares it with its reference, and writes its tables in one format."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import UserError
from ...marks import find_section, replace_section
from ...metrics.extractor import Extractor
from ..records import Run
from ..run_folder import read_run
from .paper_table import PaperTable
from .paper_tables import make_tables, to_stderr
from .patch_figures import PATCHES
from .table_formats import FORMATS, as_csv, latex, markdown

SECTION = "tables"
COLUMN = "image"
_WRITERS = dict(zip(FORMATS, (markdown, as_csv, latex), strict=True))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run's tables are made with, as the command's options say it."""

    reference: Path | None = None
    """See `paper_tables.make_tables`."""
    column: str | None = None
    """Of a Parquet reference, the one with the pictures; `image` where it is not named."""
    measure: tuple[str, ...] = ()
    """Metrics to measure now of the kept pictures, of `patch_figures.PATCHES`."""
    inception: Path | None = None
    """File of Inception's weights for them, where the run names none."""
    only: tuple[str, ...] = ()
    """Metrics whose tables are wanted; all that there are if empty."""


def write_tables(
    folder: Path, choice: Choice | None = None, *, form: str = "markdown", say: Callable[[str], None] = to_stderr
) -> str:
    """The tables of the run in `folder` as text: markdown, csv or latex. `say` is told of those that can't be made.

    Raises UserError for an unknown form or metric, and as `make_tables` does.
    """
    if form not in _WRITERS:
        raise UserError(f"--format {form!r} is unknown: use one of {', '.join(FORMATS)}")
    return _WRITERS[form](_tables(read_run(folder), choice or Choice(), say))


def write_section(
    folder: Path,
    document: Path,
    choice: Choice | None = None,
    *,
    section: str = SECTION,
    flags: Sequence[str] = (),
    say: Callable[[str], None] = to_stderr,
) -> None:
    """Replaces a section of a Markdown document by the run's tables and what made them.

    `flags` are those of the command that `choice` does not hold, for the line that tells it. Raises UserError where
    the document has no such section, and as `write_tables` does.
    """
    choice = choice or Choice()
    find_section(document, section)
    run = read_run(folder)
    text = markdown(_tables(run, choice, say))
    command = _command(folder, choice, document, section, flags)
    replace_section(document, section, [*_origin(run, command), "", *text.splitlines()])


def _tables(run: Run, choice: Choice, say: Callable[[str], None]) -> list[PaperTable]:
    for name in choice.measure:
        if name not in PATCHES:
            raise UserError(
                f"--measure {name!r} is unknown: give {' or '.join(PATCHES)}; others are measured while a sweep draws"
            )
        if choice.only and name not in choice.only:
            raise UserError(f"--measure {name} is left out by --only: add --only {name}, or leave --measure out")
    asked = {name for name in PATCHES if name in choice.measure or name in run.spec.get("metrics", ())}
    _check_read(choice, asked)
    patches = {name: partial(_open_patches, name, run, choice.inception) for name in PATCHES if name in asked}
    tables = make_tables(
        run,
        choice.reference,
        open_extractor,
        choice.column or COLUMN,
        patches,
        only=choice.only,
        needed=choice.measure,
        say=say,
    )
    missed = set(choice.measure) - {one.metric for one in tables}
    if missed:
        raise UserError(
            f"--measure {sorted(missed)[0]} needs pictures above the training size in both sides, and run {run.folder} "
            f"has {', '.join(map(run.label, run.sizes))}"
        )
    return tables


def _check_read(choice: Choice, patches: set[str]) -> None:
    """Raises UserError for an option that no table reads; `make_tables` does for a reference."""
    if choice.column is not None and (choice.reference is None or choice.reference.is_dir()):
        raise UserError(
            f"--column {choice.column} is of a Parquet file: give one as --reference, or leave --column out"
        )
    if choice.inception is not None and (
        "patch_fid" not in patches or (choice.only and "patch_fid" not in choice.only)
    ):
        raise UserError(
            f"--inception {choice.inception} is read by patch_fid alone: give --measure patch_fid, or leave it out"
        )


def _open_patches(name: str, run: Run, inception: Path | None) -> Extractor:
    if name.startswith("scenes"):
        return _scenes()
    file = inception or (run.spec.get("extractors") or {}).get("inception")
    if file is None:
        raise UserError(f"{name} needs Inception's weights: give --inception FILE, as the run names none")
    return _inception(Path(file))


def _origin(run: Run, command: str) -> list[str]:
    """What a reader needs to make the tables again."""
    sampler = run.spec.get("sampler", {})
    drawn = sum(sample.error is None for sample in run.samples)
    weights = ", ".join(f"{model} `{found[:12]}`" for model, found in run.weights.items())
    made = f"`{command}`; {drawn:,} of {run.planned:,} images drawn"
    how = f"{sampler.get('name')}, {sampler.get('steps')} steps, guidance {sampler.get('guidance')}"
    return [f"{made}, weights {weights}, commit `{run.environment.get('commit')}`: {how}."]


def _command(folder: Path, choice: Choice, document: Path, section: str, flags: Sequence[str]) -> str:
    """The command that writes the tables into the document, whole."""
    options = [
        ("--reference", choice.reference),
        ("--column", choice.column),
        *(("--measure", name) for name in choice.measure),
        ("--inception", choice.inception),
        *(("--only", name) for name in choice.only),
        ("--document", document),
        ("--section", None if section == SECTION else section),
    ]
    given = [str(word) for option, value in options if value is not None for word in (option, value)]
    return shlex.join(["entscale", "tables", str(folder), *given, *flags])


def open_extractor(identity: str, run: Run) -> Extractor:
    """The extractor that saw a run's pictures, for those of a reference. Raises UserError where it is another now."""
    found = _scenes() if identity.startswith("scenes") else _inception(Path(run.spec["extractors"]["inception"]))
    if found.identity != identity:
        raise UserError(
            f"the run's features are of {identity}, and what is installed now is {found.identity}: give a run as "
            "--reference that was drawn with the same, or draw again"
        )
    return found


def _scenes() -> Extractor:
    from ...metrics.scenes_models import scenes_extractor

    return scenes_extractor()


def _inception(file: Path) -> Extractor:
    from ...metrics.inception import inception_extractor

    return inception_extractor(file)
