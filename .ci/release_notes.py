"""Takes a release's section out of the changelog, where the tag, what was built and the changelog tell one version.

`python .ci/release_notes.py v1.2.3 CHANGELOG.md dist build/release-notes.md`; where they do not, one line and exit 1.
"""

import re
import sys
from pathlib import Path


def section(changelog: str, version: str) -> str:
    """What stands below `## 1.2.3 - 2026-11-30`, up to the next heading of a version."""
    heading = re.compile(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", re.MULTILINE)
    found = heading.search(changelog)
    if found is None:
        sys.exit(f"the changelog has no heading '## {version} - YEAR-MONTH-DAY'")
    text = re.split(r"^## ", changelog[found.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    return text or sys.exit(f"the changelog says nothing of {version}")


def built_versions(dist: Path) -> set[str]:
    """Of the wheel and the sdist: NAME-VERSION-py3-none-any.whl, NAME-VERSION.tar.gz."""
    names = [path.name.removesuffix(".tar.gz") for pattern in ("*.whl", "*.tar.gz") for path in dist.glob(pattern)]
    return {name.split("-")[1] for name in names}


def main(tag: str, changelog: str, dist: str, notes: str) -> None:
    """Writes the notes of the release of `tag`, of which `dist` holds the wheel and the sdist."""
    version = tag.removeprefix("v")
    built = built_versions(Path(dist))
    if built != {version}:
        sys.exit(f"the tag is {tag}, and {dist} holds {', '.join(sorted(built)) or 'nothing'}")
    text = section(Path(changelog).read_text(), version)
    Path(notes).parent.mkdir(parents=True, exist_ok=True)
    Path(notes).write_text(f"{text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
