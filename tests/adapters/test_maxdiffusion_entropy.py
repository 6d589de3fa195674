"""Entropy inside MaxDiffusion's attention, at its kernels' door and between projections; see `test_maxdiffusion`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from maxdiffusion_library import (
    HEADS,
    MULTIPLIER,
    PATH,
    WIDTH,
    N,
    T,
    attention,
    hidden_states,
    linen_operation,
    message,
    nnx_operation,
    random,
    scale,
)
from test_maxdiffusion import by_hand, unet
from test_maxdiffusion_nnx import Block

from entscale_jax.adapters import adapt

pytestmark = [pytest.mark.usefixtures("surroundings"), *([pytest.mark.filterwarnings("ignore")] if PATH else [])]

BOUND = 1e-5
"""Nats, float32 against float64; 9.3e-7 measured."""


def entropy_by_hand(query, key, scale, keys=slice(None)):
    """[B N], N x N in float64, of [B T D]."""
    query, key = (np.asarray(array, np.float64).reshape(*array.shape[:2], HEADS, -1) for array in (query, key))
    logits = scale * np.einsum("btnh,bsnh->bnts", query, key[:, keys])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean(-1)


def check(found, wanted, original):
    """`found` is one call's; `pytest -s` shows both."""
    (found,) = np.asarray(found)
    error, control = np.abs(found - wanted).max(), np.abs(found - original).max()
    print(f"error {error:.1e}, the scale of training {control:.1e}", end=" ")
    assert error < BOUND
    assert control > 100 * BOUND


@pytest.mark.parametrize("split", [False, True], ids=["B T D", "B N T H"])
def test_linen_operation(library, split):
    flat = [2 * random(seed, 1, N, HEADS * WIDTH) for seed in range(3)]
    arrays = [array.reshape(1, N, HEADS, WIDTH).swapaxes(1, 2) for array in flat] if split else flat
    operation = linen_operation(library, "dot_product")
    model, report = adapt(operation, train_tokens=T, measure_entropy=True)
    out, state = model.apply({}, *arrays, method="apply_attention", mutable=["intermediates"])
    check(
        report.entropy(state["intermediates"])[""],
        entropy_by_hand(*flat[:2], scale()),
        entropy_by_hand(*flat[:2], WIDTH**-0.5),
    )
    np.testing.assert_array_equal(out, model.apply({}, *arrays, method="apply_attention"))


@pytest.mark.parametrize("options", [{}, {"use_memory_efficient_attention": True}], ids=["plain", "memory-efficient"])
def test_linen_attention(library, options):
    module, params = attention(library, "dot_product", **options)
    hidden = hidden_states()
    model, report = adapt(module, train_tokens=T, measure_entropy=True)
    _, state = model.apply(params, hidden, mutable=["intermediates"])
    query, key = (
        np.asarray(hidden, np.float64) @ np.asarray(params["params"][to]["kernel"]) for to in ("to_q", "to_k")
    )
    entropy = report.entropy(state["intermediates"])[""]
    check(entropy, entropy_by_hand(query, key, scale()), entropy_by_hand(query, key, WIDTH**-0.5))


def test_unet(library):
    """Each layer's, of the queries and keys of the model that has the multipliers in its weights."""
    module, params = unet(library)
    model, report = adapt(module, measure_entropy=True)
    grid = (12, 6)
    inputs = random(5, 1, 4, *grid), jnp.ones(1, jnp.int32), random(6, 1, 3, 12)

    @partial(jax.jit, static_argnums=(0, 1))
    def intermediates(module, filter_, params):
        return module.apply({"params": params}, *inputs, capture_intermediates=filter_, mutable=["intermediates"])[1]

    def projections(params):
        return intermediates(module, is_projection, params)["intermediates"]

    entropy = report.entropy(intermediates(model, None, params)["intermediates"])
    right, wrong = projections(by_hand(params, grid)), projections(params)
    assert len(entropy) == 7
    for path, found in entropy.items():
        wanted, original = (
            entropy_by_hand(*(below(each, path)[to]["__call__"][0] for to in ("to_q", "to_k")), width(path) ** -0.5)
            for each in (right, wrong)
        )
        check(found, wanted, original)


def is_projection(module, _):
    return module.name in ("to_q", "to_k")


def below(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def width(path):
    return 32 // HEADS if path.startswith(("down_blocks_0", "up_blocks_1")) else 64 // HEADS


def test_nnx_attention_whose_queries_and_keys_are_normalised(library):
    block = Block(library, "dot_product")
    hidden, context = hidden_states(), random(3, 1, 5, HEADS * WIDTH)
    model, report = adapt(block, train_tokens=T, measure_entropy=True)
    out, state = nnx.capture(model, nnx.Intermediate)(hidden, context)
    theirs = block.attn1
    query, key = theirs.norm_q(theirs.query(hidden)), theirs.norm_k(theirs.key(hidden))
    check(
        report.entropy(state)["attn1"], entropy_by_hand(query, key, scale()), entropy_by_hand(query, key, WIDTH**-0.5)
    )
    for one, other in zip(out, adapt(block, train_tokens=T).model(hidden, context), strict=True):
        np.testing.assert_array_equal(one, other)


def test_keys_that_a_kernel_masks_take_no_part(library):
    arrays = [2 * random(seed, 1, N, HEADS * WIDTH) for seed in range(3)]
    mask = jnp.arange(N)[None] < N - 7
    model, report = adapt(
        nnx_operation(library, "dot_product"), train_tokens=T, layers=[""], measure_entropy=True, rule="original"
    )

    def entropy(mask, arrays=arrays):
        attend = nnx.capture(type(model).apply_attention, nnx.Intermediate)
        return report.entropy(attend(model, *arrays, mask)[1])[""]

    wanted = entropy_by_hand(*arrays[:2], WIDTH**-0.5, slice(N - 7))
    check(entropy(mask), wanted, np.asarray(entropy(None))[0])
    garbage = [arrays[0], jnp.where(mask[..., None], arrays[1], 50 * arrays[1]), arrays[2]]
    np.testing.assert_array_equal(entropy(mask, garbage), entropy(mask))


def test_attention_with_a_kernel_of_its_own_is_refused(library):
    module = library.ZImageAttention(nnx.Rngs(0), HEADS * WIDTH, HEADS, attention_kernel="flash", mesh=library.mesh)
    said = message(lambda: adapt(module, train_tokens=T, measure_entropy=True))
    assert "the entropy of the model itself can't be measured: ZImageAttention has a kernel of its own" in said
    assert MULTIPLIER != 1
