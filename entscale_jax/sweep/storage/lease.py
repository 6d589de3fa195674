"""One driver a run: by a lock of the file system where there is one, else by a lease that its holder keeps renewing.

Leases are numbered files, `locks/N.json`. Making one that is not there yet is all that a store has to do at once: of
two drivers that want the same number one wins, the holder alone rewrites it, and the highest number counts. No clock of
another machine is asked: a lease is over where it says so, where its process is gone from this machine, or where it
did not change while it was watched for LEASE_SECONDS.
"""

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from ...errors import UserError
from .files import PatientFiles

LEASE_SECONDS = 60.0
"""How long a lease that is not renewed is still believed in."""
RENEW_SECONDS = 10.0
WATCH_SECONDS = 1.0
_FOLDER = "locks"
_HELD: set[str] = set()
"""The leases that this process holds."""
_log = logging.getLogger(__name__)


class Lease:
    """Held from `take` to `release`; a thread renews it. Another driver that took it over is told of by `check`."""

    def __init__(self, files: PatientFiles):
        self._files = files
        self._id = uuid.uuid4().hex
        self._number = -1
        self._beats = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="entscale-lease", daemon=True)

    def take(self) -> None:
        """Raises UserError where another driver holds the run."""
        number, holder = self._newest()
        if holder is not None and not self._is_over(number, holder):
            raise UserError(held_message(self._files.place, holder))
        self._number = number + 1
        if not self._files.create(self._name(self._number), self._content()):
            _, winner = self._newest()
            raise UserError(held_message(self._files.place, winner or {}))
        _HELD.add(self._id)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError where another driver has taken the run over."""
        if self._lost:
            raise UserError(f"{self._files.place} was taken over by another sweep while the store was away: it goes on")

    def release(self) -> None:
        """Ends the lease, so that the next driver need not wait."""
        _HELD.discard(self._id)
        self._stop.set()
        self._thread.join()
        if not self._lost:
            self._files.write(self._name(self._number), self._content(over=True))

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            # A store that is away is waited for by those who write results; the lease only tries again.
            with contextlib.suppress(Exception):
                if self._files.inner.read(self._name(self._number + 1)) is not None:
                    self._lost = True
                    return
                self._beats += 1
                self._files.inner.write(self._name(self._number), self._content())

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        listed = [entry.name for entry in self._files.list(_FOLDER)]
        number = max((_number(name) for name in listed), default=-1)
        # A listing may be behind; a file that is asked for by name is not.
        while self._files.read(self._name(number + 1)) is not None:
            number += 1
        return number, self._read(number)

    def _read(self, number: int) -> dict[str, Any] | None:
        data = self._files.read(self._name(number)) if number >= 0 else None
        try:
            value = json.loads(data) if data else None
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _is_over(self, number: int, holder: dict[str, Any]) -> bool:
        if holder.get("over") or _is_gone(holder):
            return True
        _log.warning(
            "%s was held by %s: watching whether it still is, %.0f s at most",
            self._files.place,
            _who(holder),
            LEASE_SECONDS,
        )
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(WATCH_SECONDS)
            now = self._read(number)
            if now is None or now.get("over"):
                return True
            if now.get("beats") != holder.get("beats") or self._read(number + 1) is not None:
                return False
        return True

    def _name(self, number: int) -> str:
        return f"{_FOLDER}/{number:06d}.json"

    def _content(self, over: bool = False) -> bytes:
        content = {
            "id": self._id,
            "node": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "beats": self._beats,
            "over": over,
        }
        return json.dumps(content).encode()


@contextlib.contextmanager
def leased(files: PatientFiles) -> Iterator[Lease]:
    """The lease of a run. Raises UserError where another driver holds it."""
    lease = Lease(files)
    lease.take()
    try:
        yield lease
    finally:
        with contextlib.suppress(UserError):
            lease.release()


def held_message(place: str, holder: dict[str, Any]) -> str:
    """What the second driver is told."""
    return f"{place} is being written by another sweep{_by(holder)}: wait for it, or give another --out"


def _by(holder: dict[str, Any]) -> str:
    return f" ({_who(holder)})" if holder else ""


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('node')}"


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine, in this boot of it, among the processes seen here, and runs no more."""
    if not _machine() or holder.get("machine") != _machine():
        return False
    try:
        if int(holder["pid"]) == os.getpid():
            return holder.get("id") not in _HELD
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')} {platform.node()}"
    except OSError:
        return ""


def _number(name: str) -> int:
    stem = name.rsplit("/", 1)[-1].removesuffix(".json")
    return int(stem) if stem.isdigit() else -1
