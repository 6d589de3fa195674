"""The three steps that hold a full-size UNet against PyTorch, apart, so that one framework at a time holds weights.

Each leaves files for the next, and can have a process of its own.
"""

import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as TorchUNet
from flax import nnx
from safetensors.torch import load_file

from entscale_jax.errors import UserError
from entscale_jax.models import AddedConditions, UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.parity.compare import TIMESTEP, precision, relative_error
from entscale_jax.parity.random_models import randomise
from entscale_jax.parity.reference import SelfAttention, install
from entscale_jax.scales import Scaling
from entscale_jax.weights.files import DIFFUSERS, find_weights
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

Size = tuple[int, int]
"""(width, height) in pixels."""
RULES = ("original", "entropy")
FACTOR = 8
"""Pixels along the side of a latent cell: of the autoencoders that all these UNets are published with."""
SHARPEN = 1.25
"""By what `to_q` and `to_k` of self-attention are enlarged: a scale does nothing to uniform attention."""
_TEXT_TOKENS = 77
_EXPECTED = "expected.npz"


class Inputs(NamedTuple):
    """What one call of the UNet is given beside the timestep, in float32."""

    latents: np.ndarray
    """[1, h, w, c]."""
    states: np.ndarray
    """[1, 77, D]."""
    added: AddedConditions | None
    """SDXL's, as NumPy arrays."""


@dataclass(frozen=True)
class Written:
    """What step `write` did."""

    parameters: int
    seconds: float


@dataclass(frozen=True)
class Expected:
    """What step `expect` did; its outputs are in the folder."""

    seconds: list[float]
    """Of each call, sizes first and within each the rules."""
    margin: float
    """Nats by which the mean entropy of each self-attention layer is at least below log N at the first size."""
    peak: int


@dataclass(frozen=True)
class Error:
    """One call of ours against PyTorch's under the same rule, and under the other."""

    size: Size
    rule: str
    error: float
    other_rule: float
    seconds: float


@dataclass(frozen=True)
class Compared:
    """What step `compare` did."""

    errors: list[Error]
    load_seconds: float
    peak: int


def write(config: Mapping[str, Any], folder: Path, seed: int = 0) -> Written:
    """PyTorch makes the UNet of `config`, fills it with random numbers and saves it as diffusers does.

    Raises UserError where the disk is too small for it.
    """
    started = time.perf_counter()
    with torch.device("meta"):
        unet: Any = TorchUNet.from_config(dict(config))
    parameters = sum(each.numel() for each in unet.parameters())
    _check_disk(folder, 4 * parameters)
    unet.to_empty(device="cpu")
    randomise(unet, seed)
    for name, parameter in unet.named_parameters():
        if name.endswith((".attn1.to_q.weight", ".attn1.to_k.weight")):
            parameter.data *= SHARPEN
    unet.save_pretrained(folder)
    return Written(parameters, time.perf_counter() - started)


def expect(folder: Path, sizes: Sequence[Size]) -> Expected:
    """PyTorch runs one call at each size and rule, and saves what comes out."""
    with torch.device("meta"):
        unet: Any = TorchUNet.from_config(TorchUNet.load_config(folder)).eval()
    for file in folder.glob("*.safetensors"):
        unet.load_state_dict(load_file(file), strict=False, assign=True)
    side = unet.config["sample_size"]
    layers = install(unet, (side, side)).values()
    outputs, seconds, margin = {}, [], math.nan
    for size, rule in product(sizes, RULES):
        first = not outputs
        for layer in layers:
            layer.rule, layer.record = rule, [] if first else None
        started = time.perf_counter()
        outputs[_key(size, rule)] = _torch_call(unet, inputs(unet.config, size))
        seconds.append(time.perf_counter() - started)
        if first:
            margin = min(_margin(layer, size) for layer in layers)
    np.savez(folder / _EXPECTED, **outputs)
    return Expected(seconds, margin, peak_memory())


def compare(folder: Path, sizes: Sequence[Size]) -> Compared:
    """The same calls here, with the folder's weights loaded as the pipeline loads them, against what PyTorch saved."""
    with precision(float64=False), jax.default_device(jax.devices("cpu")[0]):
        started = time.perf_counter()
        unet = load(folder)
        loaded = time.perf_counter() - started
        expected = np.load(folder / _EXPECTED)
        errors = []
        for size, (rule, other) in product(sizes, (RULES, RULES[::-1])):
            started = time.perf_counter()
            got = _our_call(unet, inputs(_read_config(folder), size), Scaling.of(rule))
            seconds = time.perf_counter() - started
            right, wrong = (relative_error(got, expected[_key(size, each)]) for each in (rule, other))
            errors.append(Error(size, rule, right, wrong, seconds))
    return Compared(errors, loaded, peak_memory())


def load(folder: Path) -> UNet2DConditionModel:
    """Our UNet with the folder's weights, in float32."""
    config = UNet2DConditionConfig.from_json(_read_config(folder))
    files = find_weights(folder, DIFFUSERS)
    module = load_parameters(lambda: UNet2DConditionModel(config, rngs=AbstractRngs()), files, jnp.float32)
    if not isinstance(module, UNet2DConditionModel):
        raise TypeError(f"{folder} was read as {type(module).__name__}")
    return module


def inputs(config: Mapping[str, Any], size: Size) -> Inputs:
    """Random numbers of the right shapes, the same for both frameworks."""
    width, height = size
    random = np.random.default_rng(size)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    latents = normal(1, height // FACTOR, width // FACTOR, config["in_channels"])
    states = normal(1, _TEXT_TOKENS, config["cross_attention_dim"])
    if config.get("addition_embed_type") is None:
        return Inputs(latents, states, None)
    told = np.array([[1080, 1920, 60, 210, height, width]], np.float32)
    pooled = config["projection_class_embeddings_input_dim"] - told.size * config["addition_time_embed_dim"]
    return Inputs(latents, states, AddedConditions(normal(1, pooled), told))


def peak_memory() -> int:
    """Bytes that this process had in memory at most, pages of files that it maps among them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _torch_call(unet: Any, given: Inputs) -> np.ndarray:
    latents = torch.from_numpy(given.latents).permute(0, 3, 1, 2).contiguous()
    keywords: dict[str, Any] = {"encoder_hidden_states": torch.from_numpy(given.states)}
    if given.added is not None:
        keywords["added_cond_kwargs"] = {name: torch.from_numpy(each) for name, each in given.added._asdict().items()}
    with torch.no_grad():
        out = unet(latents, TIMESTEP, **keywords, return_dict=False)[0]
    return out.permute(0, 2, 3, 1).contiguous().numpy()


def _our_call(unet: UNet2DConditionModel, given: Inputs, rule: Scaling) -> np.ndarray:
    graph, weights = nnx.split(unet)

    def predict(weights: nnx.State, timesteps: jax.Array, given: Inputs) -> jax.Array:
        return nnx.merge(graph, weights)(given.latents, timesteps, given.states, rule, added=given.added)

    timesteps = jnp.full(1, TIMESTEP, jnp.float32)
    return np.asarray(jax.jit(predict)(weights, timesteps, jax.tree.map(jnp.asarray, given)))


def _margin(layer: SelfAttention, size: Size) -> float:
    tokens = math.prod(math.ceil(side / FACTOR / 2**layer.level) for side in size)
    (entropy,) = layer.record
    return math.log(tokens) - float(entropy.mean())


def _check_disk(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free and the weights take {needed / 1e9:.1f} GB: make room, or leave "
            "the model out with --models"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _key(size: Size, rule: str) -> str:
    return f"{size[0]}x{size[1]} {rule}"
