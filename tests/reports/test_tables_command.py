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
