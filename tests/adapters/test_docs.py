"""The code in docs/adapters.md does what the page says."""

import doc_snippets
import jax
import numpy as np
import pytest
from attention_models import Block, LinenBlock, tokens
from flax import nnx

from entscale_jax.adapters import adapt

TOP = "The scale inside models that you have already"


class Named(Block):
    """With names as on the page."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.self_attention, self.cross_attention = self.attn1, self.attn2
        del self.attn1, self.attn2

    def __call__(self, hidden, context):
        hidden = hidden + self.self_attention(hidden)
        return hidden + self.cross_attention(hidden, context)


def the_top(tiny):
    scope = doc_snippets.run(TOP, model_or_pipeline=tiny)
    assert scope["report"].unit == "pixels"
    assert scope["adapted"].rule == adapt(tiny).report.scaling


def own_nnx(tiny):
    model = Named(nnx.Rngs(0))
    scope = doc_snippets.run("Your own NNX", model=model, adapt=adapt)
    assert [layer.train_tokens for layer in scope["report"].layers] == [4096]
    assert not np.array_equal(scope["adapted"](tokens(9), tokens(3)), model(tokens(9), tokens(3)))


def own_linen(tiny):
    model, inputs = LinenBlock(), (tokens(9), tokens(3))
    params = model.init(jax.random.key(0), *inputs)["params"]
    names = {"linen_model": model, "tokens": inputs[0], "text": inputs[1], "params": params, "adapt": adapt}
    scope = doc_snippets.run("Your own linen", **names)
    assert not np.array_equal(scope["out"], model.apply({"params": params}, *inputs))


CHECKS = {TOP: the_top, "Your own NNX": own_nnx, "Your own linen": own_linen}


def test_every_piece_of_code_is_run_somewhere():
    assert set(doc_snippets.snippets()) == set(CHECKS) | doc_snippets.LEGACY


@pytest.mark.parametrize("heading", CHECKS)
def test_the_code_runs_as_it_stands(heading, tiny):
    CHECKS[heading](tiny)


def test_the_check_sees_code_that_fails():
    with pytest.raises(NameError):
        doc_snippets.run("Your own NNX", adapt=adapt)
