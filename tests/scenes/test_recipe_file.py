"""A recipe from YAML: what it changes, what it refuses, and what its hash covers."""

from dataclasses import replace

import pytest

from entscale_jax.errors import UserError
from entscale_jax.scenes.recipe import Recipe, Upkeep
from entscale_jax.scenes.recipe_file import differences, read_recipe, recipe_hash, recipe_values


def read(tmp_path, text: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return read_recipe(file)


def test_fields_at_any_depth_are_changed_and_the_others_kept(tmp_path):
    recipe = read(
        tmp_path,
        """
        attention_gain: 2.5
        diffusion_stage: {learning_rate: 5e-4, optimizer: adam}
        unet:
          block_out_channels: [32, 64]
          attention_head_dim: 4
          down_block_types: [CrossAttnDownBlock2D, DownBlock2D]
          up_block_types: [UpBlock2D, CrossAttnUpBlock2D]
          mid_block_type: null
        """,
    )
    default = Recipe()
    assert recipe == replace(
        default,
        attention_gain=2.5,
        diffusion_stage=replace(default.diffusion_stage, learning_rate=5e-4, optimizer="adam"),
        unet=replace(
            default.unet,
            block_out_channels=(32, 64),
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            mid_block_type=None,
        ),
    )


def test_an_empty_file_is_the_recipe_of_the_package(tmp_path):
    assert read(tmp_path, "# nothing\n") == Recipe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("atention_gain: 2.5", ("recipe.yaml:1:", "'atention_gain'", "did you mean 'attention_gain'")),
        ("kl_weight: 1\nunet: {widths: [1]}", ("recipe.yaml:2:", "unknown field 'widths' of unet")),
        ("scheduler: {beta: 1}", ("unknown field 'beta' of scheduler",)),
        ("diffusion_stage: {steps: many}", ("recipe.yaml:1:", "diffusion_stage.steps is 'many'")),
        ("diffusion_stage: {optimizer: sgd}", ("diffusion_stage.optimizer is 'sgd'", "'muon'")),
        ("unet: 3", ("unet is 3",)),
        ("- 1", ("the recipe is [1]",)),
        (
            "unet: {attention_head_dim: 1000}",
            ("recipe.yaml:1: unet: UNet2DConditionModel", "1000 attention heads"),
        ),
    ],
)
def test_what_it_does_not_understand_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    for word in words:
        assert word in str(error.value)


def test_the_hash_is_of_what_decides_the_weights():
    default = Recipe()
    same = replace(default, upkeep=Upkeep(log_every=1))
    other = replace(default, attention_gain=7.5)
    assert recipe_hash(recipe_values(same)) == recipe_hash(recipe_values(default))
    assert recipe_hash(recipe_values(other)) != recipe_hash(recipe_values(default))


def test_two_recipes_may_differ_in_their_steps_only():
    default = Recipe()
    values = recipe_values(default)
    longer = replace(default, diffusion_stage=replace(default.diffusion_stage, steps=9))
    assert differences(values, recipe_values(longer)) == []
    gained = recipe_values(replace(default, attention_gain=7.5))
    assert differences(values, gained) == [f"attention_gain: was {default.attention_gain}, is 7.5"]
    # What an older recipe did not have was at its default.
    del values["attention_gain"]
    assert differences(values, recipe_values(default)) == []
    assert len(differences(values, gained)) == 1
