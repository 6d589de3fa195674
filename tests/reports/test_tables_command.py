"""`entscale tables` by its options: what it writes where, and each mistake in one line."""

import shlex

import pytest
from synthetic_run import SyntheticRun

from entscale_jax import cli
from entscale_jax.errors import UserError
from entscale_jax.reports.paper.paper_table import PaperTable
from entscale_jax.reports.paper.tables_command import Choice, write_tables

FAKE = PaperTable(
    metric="patch_fid", title="", digits=1, baseline="original", methods=(), sizes=(), entries={}, notes=()
)
MARKS = "<!-- measured: {0} -->\n<!-- end of measured: {0} -->\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With counts of objects and seconds, and no features."""
    return SyntheticRun(metrics=("objects",)).write(tmp_path_factory.mktemp("tables") / "syn")


@pytest.fixture
def entscale(monkeypatch, capsys):
    """Runs a command as a user does: its exit code, its output and its errors."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["entscale", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    return call


def test_a_table_that_is_left_out_is_not_measured(run):
    with pytest.raises(
        UserError, match="--measure scenes_patch_fid is left out by --only: add --only scenes_patch_fid"
    ):
        write_tables(run, Choice(measure=("scenes_patch_fid",), only=("seconds",)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reference", "/nonexistent"), "--reference /nonexistent is read by none of the tables of run "),
        (("--column", "foo"), "--column foo is of a Parquet file: give one as --reference"),
        (("--reference", "FOLDER", "--column", "foo"), "--column foo is of a Parquet file: give one as --reference"),
        (("--inception", "/nope"), "--inception /nope is read by patch_fid alone: give --measure patch_fid"),
        (("--inception", "/nope", "--measure", "scenes_patch_fid"), "--inception /nope is read by patch_fid alone"),
        (("--section", "bar"), "--section bar is of a document: give --document FILE"),
        (("--document", "FOLDER/page.md", "--out", "FOLDER/never.csv"), "--document and --out: the tables go to "),
        (("--document", "FOLDER/page.md", "--format", "csv"), "--format csv: a section of "),
    ],
)
def test_an_option_that_nothing_reads_is_told(run, entscale, tmp_path, options, says):
    page = tmp_path / "page.md"
    page.write_text(MARKS.format("tables"))
    code, out, err = entscale("tables", run, *(word.replace("FOLDER", str(tmp_path)) for word in options))
    assert (code, out) == (2, "")
    assert err.startswith(f"entscale: {says}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [page]
    assert page.read_text() == MARKS.format("tables")


def test_a_place_that_can_not_be_written_is_told(run, entscale, tmp_path):
    for place, says in ((tmp_path / "no" / "x.md", "No such file or directory"), (tmp_path, "Is a directory")):
        assert entscale("tables", run, "--out", place) == (2, "", f"entscale: {place} can't be written: {says}\n")
    assert entscale("tables", run, "--out", tmp_path / "x.md") == (0, "", "")
    assert (tmp_path / "x.md").read_text() == entscale("tables", run)[1]


def test_the_command_that_a_document_tells_writes_it_again(run, entscale, tmp_path):
    page = tmp_path / "a page.md"
    page.write_text(MARKS.format("cost"))
    options = ("--only", "objects_exact", "--only", "seconds", "--document", page, "--section", "cost")
    assert entscale("tables", run, *options)[0] == 0
    text = page.read_text()
    assert "Seconds an image" in text
    command = shlex.split(text.split("`")[1])
    assert command == ["entscale", "tables", str(run), *map(str, options)]
    page.write_text(MARKS.format("cost"))
    assert entscale(*command[1:]) == (0, "", "")
    assert page.read_text() == text


def test_the_command_that_a_document_tells_has_every_option(monkeypatch, entscale, run, tmp_path):
    monkeypatch.setattr("entscale_jax.reports.paper.tables_command.make_tables", lambda *some, **more: [FAKE])
    monkeypatch.setattr("entscale_jax.sweep.memory.record_memory", lambda *some: None)
    page = tmp_path / "page.md"
    page.write_text(MARKS.format("tables"))
    options = ["--reference", "real.parquet", "--column", "jpg", "--measure", "patch_fid", "--inception", "weights.pth"]
    options += ["--document", str(page), "--memory"]
    assert entscale("tables", run, *options) == (0, "", "")
    assert page.read_text().split("`")[1].split() == ["entscale", "tables", str(run), *options]
