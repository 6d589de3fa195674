"""A hook of MkDocs: files of the repository that pages link to, outside of docs/, become part of the site.

So the same relative links lead to the same files on a code host and here. What they name has to be there: MkDocs warns
of the others as of any broken link. Markdown and notebooks become pages, and so do folders, as lists of their files.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from site_notebooks import heading, to_markdown

OUTSIDE = "repository"
"""Where files from outside of docs/ are in the site."""
NOTEBOOKS = "<!-- list of notebooks -->"
"""What a page has where the notebooks are to be listed."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to, and what those link to in turn."""
    root, docs = _root(config), Path(config.docs_dir).name
    in_nav = set(re.findall(rf"{OUTSIDE}/[\w./-]+", str(config.nav)))
    waiting = [f"{docs}/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [name.removeprefix(f"{OUTSIDE}/") for name in in_nav]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("..") or not (root / path).exists():
            continue
        seen.add(path)
        level = InclusionLevel.INCLUDED if f"{OUTSIDE}/{path}" in in_nav else InclusionLevel.NOT_IN_NAV
        if not path.startswith(f"{docs}/"):
            for uri, content in _contents(root, path):
                given = {"abs_src_path": content} if isinstance(content, str) else {"content": content}
                files.append(File.generated(config, uri, inclusion=level, **given))
        waiting += _linked(root, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to repository files into links to their places in the site, where they are part of it."""
    root, docs, here = _root(config), Path(config.docs_dir).name, page.file.src_uri
    path = here.removeprefix(f"{OUTSIDE}/") if here.startswith(f"{OUTSIDE}/") else f"{docs}/{here}"

    def moved(link: re.Match[str]) -> str:
        uri = _uri(root, docs, _target(path, link["path"]))
        if files.get_file_from_path(uri) is None:
            return link[0]
        return posixpath.relpath(uri, posixpath.dirname(here) or ".") + (link["anchor"] or "")

    kept: list[str] = []
    # Code shows links as they are written.
    text = _CODE.sub(lambda code: kept.append(code[0]) or f"\0{len(kept) - 1}\0", _with_notebooks(root, markdown))
    return re.sub("\0(\\d+)\0", lambda mark: kept[int(mark[1])], _LINK.sub(moved, text))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent


def _with_notebooks(root: Path, markdown: str) -> str:
    files = sorted((root / "notebooks").glob("*.ipynb")) if NOTEBOOKS in markdown else []
    lines = [f"- [{heading(file.read_text(encoding='utf-8'))}](../notebooks/{file.name})" for file in files]
    return markdown.replace(NOTEBOOKS, "\n".join(lines))


def _contents(root: Path, path: str) -> Iterator[tuple[str, str | bytes]]:
    """What a file or folder of the repository is in the site: addresses, each with bytes or the path of a file."""
    file, uri = root / path, _uri(root, "", path)
    if file.is_dir():
        lines = [f"# {path}", "", *(f"- [{name}]({file.name}/{name})" for name in _names(file))]
        yield uri, "\n".join(lines).encode()
    elif file.suffix == ".ipynb":
        text, pictures = to_markdown(file.read_text(encoding="utf-8"), file.stem)
        yield uri, text.encode()
        yield from ((f"{posixpath.dirname(uri)}/{name}", picture) for name, picture in pictures.items())
    else:
        yield uri, os.fspath(file)


def _linked(root: Path, path: str) -> list[str]:
    """The paths that a page of the repository links to."""
    file = root / path
    if file.is_dir():
        return [f"{path}/{name}" for name in _names(file)]
    if file.suffix not in (".md", ".ipynb"):
        return []
    text = file.read_text(encoding="utf-8")
    text = to_markdown(text, "")[0] if file.suffix == ".ipynb" else _with_notebooks(root, text)
    return [_target(path, link["path"]) for link in _LINK.finditer(_CODE.sub("", text))]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def _target(path: str, link: str) -> str:
    """The path in the repository that a link on the page at `path` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(link)))


def _uri(root: Path, docs: str, path: str) -> str:
    """Where the file at a path of the repository is in the site's sources."""
    if docs and path.startswith(f"{docs}/"):
        return path.removeprefix(f"{docs}/")
    if (root / path).is_dir():
        return f"{OUTSIDE}/{path}.md"
    return f"{OUTSIDE}/{path.removesuffix('.ipynb')}.md" if path.endswith(".ipynb") else f"{OUTSIDE}/{path}"
