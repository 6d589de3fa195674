"""The command `entscale`: each subcommand reads its arguments and calls one function of the library."""

from . import drawing, models, results, sweeps, training  # noqa: F401 (each brings its commands)
from .application import app, main

__all__ = ["app", "main"]
