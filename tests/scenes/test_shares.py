"""Which cases are drawn, with which model, at which size."""

import numpy as np
from painter import blank

from entscale_jax.scenes import shares
from entscale_jax.scenes.sensitivity import UNIFORM
from entscale_jax.scenes.shares import Case, cases
from entscale_jax.scenes.windows import Part, WindowedAttention, WindowedMap


def test_every_set_of_parts_is_a_case_once():
    names = list(map(str, cases(3)))
    assert len(set(names)) == len(names) == 9
    assert names[:2] == ["nothing", "attention uniform"]
    assert str(cases(3)[-1]) == "attention, GroupNorm, convolutions in windows"
    assert len(cases(1)) == 5


def test_a_case_draws_with_its_parts_confined_and_nothing_else(tiny, monkeypatch, tmp_path):
    drawn = {}

    def draw(pipe, drawing, kept, name):
        drawn[drawing.variant, drawing.scaling] = pipe, drawing
        return np.stack([blank(caption, 0) for caption in drawing.captions])

    monkeypatch.setattr(shares, "draw", draw)
    chosen = [Case(), Case(scaling=UNIFORM), Case((Part.ATTENTION,)), Case((Part.CONVOLUTIONS,))]
    found = shares.measure(tiny, chosen, times=2, window=(8, 8), each=1, kept=tmp_path)
    assert list(found) == chosen
    assert len(drawn) == 4
    assert {drawing.size for _, drawing in drawn.values()} == {(64, 64)}
    plain, uniform, attention, convolutions = (pipe.unet for pipe, _ in drawn.values())
    assert plain is uniform is tiny.unet
    block = attention.down_blocks[1]
    layer = block.attentions[0].transformer_blocks[0].attn1
    assert isinstance(layer, WindowedAttention)
    assert (layer.grid, layer.window) == ((8, 8), (4, 4))  # of the second level
    assert not isinstance(block.resnets[0].conv1, WindowedMap)
    block = convolutions.up_blocks[0]
    assert block.resnets[0].conv1.window == (4, 4)
    assert block.upsamplers[0].conv.window == (8, 8)  # after doubling
    assert not isinstance(block.resnets[0].norm1, WindowedMap)


def test_changes_are_by_pairs_against_the_model_as_it_is():
    before = np.array([[1.0, 0, 0], [0, 1, 0]])
    lines = shares._table({Case(): before, Case(scaling=UNIFORM): before + np.array([0, 0, 2])})
    assert lines[-1].startswith("| attention uniform | 50.0 (")
    assert "| +2.00 (+2.00 to +2.00) | 100.0 (100.0 to 100.0) |" in lines[-1]
