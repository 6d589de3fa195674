"""The whole recipe on a tiny model: start from a folder, log, export, provenance, refusals."""

import json
import math
from contextlib import suppress
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import write_tiny_model

from entscale_jax import TextToImage
from entscale_jax.attention import EntropyScaledAttention
from entscale_jax.errors import UserError
from entscale_jax.scenes import train
from entscale_jax.scenes.diffusion_stage import train_diffusion
from entscale_jax.scenes.export import replace_folder
from entscale_jax.scenes.optimizers import build_optimizer, scale_query_key
from entscale_jax.scenes.recipe import Recipe, Stage, Upkeep
from entscale_jax.scenes.structure import flatness
from entscale_jax.scenes.train import train_scenes


@pytest.fixture(autouse=True)
def _standard_promotion():
    # optax multiplies rates by whole step counts.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    default = Recipe()
    unet = replace(
        default.unet,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        transformer_layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=2,
    )
    return replace(
        default,
        autoencoder=replace(default.autoencoder, block_out_channels=(8, 8, 8, 8)),
        text=replace(default.text, hidden_size=24, intermediate_size=48, num_attention_heads=2, num_hidden_layers=1),
        unet=unet,
        diffusion_stage=Stage(steps=2, batch=2, learning_rate=1e-3, warmup=1),
        entropy_weight=0.5,
        entropy_below=5.0,
        upkeep=Upkeep(log_every=1, save_steps=1, monitored=2),
    )


@pytest.fixture(scope="module")
def initial(tmp_path_factory, recipe):
    return write_tiny_model(tmp_path_factory.mktemp("initial") / "model", recipe=recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe, initial):
    folder = tmp_path_factory.mktemp("trained")
    said = []
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(train, "watch", lambda out, count: {"exact": 0.5, "out": float((out / "unet").is_dir())})
        train_scenes(folder / "checkpoints", folder / "model", recipe=recipe, init=initial, say=said.append)
    return folder, said


def test_it_starts_from_a_folder_and_keeps_its_autoencoder(trained, initial):
    folder, _ = trained
    before, after = (TextToImage.from_pretrained(path) for path in (initial, folder / "model"))
    assert_equal = np.testing.assert_array_equal
    jax.tree.map(assert_equal, nnx.state(before.vae), nnx.state(after.vae))
    # But for what the recipe sets to zero.
    moved = jax.tree.map(
        lambda one, two: float(jnp.abs((one - two) * (two != 0)).max()), nnx.state(before.unet), nnx.state(after.unet)
    )
    assert 0 < max(jax.tree.leaves(moved)) < 0.1  # two small steps away, not a new start


def test_the_convolutions_of_the_recipe_keep_only_their_centres(trained):
    folder, _ = trained
    unet = TextToImage.from_pretrained(folder / "model").unet
    whole = {
        (block, conv)
        for block, resnet in enumerate((*unet.down_blocks[0].resnets, *unet.up_blocks[0].resnets))
        for conv in ("conv1", "conv2")
        if np.count_nonzero(getattr(resnet, conv).kernel[...]) > np.count_nonzero(getattr(resnet, conv).kernel[1, 1])
    }
    assert whole == {(0, "conv1"), (2, "conv1")}


def test_from_nothing_the_second_stage_goes_on_from_the_first(tmp_path, recipe, initial, monkeypatch):
    pipe = TextToImage.from_pretrained(initial)
    begun = []

    def learn(recipe, stage, modules, *rest, seen, **options):
        begun.append((stage, np.array(modules.unet.conv_in.kernel[...]), seen))
        return train_diffusion(recipe, stage, modules, *rest, seen=seen, **options)

    monkeypatch.setattr(train, "train_autoencoder", lambda recipe, run: (pipe.vae, [{"stage": "autoencoder"}]))
    monkeypatch.setattr(train, "scaling_factor", lambda autoencoder: 1.0)
    monkeypatch.setattr(train, "watch", lambda out, count: {"exact": 0.5})
    monkeypatch.setattr(train, "train_diffusion", learn)
    recipe = replace(recipe, binding_stage=replace(recipe.diffusion_stage, steps=3))
    train_scenes(tmp_path / "checkpoints", tmp_path / "model", recipe=recipe, say=lambda line: None)
    segments = json.loads((tmp_path / "model" / "provenance.json").read_text())["segments"]
    assert [(segment["stage"], segment.get("steps")) for segment in segments] == [
        ("autoencoder", None),
        ("binding", 3),
        ("diffusion", 2),
    ]
    assert [(stage, seen) for stage, _, seen in begun] == [(recipe.binding_stage, 0), (recipe.diffusion_stage, 3)]
    assert 0 < np.abs(begun[1][1] - begun[0][1]).max() < 0.1  # three small steps


