"""Compiled programs by key: each is compiled at first use, or ahead of time, and kept."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax


class ProgramCache:
    """What one model has compiled. A key has to hold everything static that the function closes over."""

    def __init__(self):
        self.compiled: dict[Hashable, Callable] = {}
        self.seconds = 0.0
        """Spent on tracing and compiling so far."""

    def get(self, key: Hashable, function: Callable, *arguments: Any) -> Callable:
        """The program of `key`; where there is none yet, `function` compiled for arguments of these shapes."""
        if key not in self.compiled:
            start = time.perf_counter()
            self.compiled[key] = jax.jit(function).lower(*arguments).compile()
            self.seconds += time.perf_counter() - start
        return self.compiled[key]
