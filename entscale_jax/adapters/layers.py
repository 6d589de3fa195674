"""Attention layers of a module tree, linen's or NNX's: which there are, which are meant, and where their scale goes in.

The contract for modules of the user's own. Self-attention is a module that is called with tokens [B T D] or [T D] as
its first argument; N is T there. Its scale is reached in one of two ways: its call takes a keyword `scale`, the factor
on query-key products; or it has a child whose output, the queries, is multiplied by `lambda sqrt(d)`, for an attention
that then multiplies by `1 / sqrt(d)` itself.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .options import Options, choose
from .report import AdaptedLayer

Modules = Mapping[str, Any]
"""Path -> module, the root's path being empty."""
QUERIES = ("to_q", "query", "q_proj", "q")
QUERY_NORMS = ("norm_q", "q_norm", "query_norm", "query_ln", "norm_query", "ln_q")
_CONTEXTS = ("context", "encoder_hidden_states", "inputs_k", "inputs_kv", "key")
_HEADS = ("heads", "num_heads", "n_heads")
_HEAD_DIMS = ("head_dim", "dim_head", "d_head")


@dataclass(frozen=True)
class Reach:
    """Where a layer's scale goes in."""

    child: str | None
    """Whose output is multiplied; None where the attention takes `scale`."""


def attention_layers(found: Modules) -> tuple[str, ...]:
    """The paths of what looks like attention: a module with a query projection, or one that is called so."""
    with_queries = {path.rpartition("/")[0] for path in found if path.rpartition("/")[2] in QUERIES}
    called_so = {path for path, module in found.items() if "attention" in type(module).__name__.lower()}
    # Of a block and the attention in it the inner one is meant, and nothing inside one that has its queries.
    outer = {path for path in called_so if any(inside(other, path) for other in with_queries | called_so)}
    part = {path for path in called_so if any(inside(path, other) for other in with_queries)}
    alone = called_so - outer - part
    return tuple(path for path in found if path in with_queries | alone)


def children(found: Modules, path: str) -> set[str]:
    """The names of a module's direct children."""
    start = f"{path}/" if path else ""
    below = (other.removeprefix(start) for other in found if other.startswith(start) and other != path)
    return {name for name in below if "/" not in name}


def classify(model: str, found: Modules, options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths to adapt, and those to leave. Raises UserError where none is chosen, or one is in neither list."""
    candidates = attention_layers(found)
    listed = ", ".join(map(shown, candidates)) or "none"
    if options.layers is None:
        raise UserError(
            f"layers is missing: which attention of {model} is self-attention can't be known; give paths, or a "
            f"predicate of path and module; it has {listed}"
        )
    chosen = _choose(options.layers, found, candidates, "layers")
    if not chosen:
        raise UserError(f"nothing matched: layers= chose none of {model}'s attention layers; it has {listed}")
    left = _choose(options.leave, found, candidates, "leave")
    if both := [path for path in chosen if path in left]:
        raise UserError(f"{', '.join(map(shown, both))} is both in layers= and in leave=: name it in one")
    known = (*chosen, *left)
    missed = [path for path in candidates if not any(path == other or _nested(path, other) for other in known)]
    if missed:
        raise UserError(
            f"attention of {model} is neither in layers= nor in leave=: {', '.join(map(shown, missed))}; "
            "name each in one of them"
        )
    return chosen, left


def reach_of(found: Modules, path: str, query: str | None) -> Reach:
    """Where the scale of the attention at `path` goes in. Raises UserError where it can't be reached."""
    names = children(found, path)
    if query is not None:
        if query not in names:
            raise UserError(f"{shown(path)} has no child {query!r}: query= names one of {_listed(names)}")
        return Reach(query)
    if "scale" in _parameters(type(found[path])):
        return Reach(None)
    projection = next((name for name in QUERIES if name in names), None)
    if projection is None:
        raise UserError(
            f"the scale of {shown(path)}, a {type(found[path]).__name__}, can't be reached: its call takes no scale "
            f"and it has no child {', '.join(QUERIES)}; name its query projection by query=, one of {_listed(names)}"
        )
    if norm := next((name for name in QUERY_NORMS if name in names), None):
        raise UserError(
            f"the scale of {shown(path)} can't be reached at {projection!r}: {norm!r} normalises queries after it; "
            f"give query={norm!r} where that is the last step before attention"
        )
    return Reach(projection)


def described(found: Modules, paths: tuple[str, ...], train_tokens: Mapping[str, int]) -> tuple[AdaptedLayer, ...]:
    """Each layer with its T; its level is the rank of its T, the largest 0."""
    ranks = {tokens: rank for rank, tokens in enumerate(sorted(set(train_tokens.values()), reverse=True))}
    return tuple(
        AdaptedLayer(path, ranks[train_tokens[path]], train_tokens[path], *head_shape(found[path])) for path in paths
    )


def head_shape(module: Any) -> tuple[int | None, int | None]:
    """(heads, head width) as the module's fields call them, None for what they don't say."""
    heads, width = (
        next((getattr(module, name) for name in names if _is_count(module, name)), None)
        for names in (_HEADS, _HEAD_DIMS)
    )
    return heads, width


def level_of(path: str, levels: int) -> int:
    """The level of a module in a UNet with diffusers' names, 0 the finest: `down_blocks_1` or `down_blocks/1` is 1."""
    if found := re.match(r"(down|up)_blocks[_/](\d+)", path):
        return int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
    return levels - 1


def call_arguments(kind: type, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a call was given first, its tokens, and all that it was given by name; `args` without self."""
    names = list(_parameters(kind))[1:]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return next((given[name] for name in names if name in given), None), given


def call_tokens(layer: str, kind: type, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """N of one call of a self-attention, `args` without self. Raises UserError where there is none, or a context."""
    hidden, given = call_arguments(kind, args, kwargs)
    for name in _CONTEXTS:
        if given.get(name) is not None and given[name] is not hidden:
            raise UserError(f"{shown(layer)} was given {name}: it is cross-attention, whose scale stays; leave it out")
    shape = getattr(hidden, "shape", ())
    match shape:
        case [tokens, _] | [_, tokens, _]:
            return tokens
    raise UserError(
        f"tokens of {shown(layer)} can't be derived: its first argument has shape {list(shape)}, and must be tokens "
        "[B T D] or [T D]"
    )


def shown(path: str) -> str:
    """A path for people."""
    return path or "the model itself"


def _choose(chosen: Any, found: Modules, candidates: tuple[str, ...], what: str) -> tuple[str, ...]:
    return choose(chosen, {path: found[path] for path in candidates} if callable(chosen) else found, what)


def inside(path: str, other: str) -> bool:
    """Whether the module at `path` is a part of the one at `other`."""
    return path != other and (not other or path.startswith(f"{other}/"))


def _nested(one: str, other: str) -> bool:
    return inside(one, other) or inside(other, one)


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__call__).parameters


def _is_count(module: Any, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
