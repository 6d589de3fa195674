"""A hook of MkDocs: files of the repository that pages link to, outside of docs/, become part of the site.

So the same relative links lead to the same files on a code host and here. What they name has to be there: MkDocs warns
of the others as of any broken link. Markdown becomes pages, and so do folders, as lists of their files.
"""

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

OUTSIDE = "repository"
"""Where files from outside of docs/ are in the site."""
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
        uri = _uri(root, docs, path)
        if uri.startswith(f"{OUTSIDE}/"):
            files.append(_added(root, path, uri, config, listed=uri in in_nav))
        if (root / path).is_dir():
            waiting += [f"{path}/{name}" for name in _names(root / path)]
        elif path.endswith(".md"):
            waiting += [_target(path, link) for link in _links((root / path).read_text(encoding="utf-8"))]
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
    text = _CODE.sub(lambda code: kept.append(code[0]) or f"\0{len(kept) - 1}\0", markdown)
    return re.sub("\0(\\d+)\0", lambda mark: kept[int(mark[1])], _LINK.sub(moved, text))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent


def _links(markdown: str) -> list[str]:
    return [link["path"] for link in _LINK.finditer(_CODE.sub("", markdown))]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def _target(path: str, link: str) -> str:
    """The path in the repository that a link on the page at `path` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(link)))


def _uri(root: Path, docs: str, path: str) -> str:
    """Where the file at a path of the repository is in the site's sources."""
    if path.startswith(f"{docs}/"):
        return path.removeprefix(f"{docs}/")
    return f"{OUTSIDE}/{path}.md" if (root / path).is_dir() else f"{OUTSIDE}/{path}"


def _added(root: Path, path: str, uri: str, config: MkDocsConfig, *, listed: bool) -> File:
    level = InclusionLevel.INCLUDED if listed else InclusionLevel.NOT_IN_NAV
    if not (root / path).is_dir():
        return File.generated(config, uri, abs_src_path=os.fspath(root / path), inclusion=level)
    lines = [f"# {path}", "", *(f"- [{name}]({Path(path).name}/{name})" for name in _names(root / path))]
    return File.generated(config, uri, content="\n".join(lines), inclusion=level)
