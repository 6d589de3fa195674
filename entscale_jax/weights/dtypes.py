"""The dtypes that a model can be loaded in."""

from typing import Any

import jax
import jax.numpy as jnp

from ..errors import UserError

DTYPES = ("float32", "bfloat16", "float16", "float64")


def read_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of a name, a type or a dtype. Raises UserError for one that models are not computed in."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if found.name == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            "dtype float64 needs JAX's 64-bit types: call jax.config.update('jax_enable_x64', True) first, or set "
            "JAX_ENABLE_X64=1"
        )
    return found
