"""Every notebook runs as it stands, in a folder of its own, and tells what the committed one tells."""

import base64
import io
import os
import re
import runpy
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))
NOTEBOOKS = {path.stem: path for path in SCRIPT["paths"]()}
SECONDS = 400
"""Of one notebook, which takes under 45 s on two idle cores; tests run beside others."""
MOST_BYTES = 400_000
NUMBER = r"[-+]?\d+(?:\.\d+)?"
# Written apart, so that this file names none either.
MACHINE_PATH = re.compile(
    r"(?<![\w.+/=])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "t" + "mp", "us" + "r")) + r")\b"
)
IN_TURN = [pytest.param(name, marks=[pytest.mark.ray] if name == "sweep" else []) for name in NOTEBOOKS]


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def outputs(notebook) -> Iterator[tuple[int, nbformat.NotebookNode]]:
    """The outputs with the numbers of their cells."""
    for number, cell in enumerate(notebook.cells):
        yield from ((number, output) for output in cell.get("outputs", []))


def pictures(notebook):
    return [
        base64.b64decode(output.data["image/png"])
        for _, output in outputs(notebook)
        if "image/png" in output.get("data", {})
    ]


def complaints(notebook):
    """What no reader should see: errors, and what is written to the stream of errors."""
    return [
        output
        for _, output in outputs(notebook)
        if output.output_type == "error" or (output.output_type == "stream" and output.name == "stderr")
    ]


def texts(notebook, *, tagged=None):
    """Number of a cell -> what it says, of cells with this tag; None is those that say the same on every machine."""
    found = {}
    for number, output in outputs(notebook):
        if notebook.cells[number].metadata.get("tags", [None]) == [tagged]:
            said = output.get("text") or output.get("data", {}).get("text/plain", "")
            found[number] = found.get(number, "") + said
    return found


def words_and_numbers(said):
    """A text with a sign for each number, and the numbers."""
    return re.sub(rf"\s*{NUMBER}", " #", said), [float(number) for number in re.findall(NUMBER, said)]


def say_the_same(measured, before):
    """Whether two texts differ in numbers alone, and in those by no more than other optimisations make of them."""
    (words, numbers), (old_words, old_numbers) = map(words_and_numbers, (measured, before))
    return words == old_words and numbers == pytest.approx(old_numbers, rel=0.2, abs=0.03)


def without_pictures(notebook):
    """The JSON of a notebook, less the bytes of pictures, in which any letters may come together."""
    bare = nbformat.from_dict(notebook)
    for _, output in outputs(bare):
        for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
            del output.data[kind]
    return nbformat.writes(bare)


def leftovers(mark):
    """Processes that were started with a mark in their environment and are there still."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ENTSCALE_NOTEBOOK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def leftovers_in_the_end(mark, most):
    """The same, once there are no more than so many: a kernel is a while in ending."""
    deadline = time.monotonic() + 60
    while len(found := leftovers(mark)) > most and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def test_there_are_those_that_the_docs_name():
    assert set(NOTEBOOKS) == {"quickstart", "entropy", "your_model", "sweep"}


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", IN_TURN)
def test_a_notebook_runs_and_says_what_it_said(name, tmp_path):
    mark = uuid.uuid4().hex
    own = {"ENTSCALE_NOTEBOOK": mark, "IPYTHONDIR": str(tmp_path / "ipython"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "here").mkdir()
    executed = SCRIPT["execute"](NOTEBOOKS[name], tmp_path / "here", own)
    assert complaints(executed) == []
    assert texts(executed) == texts(read(name))
    measured, before = (texts(notebook, tagged="measured") for notebook in (executed, read(name)))
    assert measured.keys() == before.keys()
    assert all(say_the_same(measured[cell], before[cell]) for cell in measured)
    assert len(pictures(executed)) == len(pictures(read(name)))
    assert leftovers_in_the_end(mark, 0) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_committed_notebook_has_its_outputs(name):
    notebook = read(name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert complaints(notebook) == []
    assert texts(notebook)
    assert pictures(notebook)
    for picture in pictures(notebook):
        with Image.open(io.BytesIO(picture)) as image:
            assert np.asarray(image).std() > 5, "one plain colour"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_committed_notebook_tells_nothing_of_a_machine(name):
    notebook = read(name)
    assert not MACHINE_PATH.search(without_pictures(notebook))
    assert notebook.metadata == SCRIPT["KERNEL"] | SCRIPT["LANGUAGE"]
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    assert NOTEBOOKS[name].stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_says_what_to_install(name):
    (named,) = re.findall(r"pip install 'entscale-jax\[([a-z,]+)\]' jupyter", read(name).cells[0].source)
    assert set(named.split(",")) <= {"sweep", "report", "parity"}


def written(tmp_path, *cells):
    path = tmp_path / "planted.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells]), path)
    return path


def test_the_checks_see_what_is_wrong(tmp_path):
    """The controls of the checks above: a path, a word to the stream of errors, another text."""
    path = written(tmp_path, "import os, sys; print(os.getcwd())", "print('careful', file=sys.stderr)")
    executed = SCRIPT["execute"](path, tmp_path)
    assert MACHINE_PATH.search(without_pictures(executed).replace(str(tmp_path), os.sep + "t" + "mp/x"))
    assert [output.text for output in complaints(executed)] == ["careful\n"]
    assert texts(executed) != texts(nbformat.read(path, as_version=4))
    assert pictures(executed) == []
    assert say_the_same("a  +0.62 15%", "a +0.61  14%")
    assert not say_the_same("a +0.62 15%", "a +0.62 25%")
    assert not say_the_same("a +0.62 15%", "b +0.62 15%")


def test_a_process_that_stays_is_found(tmp_path):
    mark = uuid.uuid4().hex
    command = "[sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True"
    path = written(tmp_path, f"import subprocess, sys; process = subprocess.Popen({command})")
    SCRIPT["execute"](path, tmp_path, {"ENTSCALE_NOTEBOOK": mark})
    (process,) = leftovers_in_the_end(mark, 1)
    assert process.cmdline()[-1].endswith("time.sleep(600)")
    process.kill()


def test_a_cell_that_fails_is_an_error(tmp_path):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        SCRIPT["execute"](written(tmp_path, "1 / 0"), tmp_path)


def test_cleaning_keeps_pixels_and_drops_notes(tmp_path):
    plot = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
    executed = SCRIPT["execute"](written(tmp_path, plot), tmp_path)
    executed.cells[0].metadata |= {"tags": ["varies"], "execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}}
    (before,) = pictures(executed)
    (after,) = pictures(SCRIPT["clean"](executed))
    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        assert "Software" in old.info
        assert new.info == {}
        assert np.array_equal(np.asarray(old.convert("RGB")), np.asarray(new.convert("RGB")))
    assert executed.cells[0].metadata == {"tags": ["varies"]}
