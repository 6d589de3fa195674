"""Waits out a store that is full, slow or away for a while, so that results in hand outlive it.

What can pass by itself is tried again; a wrong name or a missing right is the user's to mend and is told at once.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ...errors import UserError

PATIENCE_SECONDS = 120.0
"""How long one file is tried for."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds between two tries; each pause is twice the last."""

_PERMANENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in ("EROFS", "EINVAL", "ENAMETOOLONG", "ENOSYS", "EPERM", "ENOTDIR", "EISDIR", "ELOOP", "EREMCHG")
    if hasattr(errno, name)
)
_PERMANENT_CLASSES = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_CLOUD_MODULES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "urllib3", "requests", "fsspec")
_PERMANENT_NAMES = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
        *("NoRegionError", "InvalidRegionError", "ParamValidationError", "InvalidConfigError", "ConfigParseError"),
        *("DefaultCredentialsError", "RefreshError", "MalformedError", "InvalidURL"),
    }
)

_log = logging.getLogger(__name__)
Value = TypeVar("Value")


def patiently(
    call: Callable[[], Value],
    place: str,
    *,
    hurried: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], object] | None = None,
    clock: Callable[[], float] | None = None,
) -> Value:
    """What `call` returns, tried again with growing pauses while it fails in a way that can pass.

    Args:
        call: reads or writes something whole, and may be called again after it failed.
        place: what it reads or writes, for the user.
        hurried: whether to try no more.
        sleep: waits; `time.sleep` where it is None.
        clock: tells the time in seconds.

    Raises UserError, one line, where the store stays away or refuses.
    """
    began, pause = None, FIRST_PAUSE
    while True:
        try:
            return call()
        except Exception as error:
            if not _of_a_store(error):
                raise
            if not can_pass(error):
                raise UserError(
                    f"{place} is refused ({reason(error)}): check the name and your access to it"
                ) from error
            now = (clock or time.monotonic)()
            if began is None:
                began = now
            if hurried() or now - began + pause > PATIENCE_SECONDS:
                raise UserError(
                    f"{place} failed for {now - began:.0f} s ({reason(error)}): mend that, then give the same command "
                    "again; what is stored is whole and kept"
                ) from error
            if now == began:
                _log.warning("%s: %s; trying again for %.0f s", place, reason(error), PATIENCE_SECONDS)
        (sleep or time.sleep)(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def can_pass(error: BaseException) -> bool:
    """Whether waiting may help: not where a name is wrong or a right is missing."""
    if isinstance(error, _PERMANENT_CLASSES) or type(error).__name__ in _PERMANENT_NAMES:
        return False
    return not (isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS)


def reason(error: BaseException) -> str:
    """An error in a few words."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _of_a_store(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLOUD_MODULES
