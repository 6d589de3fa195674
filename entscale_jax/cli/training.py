"""Commands that train a model from nothing."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .application import train_app


@train_app.command("scenes")
def train_scenes(
    out: Annotated[Path, typer.Option(help="Diffusers folder to write, replaced as training goes on.")] = Path(
        "runs/scenes-model"
    ),
    checkpoints: Annotated[Path, typer.Option(help="Where checkpoints and log.jsonl are kept.")] = Path(
        "runs/train-scenes"
    ),
    config: Annotated[
        Path | None, typer.Option(help="YAML with fields of the recipe to change.", show_default=False)
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of an exported folder.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the diffusion stage; the recipe's if not given.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = True,
) -> None:
    """Train the built-in model: an autoencoder, then a UNet with its text encoder. Takes hours on two cores."""
    # One device a core: XLA runs many small operations of a training step on one core each.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
    from ..scenes.recipe import Recipe
    from ..scenes.recipe_file import read_recipe
    from ..scenes.train import train_scenes

    recipe = Recipe() if config is None else read_recipe(config)
    if steps is not None:
        recipe = replace(recipe, diffusion_stage=replace(recipe.diffusion_stage, steps=steps))
    train_scenes(checkpoints, out, recipe=recipe, init=init, resume=resume)
    print(f"wrote {out}")


@train_app.command("scenes-metrics", hidden=True)
def train_scenes_metrics(
    out: Annotated[Path, typer.Option(help="Folder for extractor.safetensors and contrast.safetensors.")] = Path(
        "runs/scenes-metrics/out"
    ),
    checkpoints: Annotated[Path, typer.Option(help="Where checkpoints and log.jsonl are kept.")] = Path(
        "runs/scenes-metrics"
    ),
    part: Annotated[str | None, typer.Option(help="extractor or contrast; both if not given.")] = None,
) -> None:
    """Train the networks that measure scenes: scenes_fid, scenes_kid and scenes_clip."""
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
    from ..scenes.metric_stage import PARTS, train_metrics

    if part not in (None, *PARTS):
        raise UserError(f"--part {part!r} is unknown: give {' or '.join(PARTS)}")
    train_metrics(checkpoints, out, parts=PARTS if part is None else (part,))
    print(f"wrote {out}")
