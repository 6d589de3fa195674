"""JAX's persistent compilation cache, on by default, in the user's own cache folder."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/entscale_jax/xla`, or the same under `~/.cache`. Programs found there are run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "entscale_jax" / "xla"


def enable_cache(*, every_program: bool = False) -> None:
    """Turns the cache on, in `JAX_COMPILATION_CACHE_DIR` where the user set one.

    Args:
        every_program: store small programs too, which JAX leaves out by default; a sweep's workers share them.
    """
    if not jax.config.values.get("jax_compilation_cache_dir"):
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            return  # a home that can't be written costs time, not results
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if every_program:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
