"""The Python of README.md and docs/ runs, and the commands there are commands, with the options that they are given.

By default a small untrained model stands in the place of `scenes`; `make test-full` runs the same with `scenes` itself.
Pieces of docs/adapters.md, which need models of several frameworks, run in tests/adapters and tests/legacy.
"""

import importlib.util
import re
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import doc_snippets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from doc_snippets import ROOT
from PIL import Image
from tiny_model import tiny_recipe, write_tiny_model

from entscale_jax import TextToImage, cli
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.weights import folder

NOT_RUN: dict[str, list[str]] = {}
"""Page -> what its pieces need that are not run, in their order."""
ELSEWHERE = {"docs/adapters.md"}
PAGES = {page.relative_to(ROOT).as_posix(): page for page in doc_snippets.pages()}
WITH_PYTHON = [name for name, page in PAGES.items() if doc_snippets.blocks(page, "python") and name not in ELSEWHERE]
MODELS = [pytest.param("smallest", id="smallest"), pytest.param("scenes", id="scenes", marks=pytest.mark.full)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own, with what pages take for granted."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save("in.png")
    return tmp_path


@pytest.fixture(scope="session")
def smallest(tmp_path_factory):
    """A model of one level, as `scenes` has one, which compiles in the least time: 4 pixels to a latent cell."""
    recipe = tiny_recipe()
    one_level = {"mid_block_type": None, "block_out_channels": (16,), "attention_head_dim": 2}
    one_level |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    recipe = replace(recipe, unet=replace(recipe.unet, transformer_layers_per_block=1, **one_level))
    return write_tiny_model(tmp_path_factory.mktemp("smallest"), recipe=recipe)


@pytest.fixture
def use(smallest, monkeypatch):
    """Lets `scenes` be that model, or what it is."""

    def choose(model: str) -> None:
        if model == "smallest":
            monkeypatch.setattr(folder, "_BUILT_IN_FOLDER", smallest)

    return choose


@pytest.mark.parametrize("name", WITH_PYTHON)
@pytest.mark.parametrize("model", MODELS)
def test_the_python_of_a_page_runs(name, model, use, place, smallest):
    use(model)
    given = {"model_or_pipeline": TextToImage.from_pretrained(smallest)} if name == "README.md" else {}
    if name == "docs/models.md":
        save_variant(smallest, place / "org" / "name")
    if name == "docs/howto-study.md":
        save_run(place / "runs" / "first")
    scope: dict[str, Any] = doc_snippets.run_page(PAGES[name], **given)
    CHECKS.get(name, lambda scope: None)(scope)


def check_readme(scope):
    assert scope["out"].images.shape == (1, 128, 192, 3)
    assert len(scope["report"].layers) > 0


def check_checkpoint(scope):
    assert scope["out"].images.shape == (4, 64, 192, 3)
    assert scope["changed"] > 0
    assert {file.name for file in Path().glob("banner-*.png")} == {"banner-0.png", "banner-1.png"}


def check_codebase(scope):
    """Tokens and multipliers are those that the comments say, of the paper at 224x224 (Eq. 7)."""
    assert (scope["train"], scope["now"]) == ((4096, 1024, 256, 64), (784, 196, 49, 16))
    assert [round(8 * scale, 3) for scale in scope["scales"]] == [0.895, 0.873, 0.838, 0.816]
    assert [row.tokens for row in scope["report"].at(8, 12)] == [96]
    assert np.isfinite(scope["pixels"]).all()


CHECKS = {
    "README.md": check_readme,
    "docs/howto-checkpoint.md": check_checkpoint,
    "docs/howto-codebase.md": check_codebase,
}


def save_variant(model: Path, out: Path) -> None:
    """A copy with the weights of variant fp16 alone."""
    shutil.copytree(model, out)
    for file in out.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))


def save_run(run: Path) -> None:
    """The table of a run of the page's sweep, with columns as `test_run_sweep.py` holds them."""
    rows = [
        {"width": width, "method": method, "objects_exact": False}
        for width in (128, 192)
        for method in ("original", "entropy", "resize")
    ]
    run.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), run / "samples.parquet")


