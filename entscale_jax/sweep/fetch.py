"""Brings a run home from a URI: into a folder like that of a run on this machine, and on from where it was stopped."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .storage.files import Entry, PatientFiles
from .storage.places import is_uri, open_files

_FOLDERS = ("images", "rows", "entropy", "features", "samples", "events", "")
"""In the order they are brought: a row after its image, a part after its entropy, the tables and the spec last."""
_NEVER_CHANGE = ("images/", "samples/", "entropy/", "features/", "events/")
_FILES_AT_ONCE = 16
_PASSES = 3


@dataclass
class Fetched:
    """Files that were brought, and those that were there already."""

    brought: int = 0
    kept: int = 0


def fetch_run(
    place: str, to: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, Fetched]:
    """Copies the run at a URI into the folder `to`, by default `runs/` and the URI's last name.

    What was brought before is not brought again. Returns the folder. Raises UserError where there is no run or the
    folder is another's.
    """
    if not is_uri(place):
        raise UserError(f"{place} is on this machine already: fetch takes s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    there = open_files(place)
    folder = to if to is not None else Path("runs") / there.place.rsplit("/", 1)[-1]
    home = open_files(folder)
    _check(there, home)
    fetched = Fetched()
    for _ in range(_PASSES):
        if not _pass(there, home, folder, fetched, say):
            break
    return folder, fetched


def _check(there: PatientFiles, home: PatientFiles) -> None:
    spec = there.read("spec.yaml")
    if spec is None:
        raise UserError(f"{there.place} holds no spec.yaml, so it is no run")
    mine = home.read("spec.yaml")
    if mine is not None and mine != spec:
        raise UserError(f"{home.place} holds another sweep than {there.place}: give another folder with --to")
    folder = Path(home.place)
    strangers = (
        [entry.name for entry in folder.iterdir() if entry.name not in _FOLDERS]
        if mine is None and folder.is_dir()
        else []
    )
    if strangers:
        raise UserError(f"{home.place} holds {strangers[0]!r} and no run: give an empty or new folder with --to")


def _pass(there: PatientFiles, home: PatientFiles, folder: Path, fetched: Fetched, say: Callable[[str], None]) -> bool:
    """Brings what is listed and not here; whether something vanished meanwhile, into a part, as the run goes on."""
    vanished = False
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        have = {entry.name: entry for entry in home.list(name)}
        listed = [entry for entry in there.list(name) if _is_safe(entry.name)]
        missing = [entry for entry in listed if not _is_here(entry, have.get(entry.name))]
        fetched.kept += len(listed) - len(missing)
        if missing:
            say(f"{name or 'tables'}: {len(missing)} of {len(listed)} files to bring")
        brought = _bring(there, folder, missing)
        fetched.brought += brought
        vanished |= brought < len(missing)
    return vanished


def _bring(there: PatientFiles, folder: Path, entries: Sequence[Entry]) -> int:
    def bring(entry: Entry) -> bool:
        target = folder / entry.name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            if not there.download(entry.name, temporary):
                return False
            os.utime(temporary, (entry.modified, entry.modified))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return sum(pool.map(bring, entries))


def _is_here(there: Entry, here: Entry | None) -> bool:
    """Whether a file was brought before; what has been changed here since is kept, as a run may go on here."""
    if here is None:
        return False
    if there.name.startswith(_NEVER_CHANGE):
        return here.size == there.size
    # A file that was brought has the time of the one there, to the second in some stores.
    newer = here.modified - there.modified
    return newer > 1e-3 or (newer > -1e-3 and here.size == there.size)


def _is_safe(name: str) -> bool:
    """Whether a listed name stays inside the folder."""
    parts = name.split("/")
    return len(parts) <= 2 and not any(
        part in ("", ".", "..") or part.startswith(".") or "\\" in part for part in parts
    )
