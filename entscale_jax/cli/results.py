"""Commands that make something of a run: a report, sheets, ratings, tables."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..buckets import parse_size
from ..errors import UserError
from .application import app
from .options import read_seeds


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of sweeps, such as runs/aspect.", metavar="RUN...")],
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Also write a contact sheet of the first run, as entscale sheet does without options.",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="Also write what the runs show together into the section `study` of this document, such as "
            "docs/scenes.md, and its pictures beside it.",
            show_default=False,
        ),
    ] = None,
    calibrated: Annotated[
        Path | None,
        typer.Option(
            help="Also write what rule calibrated does in the runs into the section `calibrated` of this document.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of each run, one self-contained HTML file."""
    from ..reports import write_calibrated, write_report, write_sheet, write_study

    if picture is not None:
        write_sheet(runs[0], picture)
    for run in runs:
        Console().print(f"report: {write_report(run)}", soft_wrap=True, highlight=False)
    if study is not None:
        write_study(runs, study)
        Console().print(f"study: {study}", soft_wrap=True, highlight=False)
    if calibrated is not None:
        write_calibrated(runs, calibrated)
        Console().print(f"calibrated: {calibrated}", soft_wrap=True, highlight=False)


@app.command()
def sheet(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    sizes: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, with commas; all if not given.", show_default=False)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas, such as original,entropy; all if not given.", show_default=False),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, or a file with one a line; may be given again.", show_default=False),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="With commas; all if not given.", show_default=False)] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Rows, the first ones. [default: 8; all with --prompts or --seeds]", show_default=False),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="height: all pictures of one height. pixels: a pixel as large in all.")
    ] = "height",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG, WebP or PDF to write.")] = Path("sheet.png"),
) -> None:
    """Write a contact sheet: a row a caption and seed, the methods side by side at each size."""
    from ..caption_file import captions_of
    from ..reports import write_sheet
    from ..reports.sheets.sheet_choice import Choice, read_scaled

    choice = Choice(
        sizes=None if sizes is None else [parse_size(text) for text in sizes.split(",") if text.strip()],
        methods=methods,
        prompts=None if not prompts else [caption for source in prompts for caption in captions_of(source)],
        seeds=None if seeds is None else read_seeds(seeds),
        count=count,
        scaled=read_scaled(scale),
    )
    Console().print(f"sheet: {write_sheet(run, out, choice)}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def rate(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    rater: Annotated[
        str | None, typer.Option(help="Who rates; the page asks for a name if not given.", show_default=False)
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="So many pairs, the same for all raters; all if not given.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines in, by a link with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
) -> None:
    """Serve a page on which people rate the pictures from 1 to 10, without being told what drew them."""
    from ..reports.rating.rate_command import rate

    console = Console()
    rate(
        run,
        rater=rater,
        host=host,
        port=port,
        pairs=pairs,
        say=lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
    )


@app.command()
def tables(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="What pictures are compared with: a folder of pictures, a Parquet file, or a run; its own pictures at "
            "the training size if not given.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of a Parquet reference, the column with the pictures. [default: image]", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; printed if not given.", show_default=False)
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(help="Write them into a section of this document, such as docs/tables.md.", show_default=False),
    ] = None,
    section: Annotated[
        str | None, typer.Option(help="Of the document, the section. [default: tables]", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A metric whose table is wanted, such as fid; may be given again.", show_default=False),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure scenes_patch_fid or patch_fid now, of the run's kept pictures above the training size, "
            "though its sweep did not ask for it; may be given again.",
            show_default=False,
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="For patch_fid, the file of Inception's weights; the run's if not given.", show_default=False
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Compile the programs of a run that did not record their memory, and keep what they need."
        ),
    ] = False,
) -> None:
    """Print a run's figures by size and method with their intervals, beside those that the paper prints."""
    from ..reports.paper.tables_command import SECTION, Choice, write_section, write_tables

    _check_places(document, section, form, out)
    if memory:
        from ..sweep.memory import record_memory

        console = Console(stderr=True)
        record_memory(run, lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False))
    measured = {"measure": tuple(measure or ()), "inception": inception}
    choice = Choice(reference=reference, column=column, only=tuple(only or ()), **measured)
    if document is not None:
        write_section(run, document, choice, section=section or SECTION, flags=["--memory"] if memory else [])
        return
    text = write_tables(run, choice, form=form)
    if out is None:
        print(text, end="")
    else:
        _write(out, text)


def _check_places(document: Path | None, section: str | None, form: str, out: Path | None) -> None:
    """Raises UserError for options of `tables` of which one would leave the other unread."""
    if document is None and section is not None:
        raise UserError(f"--section {section} is of a document: give --document FILE, or leave --section out")
    if document is not None and out is not None:
        raise UserError(f"--document and --out: the tables go to {document} or to {out}, so leave one of the two out")
    if document is not None and form != "markdown":
        raise UserError(f"--format {form}: a section of {document} is Markdown, so give --out FILE in its place")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error
