"""A small random pipeline of diffusers' Flax classes, saved by them, with attention that is far from uniform."""

import contextlib
from pathlib import Path

import jax
import numpy as np
from diffusers import FlaxAutoencoderKL, FlaxDDIMScheduler, FlaxStableDiffusionPipeline, FlaxUNet2DConditionModel
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import CLIPTextConfig, CLIPTokenizer, FlaxCLIPTextModel

from entscale_jax.scenes.tokenizer import MAX_LENGTH, write_tokenizer

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Flax's transformer has 32 groups whatever its config says, so widths are multiples of 32.
UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 24,
    "transformer_layers_per_block": (1, 2),
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "scaling_factor": 0.5,
}


@contextlib.contextmanager
def their_promotion():
    """Lets arrays broadcast and change dtype as JAX does unasked: Flax's classes rely on it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def build(folder: Path, *, vae: dict | None = None, **unet) -> tuple[FlaxStableDiffusionPipeline, dict]:
    """The pipeline, with fields of autoencoder and UNet as given, and its parameters, which are saved in `folder`."""
    rng = np.random.default_rng(0)
    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    with their_promotion():
        parts = {
            "unet": FlaxUNet2DConditionModel(**{**UNET, **unet}),
            "vae": FlaxAutoencoderKL(**{**VAE, **(vae or {})}),
            "text_encoder": _text_encoder(len(tokenizer)),
            "scheduler": FlaxDDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        }
        params = {name: random_params(parts[name], rng) for name in ("unet", "vae", "text_encoder")}
        params["scheduler"] = parts["scheduler"].create_state()
        pipe = FlaxStableDiffusionPipeline(
            **parts, tokenizer=tokenizer, safety_checker=None, feature_extractor=None, dtype=np.float32
        )
        pipe.save_pretrained(folder / "model", params=params)
    return pipe, params


def random_params(model, rng: np.random.Generator, gain: float = 1.2) -> dict:
    """Weights for a model of Flax's that keep activations near unit size; `to_q` and `to_k` are enlarged by `gain`."""
    if isinstance(model, FlaxCLIPTextModel):
        shapes = model.params_shape_tree
    else:
        with their_promotion():
            shapes = jax.eval_shape(model.init_weights, jax.random.key(0))
    return unflatten_dict({path: _fill(path, leaf.shape, rng, gain) for path, leaf in flatten_dict(shapes).items()})


def _fill(path: tuple[str, ...], shape: tuple[int, ...], rng: np.random.Generator, gain: float) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if path[-1] in ("bias", "scale"):
        return 0.1 * noise + (path[-1] == "scale")
    gain = gain if path[-2] in ("to_q", "to_k", "q_proj", "k_proj") else 1.0
    return gain * noise / np.sqrt(np.prod(shape[:-1]) if path[-1] == "kernel" else 1.0).astype(np.float32)


def _text_encoder(words: int) -> FlaxCLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    return FlaxCLIPTextModel(config, input_shape=(1, MAX_LENGTH), _do_init=False)
