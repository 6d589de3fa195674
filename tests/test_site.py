"""The site of docs/: what breaks its build, which files of the repository come into it, what a browser says of it."""

import base64
import functools
import html
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import yaml
from browser import chromium, needs_chromium
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parent.parent
INDEX = "# Start\n\n[other](other.md#part)\n"
OTHER = "# Other\n\n## Part\n\n[code](../tool.py), [results](../results/table.md#figures), [sweeps](../sweeps)\n"


class _Loader(yaml.SafeLoader):
    """Of a file that may name Python objects, which are left out."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


@pytest.fixture
def site(tmp_path):
    """A small repository with the settings of this one, but for theme and API: builds it, and says whether it broke."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    settings |= {"theme": {"name": "mkdocs"}, "plugins": [], "extra_css": [], "extra": {}}
    settings["nav"] = ["index.md", "other.md", "repository/results/table.md"]
    for folder in ("docs", "results", "sweeps"):
        (tmp_path / folder).mkdir()
    for hook in (ROOT / "docs").glob("*.py"):
        shutil.copy(hook, tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text(INDEX)
    (tmp_path / "docs" / "other.md").write_text(OTHER)
    (tmp_path / "tool.py").write_text("print()\n")
    (tmp_path / "sweeps" / "one.yaml").write_text("sweep: {}\n")
    (tmp_path / "results" / "table.md").write_text("# Results\n\n## Figures\n\n[back](../docs/other.md#part)\n")

    def make(**changes) -> bool:
        file = tmp_path / "mkdocs.yml"
        file.write_text(yaml.safe_dump(settings | changes))
        try:
            build(load_config(str(file), strict=True))
        except Abort:
            return False
        return True

    make.folder = tmp_path
    return make


def test_linked_files_of_the_repository_come_into_the_site(site):
    assert site()
    built = site.folder / "site"
    other = (built / "other.html").read_text()
    for link in ("repository/tool.py", "repository/results/table.html#figures", "repository/sweeps.html"):
        assert f'href="{link}"' in other
        assert (built / link.split("#")[0]).exists()
    assert 'href="../../other.html#part"' in (built / "repository/results/table.html").read_text()
    assert 'href="sweeps/one.yaml"' in (built / "repository/sweeps.html").read_text()
    assert (built / "repository/sweeps/one.yaml").read_bytes() == (site.folder / "sweeps/one.yaml").read_bytes()
    assert not list(built.rglob("site_*.py"))


def test_notebooks_become_pages_with_their_output(site):
    dot = (ROOT / "docs" / "pairs.png").read_bytes()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mone\x1b[0m\n", "two\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(dot).decode(), "text/plain": ["<Image>"]},
        },
        {"output_type": "execute_result", "data": {"text/plain": "42"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A first picture\n", "\n", "see [results](../results/table.md)"]},
        {"cell_type": "code", "source": "print('[code](of it)')", "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    (site.folder / "notebooks").mkdir()
    (site.folder / "notebooks" / "first.ipynb").write_text(json.dumps({"cells": cells}))
    (site.folder / "docs" / "index.md").write_text(f"{INDEX}\n<!-- list of notebooks -->\n")
    assert site()
    built = site.folder / "site"
    assert '<a href="repository/notebooks/first.html">A first picture</a>' in (built / "index.html").read_text()
    page = (built / "repository/notebooks/first.html").read_text()
    assert 'href="../results/table.html"' in page
    assert "[code](of it)" in html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "one\ntwo" in page
    assert "42" in page
    assert 'src="first-1.png"' in page
    assert (built / "repository/notebooks/first-1.png").read_bytes() == dot
    cells[0]["source"].append("[gone](gone.md)")
    (site.folder / "notebooks" / "first.ipynb").write_text(json.dumps({"cells": cells}))
    assert not site()


@pytest.mark.parametrize(
    "broken",
    [
        "[a page](none.md)",
        "[an anchor](other.md#none)",
        "[a file of the repository](../none.py)",
        "[a folder of the repository](../none)",
        "[an anchor there](../results/table.md#none)",
        "[of this machine](/tool.py)",
        "![a picture](none.png)",
    ],
)
def test_a_broken_link_breaks_the_build(site, broken):
    (site.folder / "docs" / "index.md").write_text(f"{INDEX}\n{broken}\n")
    assert not site()
    # In code it is none.
    (site.folder / "docs" / "index.md").write_text(f"{INDEX}\n`{broken}`\n\n```\n{broken}\n```\n")
    assert site()


def test_a_link_of_a_linked_file_breaks_the_build(site):
    with (site.folder / "results" / "table.md").open("a") as file:
        file.write("\n[gone](gone.json)\n")
    assert not site()


def test_a_page_that_no_menu_has_breaks_the_build(site):
    (site.folder / "docs" / "third.md").write_text("# Third\n")
    assert not site()


def test_a_name_that_is_not_there_breaks_the_build(site):
    (site.folder / "small.py").write_text('"""A module."""\n\n\nclass Thing:\n    """Something that is there."""\n')
    plugins = [{"mkdocstrings": {"handlers": {"python": {"paths": [str(site.folder)]}}}}]
    index = site.folder / "docs" / "index.md"
    index.write_text(f"{INDEX}\n::: small.Thing\n")
    assert site(plugins=plugins)
    assert "Something that is there" in (site.folder / "site" / "index.html").read_text()
    index.write_text(f"{INDEX}\n::: small.Nothing\n")
    assert not site(plugins=plugins)


def test_the_gate_builds_the_site_and_warnings_break_it():
    makefile = (ROOT / "Makefile").read_text()
    assert "mkdocs build --strict" in makefile.split("\ndocs:")[1].split("\n\n")[0]
    assert "$(MAKE) --no-print-directory docs" in makefile.split("\ncheck:")[1].split("\n\n")[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The address of the site itself, as it is served."""
    folder = tmp_path_factory.mktemp("built")
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.mark.full
@needs_chromium
@pytest.mark.parametrize("page", ["index", "howto-study", "scenes", "measured", "api/pipeline", "api/attention"])
def test_pages_fit_a_desk_and_a_phone_and_ask_for_nothing_elsewhere(built, page):
    with chromium() as browser:
        for width, height, phone, dark in ((1280, 900, False, False), (390, 844, True, True)):
            browser.screen(width, height, phone=phone, dark=dark)
            browser.open(f"{built}/{page}.html")
            browser.listen(0.2)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
            assert browser.said == []
            assert [url for url in browser.requests if not url.startswith(built)] == []
