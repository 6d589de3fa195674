"""Counts the programs that JAX makes ready in this process by their names, and the seconds that this takes."""

import re
import threading

import jax

from .executor import Compile

_READY = "/jax/core/compile/backend_compile_duration"
_STAGES = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration", _READY)
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class CompileCounter:
    """Listens to JAX from its creation on. A process makes one, as listeners are the process's."""

    def __init__(self):
        self._compiles: list[Compile] = []
        self._seconds = 0.0
        self._thread = threading.local()
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def take(self) -> tuple[list[Compile], float]:
        """Programs made ready since the last call, and the seconds of tracing, lowering and compiling them."""
        taken = self._compiles, self._seconds
        self._compiles, self._seconds = [], 0.0
        return taken

    def _on_event(self, event: str, **kwargs: str | int) -> None:
        if event == _CACHE_HIT:
            self._thread.hit = True

    def _on_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event not in _STAGES:
            return
        self._seconds += duration_secs
        if event == _READY:
            # A read from the cache is told just before, in the same thread, without the program's name.
            hit, self._thread.hit = getattr(self._thread, "hit", False), False
            self._compiles.append(Compile(program_name(str(kwargs.get("fun_name"))), hit, duration_secs))


def program_name(fun_name: str) -> str:
    """The function's own name: JAX tells `jit(denoise)` for a compiled `denoise`."""
    match = re.fullmatch(r"\w+\((.*)\)", fun_name)
    return match[1] if match else fun_name