def test_the_check_sees_python_that_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nimport entscale_jax as es\n```\n\n```python\nes.no_such_name\n```\n")
    with pytest.raises(AttributeError, match="no_such_name") as raised:
        doc_snippets.run_page(page)
    assert raised.traceback[-1].lineno == 7  # from 0: of the page, not of the piece
    page.write_text("<!-- not run: needs more -->\n```python\n1 / 0\n```\n")
    assert doc_snippets.blocks(page)[0].why_not == "needs more"
    doc_snippets.run_page(page)


def test_what_is_not_run_says_so_and_is_known():
    found = {
        name: [block.why_not for block in doc_snippets.blocks(page) if block.why_not] for name, page in PAGES.items()
    }
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


FRAGMENTS = [
    (name, line)
    for name, page in PAGES.items()
    for block in doc_snippets.blocks(page, "yaml")
    for line in block.text.splitlines()
    if re.match(r"[a-z_]+: .", line)
]
"""Lines of YAML that stand for themselves: a key of a sweep."""


def read_fragment(line: str) -> SweepSpec:
    """A sweep with that key."""
    whole = {"name": "page", "model": "scenes", "sizes": ["64x64"], "methods": ["entropy"], "prompts": ["a red circle"]}
    return SweepSpec.model_validate(whole | yaml.safe_load(line))


@pytest.mark.parametrize(("name", "line"), FRAGMENTS)
def test_keys_of_a_sweep_are_keys(name, line):
    assert read_fragment(line)


def test_keys_are_found_and_another_is_refused():
    assert {name for name, _ in FRAGMENTS} >= {"docs/baselines.md", "docs/faults.md"}
    with pytest.raises(ValueError, match="method"):
        read_fragment("methods: [entropi]")
    with pytest.raises(ValueError, match="worker"):
        read_fragment("worker: 4")


COMMANDS = [(name, line, words) for name, page in PAGES.items() for line, words in doc_snippets.commands(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OF_OTHERS = {"ray", "git", "export", "cat", "cd", "gcloud", "aws", "kubectl", "pip"}


def problem(words: list[str]) -> str | None:
    """What is wrong with a command of this project; None of one that could be run, or that is another's."""
    match words:
        case ["entscale", *arguments]:
            return problem_of_arguments(typer.main.get_command(cli.app), arguments)
        case ["make", *arguments]:
            known = [each in TARGETS or each.split("=")[0] in VARIABLES for each in arguments]
            return None if all(known) else f"make has no {arguments}"
        case ["python", "-m", module, *_] if module.startswith("entscale_jax"):
            return None if importlib.util.find_spec(module) else f"no module {module}"
        case ["python", file, *_] if file.endswith(".py"):
            return None if (ROOT / file).exists() else f"no file {file}"
        case ["pip", "install", *names]:
            extras = {extra for name in names for part in re.findall(r"\[(.*)\]", name) for extra in part.split(",")}
            return None if extras <= set(EXTRAS) else f"no extras {extras - set(EXTRAS)}"
    return None


def problem_of_arguments(command: Any, arguments: list[str]) -> str | None:
    """What the parser says of them; nothing is run."""
    while hasattr(command, "commands"):
        name, *arguments = arguments
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    try:
        command.make_context(command.name, list(arguments))
    except Exception as error:  # of click, which typer may have a copy of
        return str(error) or repr(error)
    return None


@pytest.mark.parametrize("name", sorted({name for name, _, _ in COMMANDS}))
def test_the_commands_of_a_page_are_commands(name):
    wrong = {line: said for page, line, words in COMMANDS if page == name and (said := problem(words))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["entscale", "generat", "a red circle"], "no command generat"),
        (["entscale", "generate", "a red circle", "--height", "64"], "--height"),
        (["entscale", "sweep"], "FILE"),
        (["entscale", "rate", "runs/aspect", "--pairs", "many"], "integer"),
        (["make", "sweeps"], "no .*sweeps"),
        (["python", "-m", "entscale_jax.sweeps"], "no module"),
        (["python", "benchmarks/none.py"], "no file"),
        (["pip", "install", "entscale-jax[sweeps]"], "no extras"),
    ],
)
def test_the_check_sees_a_command_that_is_none(words, said):
    assert re.search(said, str(problem(words)), re.IGNORECASE)


def test_commands_are_found():
    found = {(name, words[0], words[1]) for name, _, words in COMMANDS if words[0] in ("entscale", "make")}
    assert {("README.md", "entscale", "generate"), ("README.md", "make", "sweep")} <= found
    assert {("docs/ways-in.md", "entscale", "submit"), ("docs/clusters.md", "entscale", "submit")} <= found
    # The words of a line that chains two, of one with an optional part, and of one that is broken.
    assert ("docs/parity.md", "entscale", "parity") in found
    assert ["entscale", "export", "OUT", "FOLDER"] in [words for _, _, words in COMMANDS]


def entscale(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """The exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def save_sweep(place: Path) -> None:
    """The files that commands of docs/howto-study.md and of the README read; drawn in fewer steps than there."""
    (sweep,) = doc_snippets.blocks(PAGES["docs/howto-study.md"], "yaml")
    assert "steps: 25" in sweep.text
    (place / "first.yaml").write_text(sweep.text.replace("steps: 25", "steps: 2"))
    shutil.copytree(ROOT / "sweeps", place / "sweeps")


def test_commands_that_only_look_run(place, use, smallest, monkeypatch, capsys):
    use("smallest")
    save_sweep(place)
    looks = [[*words] for _, _, words in COMMANDS if words[:2] == ["entscale", "inspect"] or "--dry-run" in words]
    looks = [
        [str(smallest) if word == "FOLDER" else word for word in words] for words in looks if "big.yaml" not in words
    ]
    assert len(looks) >= 4
    for words in looks:
        assert entscale(monkeypatch, words) == 0, words
    capsys.readouterr()
    assert entscale(monkeypatch, ["entscale", "sweep", "second.yaml", "--dry-run"]) == 2


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Of JAX, where a test before this one has started it.
@pytest.mark.parametrize("name", ["docs/howto-checkpoint.md", "docs/howto-study.md"])
def test_the_commands_of_a_how_to_run_in_their_order(name, place, monkeypatch):
    save_sweep(place)
    ran = []
    for page, line, words in COMMANDS:
        # The page for raters serves until it is stopped, and is driven in tests/reports.
        if page == name and words[0] == "entscale" and words[1] != "rate":
            assert entscale(monkeypatch, words) == 0, line
            ran.append(words[1])
    assert len(ran) >= 5
    if name == "docs/howto-study.md":
        doc_snippets.run_page(PAGES[name])
