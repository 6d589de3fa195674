"""The paper's figures on the built-in model for docs/figures.md, from the two runs that `make figures` draws."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...entropies import EntropyStudy, PixelSize, size_text
from ...errors import UserError
from ...marks import find_section, replace_section, table
from ..entropy.entropy_figures import draw_against_tokens, draw_layers
from ..entropy.entropy_runs import entropy_studies
from ..entropy.entropy_tables import INTERVALS, SHARE, layers_table, lines_table, sizes_table
from ..records import Run
from ..run_folder import read_run
from ..studies.study_figures import save_figure
from .sheet import write_sheet
from .sheet_choice import Choice
from .sheet_layout import sampler_text

SECTION = "figures"
_PAIR = "original,entropy"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One of the paper's figures of pictures, in proportion to the built-in model's training size."""

    name: str
    """That of the file in `sweeps/paper/`, and of the picture."""
    title: str
    sizes: tuple[PixelSize, ...]
    methods: str = _PAIR
    count: int = 6
    note: str = ""

    @property
    def choice(self) -> Choice:
        """What is shown of the run."""
        return Choice(sizes=self.sizes, methods=self.methods, count=self.count)

    def command(self, run: Path, file: Path) -> str:
        """What draws the same."""
        options = f"--sizes {','.join(map(size_text, self.sizes))} --methods {self.methods} --count {self.count}"
        return f"entscale sheet {run} {options} -o {file}"


SHEETS = (
    Sheet(
        name="figure1",
        title="Figure 1: sizes from small to large",
        sizes=((56, 56), (128, 72), (112, 112), (192, 192), (256, 192)),
        count=3,
    ),
    Sheet(name="figure3_9_10", title="Figures 3, 9 and 10: below the training size", sizes=((56, 56),)),
    Sheet(name="figure4_12", title="Figures 4 and 12: above it", sizes=((192, 192),)),
    Sheet(
        name="figure7",
        title="Figure 7: against enlarging what was drawn at the training size",
        sizes=((192, 192),),
        methods="resize,original,entropy",
        note="`resize` is Lanczos; it has the seed of its row at the training size, whose noise is another.",
    ),
    Sheet(name="figure11", title="Figure 11: another aspect ratio", sizes=((128, 72),)),
    Sheet(name="figure13", title="Figure 13: four times the area", sizes=((256, 256),)),
)
"""The figures of pictures, in the order of the paper."""


def write_figures(document: Path, pictures: Path, entropy: Path) -> None:
    """Replaces the section `figures` of a Markdown document, and writes its pictures beside it.

    Raises UserError where there is no such section, and where a run lacks what a figure shows.
    """
    find_section(document, SECTION)
    drawn, measured = read_run(pictures), read_run(entropy)
    studies = entropy_studies(measured)
    if not studies:
        raise UserError(f"run {measured.name} has no entropy: draw sweeps/figures-entropy.yaml")
    lines = [f"Pictures: {_origin(drawn, pictures)}", "", f"Entropy: {_origin(measured, entropy)}"]
    for sheet in SHEETS:
        file = write_sheet(pictures, document.with_name(f"{sheet.name}.webp"), sheet.choice)
        lines += ["", *_sheet_lines(sheet, sheet.command(pictures, document.parent / file.name), file.name)]
    lines += ["", *_entropy_lines(studies[0], document)]
    replace_section(document, SECTION, lines)


def _sheet_lines(sheet: Sheet, command: str, file: str) -> list[str]:
    named = sheet.methods.replace(",", ", ")
    alternative = f"{sheet.count} captions at {', '.join(map(size_text, sheet.sizes))}, each drawn by {named}"
    note = [sheet.note, ""] if sheet.note else []
    return [f"## {sheet.title}", "", *note, f"![{alternative}]({file})", "", f"`{command}`"]


def _entropy_lines(study: EntropyStudy, document: Path) -> list[str]:
    """Figures 5 and 6 with the numbers behind them."""
    save_figure(draw_against_tokens(study), document.with_name("figure5.png"))
    lines = [
        "## Figure 5: mean entropy against log N",
        "",
        "![Mean entropy of self-attention against log N, with the line of each rule: the tables below](figure5.png)",
        "",
        f"Means in nats over heads, rows, layers, steps and images. {INTERVALS}",
        "",
        *table(*lines_table(study)),
        "",
        *table(*sizes_table(study)),
        "",
        SHARE,
    ]
    layers = draw_layers(study)
    if layers is None:
        return lines
    save_figure(layers, document.with_name("figure6.png"))
    return [
        *lines,
        *("", "## Figure 6: entropy of each layer", ""),
        *("![Mean entropy of each self-attention layer at two sizes by rule: the table below](figure6.png)", ""),
        *table(*layers_table(study, study.panels())),
    ]


def _origin(run: Run, folder: Path) -> str:
    """What a reader needs to draw a run again, and what drew it."""
    drawn = sum(sample.error is None for sample in run.samples)
    seeds = [seed for _, seed in run.pairs]
    weights = ", ".join(f"`{found[:12]}`" for found in run.weights.values())
    return (
        f"`entscale sweep sweeps/{run.name}.yaml --out {folder}`, {drawn:,} of {run.planned:,} images drawn: "
        f"{len(run.pairs)} captions, seeds {min(seeds)} to {max(seeds)}, {sampler_text(run)}, weights {weights}, "
        f"commit `{run.environment.get('commit')}`. {_machine(run)}"
    )


def _machine(run: Run) -> str:
    found, versions = run.environment, run.environment.get("versions", {})
    kinds = sorted({f"{device.get('count', 1)} {device.get('kind')}" for device in found.get("devices", ())})
    software = [f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "numpy") if name in versions]
    told = [f"{found.get('cpus')} cores", *(f"device: {kind}" for kind in kinds), f"Python {found.get('python')}"]
    return f"On {', '.join([*told, *software])}."


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m entscale_jax.reports.sheets.figures_document DOCUMENT PICTURES ENTROPY`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path, help="Markdown with a section `figures`")
    parser.add_argument("pictures", type=Path, help="the run of sweeps/figures.yaml")
    parser.add_argument("entropy", type=Path, help="the run of sweeps/figures-entropy.yaml")
    given = parser.parse_args(arguments)
    try:
        write_figures(given.document, given.pictures, given.entropy)
    except UserError as error:
        print(f"figures: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote section {SECTION} of {given.document}")


if __name__ == "__main__":
    main()