def test_provenance_begins_with_that_of_the_folder(trained, initial, recipe):
    folder, _ = trained
    found = json.loads((folder / "model" / "provenance.json").read_text())
    first, second = found["segments"]
    assert first == {"stage": "unknown", "weights": TextToImage.from_pretrained(initial).info.weights_hash}
    assert (second["stage"], second["steps"]) == ("diffusion", 2)
    assert found["recipe"]["unet"]["block_out_channels"] == [16]
    assert "upkeep" not in found["recipe"]


def test_each_line_of_the_log_has_every_layer(trained):
    folder, said = trained
    lines = [json.loads(line) for line in (folder / "checkpoints" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert set(line["layers"]) == {
            f"{block}_blocks/0/attentions/{index}/transformer_blocks/0/attn1"
            for block, index in (("down", 0), ("up", 0), ("up", 1))
        }
        for entropy, gap, most in line["layers"].values():
            assert most == round(math.log(256), 4)
            assert 0 < entropy < most
            # A row's largest share is one over the perplexity at least, and the gap exceeds that of the share.
            assert gap > most - entropy
        assert line["kinds"] > 0.1
        assert line["penalty"] > 1  # entropies of an untrained model are nats above log T - 5
    assert {"exact": 0.5, "out": 1.0} in [line.get("score") for line in lines]
    assert any("d0.0.0" in line and "penalty" in line for line in said)


def test_what_drew_best_is_kept_beside_the_checkpoints(trained):
    folder, _ = trained
    best, last = (
        path / "unet" / "diffusion_pytorch_model.safetensors"
        for path in (folder / "checkpoints" / "best", folder / "model")
    )
    assert best.read_bytes() == last.read_bytes()


def test_a_restart_needs_no_init_and_trains_nothing(trained, recipe, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr(train, "train_autoencoder", None)
    before = (folder / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_scenes(folder / "checkpoints", folder / "again", recipe=recipe, say=lambda line: None)
    assert (folder / "again" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    same = (json.loads((folder / name / "provenance.json").read_text()) for name in ("model", "again"))
    assert next(same) == next(same)


def test_a_folder_of_another_architecture_is_refused(tmp_path, recipe, initial):
    other = replace(recipe, unet=replace(recipe.unet, attention_head_dim=4))
    with pytest.raises(UserError, match=r"unet\.attention_head_dim is 2, the recipe has 4"):
        train_scenes(tmp_path, tmp_path / "out", recipe=other, init=initial, say=lambda line: None)


def test_init_for_a_training_from_nothing_is_refused(tmp_path, recipe, initial):
    (tmp_path / "diffusion").mkdir(parents=True)
    with pytest.raises(UserError, match="leave out --init"):
        train_scenes(tmp_path, tmp_path / "out", recipe=recipe, init=initial, say=lambda line: None)


def test_without_resume_an_earlier_training_is_refused(tmp_path, recipe):
    (tmp_path / "diffusion").mkdir()
    with pytest.raises(UserError, match="--resume"):
        train_scenes(tmp_path, tmp_path / "out", recipe=recipe, resume=False)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    for text in ("one", "two"):
        with replace_folder(folder) as new:
            (new / "file").write_text(text)
    with suppress(InterruptedError), replace_folder(folder) as new:
        (new / "file").write_text("half")
        raise InterruptedError
    assert (folder / "file").read_text() == "two"
    # Killed between the two renames: the old folder is whole, and the next export puts things right.
    folder.rename(tmp_path / "model.old")
    with replace_folder(folder) as new:
        assert (tmp_path / "model.old" / "file").read_text() == "two"
        (new / "file").write_text("three")
    assert (folder / "file").read_text() == "three"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def tree(scale: float = 1.0):
    rng = np.random.default_rng(0)
    names = ("attn1/to_q", "attn1/to_k", "attn1/to_v", "attn2/to_q", "norm")
    shapes = ((8, 8), (8, 8), (8, 8), (8, 8), (8,))
    flat = {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for name, shape in zip(names, shapes, strict=True)
    }
    return {
        "blocks": {
            "attn1": {part: {"kernel": flat[f"attn1/{part}"]} for part in ("to_q", "to_k", "to_v")},
            "attn2": {"to_q": {"kernel": flat["attn2/to_q"]}},
            "norm": {"scale": flat["norm"]},
        },
        "conv_in": {"kernel": flat["attn2/to_q"]},
    }


def test_gain_and_rate_reach_the_queries_and_keys_of_self_attention_alone():
    before, after = tree(), scale_query_key(tree(), 2.5)
    factors = jax.tree.map(lambda old, new: float((new / old).mean()), before, after)
    assert factors["blocks"]["attn1"] == {"to_q": {"kernel": 2.5}, "to_k": {"kernel": 2.5}, "to_v": {"kernel": 1.0}}
    assert factors["blocks"]["attn2"] == {"to_q": {"kernel": 1.0}}
    assert (factors["blocks"]["norm"], factors["conv_in"]) == ({"scale": 1.0}, {"kernel": 1.0})


def changes(stage: Stage, **settings):
    optimizer = build_optimizer(stage, **settings)
    state = optimizer.init(tree())
    # The first step of a warm-up has rate zero.
    for _ in range(2):
        made, state = optimizer.update(tree(1e-3), state, tree())
    return made


def test_the_rate_of_queries_and_keys_is_a_factor_on_their_changes():
    stage = Stage(steps=10, batch=1, learning_rate=0.1, warmup=1)
    plain, faster = changes(stage), changes(stage, query_key_rate=3.0)
    jax.tree.map(np.testing.assert_allclose, scale_query_key(plain, 3.0), faster)
    assert not np.allclose(plain["blocks"]["attn1"]["to_q"]["kernel"], faster["blocks"]["attn1"]["to_q"]["kernel"])


def test_muon_changes_matrices_by_nearly_orthogonal_ones_and_leaves_the_rest_to_adam():
    adam, muon = (
        changes(Stage(steps=10, batch=1, learning_rate=0.1, muon_rate=0.02, warmup=1, optimizer=name))
        for name in ("adam", "muon")
    )

    def spread(tree):
        values = np.linalg.svd(tree["blocks"]["attn1"]["to_v"]["kernel"], compute_uv=False) / 0.02
        return float(values.min()), float(values.max())

    least, most = spread(muon)
    assert least > 0.5
    assert most < 1.5
    least, most = spread(adam)
    assert most > 5 * least
    np.testing.assert_allclose(np.abs(muon["blocks"]["norm"]["scale"]), 0.1, rtol=0.2)
    np.testing.assert_allclose(np.abs(muon["conv_in"]["kernel"]), 0.1, rtol=0.2)


def test_the_penalty_is_the_mean_excess_of_entropy_over_its_bound():
    layer = EntropyScaledAttention(8, 2, 4, train_tokens=100, rngs=nnx.Rngs(0))
    most = math.log(100)
    readings = {"flat": (jnp.asarray(most), jnp.asarray(0.0)), "sharp": (jnp.asarray(most - 3), jnp.asarray(4.0))}
    layers = {"flat": layer, "sharp": layer}
    assert float(flatness(readings, layers, 1.0)) == pytest.approx(0.5, rel=1e-5)
    assert float(flatness(readings, layers, 4.0)) == pytest.approx(2.5, rel=1e-5)
    assert float(flatness(readings, layers, 0.0)) == pytest.approx(0.0, abs=1e-5)


def test_only_the_first_pictures_are_recorded_where_that_is_asked():
    layer = EntropyScaledAttention(8, 2, 4, train_tokens=4, rngs=nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(0), (3, 4, 8))
    recorded = []
    for count in (None, 2):
        layer.recorded = count
        layer(hidden, record=lambda name, entropy, gap: recorded.append((entropy, gap)))
    (every, every_gap), (first, first_gap) = recorded
    assert first.shape == (2, 2)
    np.testing.assert_allclose(first, every[:2], rtol=1e-6)
    np.testing.assert_allclose(first_gap, every_gap[:2], rtol=1e-6)
