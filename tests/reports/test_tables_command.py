"""`entscale tables` by its options: what it writes where, and each mistake in one line."""

import pytest
from synthetic_run import SyntheticRun

from entscale_jax import cli
from entscale_jax.errors import UserError
from entscale_jax.reports.paper.tables_command import Choice, write_tables

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
