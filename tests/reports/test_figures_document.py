"""docs/figures.md: its section is made of two runs, and its table of the paper's items holds to files and commands."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax import cli
from entscale_jax.baselines import Upscale
from entscale_jax.errors import UserError
from entscale_jax.reports.sheets.figures_document import SHEETS, main, write_figures
from entscale_jax.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "figures.md"
PAPER = ROOT / "sweeps" / "paper"
MARKS = "# T\n\n<!-- measured: figures -->\n<!-- end of measured: figures -->\n\nBelow.\n"
ITEMS = {f"Table {number}" for number in range(1, 6)} | {f"Figure {number}" for number in range(1, 14)}
COMMANDS = typer.main.get_command(cli.app).commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def faults(command):
    """What is wrong with a command of the documents: a file that is not there, an option that no command has."""
    found = []
    for part in command.split("&&"):
        program, *words = shlex.split(part)
        if program == "make":
            found += [f"no target {word}" for word in words if word not in TARGETS]
        elif program != "entscale" or words[0] not in COMMANDS:
            found.append(f"no command {part.strip()}")
        else:
            found += option_faults(words)
        found += [f"no file {word}" for word in words if word.endswith(".yaml") and not (ROOT / word).is_file()]
    return found


def option_faults(words):
    try:
        COMMANDS[words[0]].make_context(words[0], words[1:])
    except cli.application.UsageError as error:
        return [error.format_message()]
    return []


def rows(text):
    """The lines of the table of items, as cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (Table|Figure) \d", line)]
    assert all(len(line) == 4 for line in lines)
    return lines


def headings(text):
    """How GitHub and mkdocs link to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def link_faults(text):
    """Links and pictures of the table and of the page that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)]*)\)", text):
        file, _, place = target.partition("#")
        path = DOCUMENT.with_name(file) if file else DOCUMENT
        if not path.is_file():
            found.append(f"no file {file}")
        elif place and place not in headings(text if path == DOCUMENT else path.read_text()):
            found.append(f"no heading {place}")
    return found


def test_every_table_and_figure_of_the_paper_is_a_command_that_is_there():
    text = DOCUMENT.read_text()
    named = [item for line in rows(text) for item in re.findall(r"(?:Table|Figure) \d+", line[0])]
    assert set(named) == ITEMS
    for items, published, built_in, _ in rows(text):
        for cell in (published, built_in):
            assert [fault for command in re.findall("`([^`]+)`", cell) for fault in faults(command)] == [], items
            assert "`" in cell
    assert {path.stem for path in PAPER.glob("*.yaml")} == set(re.findall(r"sweeps/paper/(\w+)\.yaml", text))


def test_the_results_are_there():
    assert link_faults(DOCUMENT.read_text()) == []


def test_what_is_wrong_in_the_table_would_be_seen():
    assert faults("entscale sweep sweeps/paper/figure2.yaml") == ["no file sweeps/paper/figure2.yaml"]
    assert faults("entscale sheet runs/a --size 64x64 && make figure") != []
    assert faults("entscale sheets runs/a") == ["no command entscale sheets runs/a"]
    assert faults("make figure") == ["no target figure"]
    assert link_faults("[a](none.md) [b](#nowhere) [c](method.md#nothing)") == [
        *("no file none.md", "no heading nowhere", "no heading nothing")
    ]


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_sweeps_name_the_commands_of_the_page_and_what_they_need(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    told = " && ".join(re.findall(r"^#   (entscale .*)$", header, re.MULTILINE))
    published = {command for line in rows(DOCUMENT.read_text()) for command in re.findall("`([^`]+)`", line[1])}
    assert told in published
    sweep = yaml.safe_load(path.read_text())["sweep"]
    assert ("parquet" in sweep["prompts"]) == ("(a Parquet file)" in header)
    assert ("fid" in sweep.get("metrics", ())) == ("Inception's weights" in header) == ("--reference" in told)


def test_sizes_are_in_proportion_and_methods_those_of_the_papers_sweeps():
    drawn = read_sweep(ROOT / "sweeps" / "figures.yaml").spec
    for sheet in SHEETS:
        paper = read_sweep(PAPER / f"{sheet.name}.yaml").spec
        assert [(4 * width, 4 * height) for width, height in sheet.sizes] == list(paper.sizes)
        assert set(sheet.sizes) <= set(drawn.sizes)
        # The built-in model has none beside it that enlarges.
        labels = {method.label for method in paper.methods if not isinstance(method, Upscale)}
        assert set(sheet.methods.split(",")) == labels
        assert labels <= {method.label for method in drawn.methods}
    entropy = read_sweep(ROOT / "sweeps" / "figures-entropy.yaml").spec
    paper = read_sweep(PAPER / "figure5_6.yaml").spec
    assert [(4 * width, 4 * height) for width, height in entropy.sizes] == list(paper.sizes)
    assert entropy.methods == paper.methods


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    sweep = yaml.safe_load((ROOT / "sweeps" / "figures.yaml").read_text())["sweep"]
    sizes = tuple(tuple(map(int, size.split("x"))) for size in sweep["sizes"])
    prompts = tuple(f"caption {number}" for number in range(6))
    SyntheticRun(name="figures", sizes=sizes, methods=tuple(sweep["methods"]), prompts=prompts, metrics=()).write(
        folder / "pictures"
    )
    SyntheticRun(name="figures-entropy", sizes=((64, 64), (96, 64), (128, 128))).write(folder / "entropy")
    return folder


def test_the_section_is_made_of_both_runs(runs, tmp_path, capsys):
    document = tmp_path / "figures.md"
    document.write_text(MARKS)
    main([str(document), str(runs / "pictures"), str(runs / "entropy")])
    text = document.read_text()
    assert text.startswith("# T\n\n<!-- measured: figures -->\n\nPictures: `entscale sweep sweeps/figures.yaml --out ")
    assert text.endswith("<!-- end of measured: figures -->\n\nBelow.\n")
    assert (
        "108 of 108 images drawn: 6 captions, seeds 0 to 0, ddim, 2 steps, guidance 5, weights `0123abcd0123`" in text
    )
    assert "commit `c0ffee`" in text
    for sheet in SHEETS:
        assert f"]({sheet.name}.webp)" in text
        with Image.open(tmp_path / f"{sheet.name}.webp") as image:
            assert (
                f"{sheet.sizes[0][0]}x{sheet.sizes[0][1]} {sheet.methods.split(',')[0]}".encode() in image.info["xmp"]
            )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("figures.md", "figure5.png", "figure6.png"),
        *(f"{sheet.name}.webp" for sheet in SHEETS),
    }
    assert "| original | 3 | 2 | 1.000 (1.000 to 1.000) |" in text
    commands = re.findall("^`(entscale sheet [^`]*)`$", text, re.MULTILINE)
    assert len(commands) == len(SHEETS)
    assert [fault for command in commands for fault in faults(command)] == []
    capsys.readouterr()


def test_a_document_without_marks_or_a_run_without_entropy_is_refused(runs, tmp_path, capsys):
    document = tmp_path / "figures.md"
    document.write_text("none")
    with pytest.raises(UserError, match="has no section 'figures'"):
        write_figures(document, runs / "pictures", runs / "entropy")
    document.write_text(MARKS)
    with pytest.raises(SystemExit) as stopped:
        main([str(document), str(runs / "pictures"), str(runs / "pictures")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "figures: run figures has no entropy: draw sweeps/figures-entropy.yaml\n"
    assert document.read_text() == MARKS
    assert [path.name for path in tmp_path.iterdir()] == ["figures.md"]
