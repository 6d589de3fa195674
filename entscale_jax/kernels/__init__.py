"""The ways to compute attention; `entscale_jax.attention` chooses among them."""
