"""The picture of pairs: as many panels as sizes and methods ask for, and one message where there is no run."""

import numpy as np
import pytest
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports import write_picture


def test_it_grows_with_the_captions(tmp_path):
    run = SyntheticRun().write(tmp_path / "run")
    one, two = (
        np.asarray(Image.open(write_picture(run, tmp_path / f"{count}.png", captions=count))) for count in (1, 2)
    )
    assert two.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert one[..., :3].std() > 5


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        write_picture(tmp_path / "missing", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    run = SyntheticRun().write(tmp_path / "run")
    with pytest.raises(UserError, match="can't be written"):
        write_picture(run, tmp_path / "no" / "folder" / "out.png")
