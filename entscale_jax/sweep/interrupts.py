"""Ctrl-C in two steps: once asks to finish what is in hand, twice stops at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupts:
    """Counts Ctrl-C, which Python loses in a callback of the garbage collector, of which JAX has one."""

    def __init__(self):
        self.count = 0
        self._patient = False

    @contextlib.contextmanager
    def heard(self) -> Iterator["Interrupts"]:
        """Takes over SIGINT: each raises KeyboardInterrupt, but for a first one while `patient`."""
        before = signal.getsignal(signal.SIGINT)
        # Only Python's own handler, in the thread that signals come to, is taken over.
        if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
            yield self
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """While results are in hand that are worth waiting for."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _interrupt(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 1 or not self._patient:
            signal.default_int_handler(number, frame)
