"""What turns gradients into changes of the weights: Adam or Muon on one schedule, q and k at a rate of their own."""

from typing import Any

import jax
import optax
from optax import contrib

from .recipe import Stage


def build_optimizer(stage: Stage, *, query_key_rate: float = 1.0) -> optax.GradientTransformation:
    """The stage's optimizer.

    Args:
        stage: rates, schedule and which optimizer.
        query_key_rate: factor on the changes of `to_q` and `to_k` of every self-attention.

    Source: Adam, arXiv 1412.6980; Muon, https://kellerjordan.github.io/posts/muon/.
    """
    rate = _schedule(stage, stage.learning_rate)
    match stage.optimizer:
        case "adam":
            rule = optax.adam(rate, b2=0.99)
        case "muon":
            rule = contrib.muon(
                _schedule(stage, stage.muon_rate),
                adam_learning_rate=rate,
                adam_b2=0.99,
                muon_weight_dimension_numbers=_matrices,
            )
    parts = [optax.clip_by_global_norm(stage.gradient_norm), rule]
    if query_key_rate != 1.0:
        parts.append(optax.stateless(lambda changes, _: scale_query_key(changes, query_key_rate)))
    return optax.chain(*parts)


def scale_query_key(tree: Any, factor: float) -> Any:
    """`tree` with what belongs to `to_q` and `to_k` of self-attention multiplied by `factor`."""

    def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
        names = _names(path)
        return leaf * factor if "attn1" in names and {"to_q", "to_k"} & names else leaf

    return jax.tree_util.tree_map_with_path(scaled, tree)


_ENDS = frozenset({"conv_in", "conv_out", "time_embedding", "token_embedding", "position_embedding", "kinds"})


def _matrices(parameters: optax.Params) -> optax.Params:
    """Which axes of a weight are reduced and which are made, for Muon; None for what Adam keeps.

    Muon takes the matrices and the kernels, but not those at a model's ends, nor embeddings, biases and norms.
    """

    def axes(path: tuple, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2 or _ENDS & _names(path):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, parameters)


def _names(path: tuple) -> set[str]:
    return {str(getattr(key, "key", getattr(key, "name", key))) for key in path}


def _schedule(stage: Stage, peak: float) -> optax.Schedule:
    decay = int(stage.decay * stage.steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, stage.warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [stage.warmup, stage.steps - decay],
    )
