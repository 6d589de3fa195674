"""Trains the built-in model from nothing: autoencoder, then UNet and text encoder, then the folder that ships."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..models import AutoencoderKL
from ..weights.tokenizer import Tokenizer
from .autoencoder_stage import train_autoencoder
from .diffusion_stage import TextToLatents, train_diffusion
from .export import export_folder
from .recipe import Recipe
from .tokenizer import write_tokenizer


def train_scenes(
    checkpoints: Path, out: Path, *, steps: int | None = None, resume: bool = True, say: Callable[[str], None] = print
) -> None:
    """Runs both stages with checkpoints under `checkpoints`, and writes the diffusers folder `out` at each of them.

    Args:
        checkpoints: one folder a stage, and the tokenizer.
        out: the exported model, replaced as training goes on.
        steps: of the second stage, instead of the recipe's.
        resume: continue what `checkpoints` holds; without it a folder that holds something is refused.
        say: gets each remark.
    """
    recipe = Recipe()
    if steps is not None:
        recipe = replace(recipe, diffusion_stage=replace(recipe.diffusion_stage, steps=steps))
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise UserError(f"{checkpoints} holds an earlier training: give --resume to go on, or another folder")
    write_tokenizer(checkpoints / "tokenizer")
    vocab_size = len(json.loads((checkpoints / "tokenizer" / "vocab.json").read_text()))
    tokenize = Tokenizer(checkpoints / "tokenizer", recipe.text.max_position_embeddings)
    autoencoder, factor = train_autoencoder(recipe, checkpoints / "autoencoder", resume=resume)
    say(f"autoencoder: scaling_factor {factor:.4f}")

    def watch(step: int, modules: TextToLatents) -> str:
        _export(out, recipe, autoencoder, modules, factor)
        return _remark(out)

    train_diffusion(
        recipe, autoencoder, factor, tokenize, vocab_size, checkpoints / "diffusion", resume=resume, watch=watch
    )


def _export(
    out: Path, recipe: Recipe, autoencoder: AutoencoderKL, modules: TextToLatents, scaling_factor: float
) -> None:
    export_folder(
        out, recipe, unet=modules.unet, autoencoder=autoencoder, text=modules.text, scaling_factor=scaling_factor
    )


def _remark(out: Path, count: int = 24) -> str:
    from ..pipeline import TextToImage
    from .evaluate import evaluate

    score, _, _ = evaluate(TextToImage.from_pretrained(out), count=count, batch=count)
    return f"- {count} captions at the training size: {score}"
