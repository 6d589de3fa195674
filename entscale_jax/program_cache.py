"""Compiled programs by key: each is compiled at first use, or ahead of time, and kept."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import jax


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes on a device that one call of a compiled program takes, as XLA laid them out beforehand."""

    arguments: int
    """The weights that it reads, and its inputs."""
    outputs: int
    temporaries: int
    aliased: int
    """Of the outputs, what lies where arguments were."""

    @property
    def needed(self) -> int:
        """All that has to be there at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @classmethod
    def of(cls, compiled: Callable) -> "ProgramMemory | None":
        """None where the backend does not tell."""
        found = cast(Any, compiled).memory_analysis()
        if found is None:
            return None
        return cls(
            arguments=int(found.argument_size_in_bytes),
            outputs=int(found.output_size_in_bytes),
            temporaries=int(found.temp_size_in_bytes),
            aliased=int(found.alias_size_in_bytes),
        )


class ProgramCache:
    """What one model has compiled. A key has to hold everything static that the function closes over."""

    def __init__(self):
        self.compiled: dict[Hashable, Callable] = {}
        self.seconds = 0.0
        """Spent on tracing and compiling so far."""
        self._asked: dict[Hashable, str] = {}

    def get(self, key: Hashable, function: Callable, *arguments: Any) -> Callable:
        """The program of `key`; where there is none yet, `function` compiled for arguments of these shapes."""
        self._asked[key] = function.__name__
        if key not in self.compiled:
            start = time.perf_counter()
            self.compiled[key] = jax.jit(function).lower(*arguments).compile()
            self.seconds += time.perf_counter() - start
        return self.compiled[key]

    def take_memory(self) -> dict[str, ProgramMemory]:
        """What the programs need that were asked for since the last call: function's name -> the most of its programs.

        Those of backends that do not tell are left out.
        """
        asked, self._asked = self._asked, {}
        known = [(name, ProgramMemory.of(self.compiled[key])) for key, name in asked.items()]
        return most_of(*({name: memory} for name, memory in known if memory is not None))


def most_of(*needs: Mapping[str, ProgramMemory]) -> dict[str, ProgramMemory]:
    """By name, the program that needs the most."""
    found: dict[str, ProgramMemory] = {}
    for name, memory in chain.from_iterable(each.items() for each in needs):
        if name not in found or memory.needed > found[name].needed:
            found[name] = memory
    return found
