"""Commands that draw: pictures, the entropy of their attention, their time."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..buckets import parse_size
from .application import app
from .options import (
    AllowPickle,
    Model,
    Revision,
    TrainEntropyFile,
    TrainSize,
    Variant,
    read_multiplier,
    read_rule,
    read_seeds,
    read_size,
)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One caption or several.", metavar="CAPTION...")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the training size if not given.")] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="original, entropy (the paper's), fixed with --multiplier, or calibrated; or one of the paper's "
            "comparison: resize, multidiffusion, or upscale with --upscaler."
        ),
    ] = "entropy",
    upscaler: Annotated[
        str | None,
        typer.Option(help="For --rule upscale: a diffusers folder or hub id that enlarges.", show_default=False),
    ] = None,
    multiplier: Annotated[
        str, typer.Option(help="Of 1/sqrt(d), for rule fixed: a number, or one a level as 0.9,0.9,0.8,0.8.")
    ] = "1",
    train_entropy: TrainEntropyFile = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, pndm, euler, euler_ancestral or dpmsolver++; the model's if not given.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Start from this picture, at its size.", show_default=False)
    ] = None,
    strength: Annotated[float, typer.Option(help="With --image, the share of the steps that is run.")] = 0.8,
    model: Model = "scenes",
    train_size: TrainSize = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Draw so many captions at a time; all if not given.", show_default=False)
    ] = None,
    tiling: Annotated[bool, typer.Option("--tiling", help="Decode in tiles, for pictures too large at once.")] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PNG to write; of several pictures, out-0.png, out-1.png and so on.")
    ] = Path("out.png"),
) -> None:
    """Draw captions and write PNG files whose text chunks say what made them."""
    from ..generate import Job, run

    run(
        Job(
            prompts=tuple(prompts),
            model=model,
            size=read_size(size),
            rule=rule,
            upscaler=upscaler,
            multiplier=read_multiplier(multiplier),
            train_entropy=train_entropy,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            seed=seed,
            negative_prompt=negative_prompt,
            image=image,
            strength=strength,
            tiling=tiling,
            max_batch=max_batch,
            opening={
                "dtype": dtype,
                "train_size": read_size(train_size),
                "revision": revision,
                "variant": variant,
                "allow_pickle": allow_pickle,
            },
            out=out,
        ),
        Console(stderr=True),
    )


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, a file with one a line, or scenes; may be given again.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    seeds: Annotated[str, typer.Option(help="With commas: caption i is drawn with s + i for each s.")] = "0",
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="The model's if not given.", show_default=False)] = None,
    train_size: TrainSize = None,
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON to write.")] = Path("train_entropy.json"),
) -> None:
    """Measure the entropy of self-attention at the training size, which rule calibrated keeps at others."""
    from ..calibration import run

    run(
        model,
        prompts or [],
        out,
        console=Console(stderr=True),
        steps=steps,
        seeds=read_seeds(seeds),
        guidance=guidance,
        sampler=sampler,
        train_size=read_size(train_size),
        revision=revision,
        variant=variant,
        allow_pickle=allow_pickle,
    )


@app.command()
def entropy(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    sizes: Annotated[str, typer.Option(help="WIDTHxHEIGHT of two token counts or more, with commas.")],
    rules: Annotated[
        str, typer.Option(help="With commas, such as entropy,fixed:0.8; original is always measured.")
    ] = "original,entropy",
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, or a file with one a line; may be given again.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Captions to draw. [default: all; 32 of the built-in model]", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 8,
    train_size: TrainSize = None,
    out: Annotated[Path, typer.Option(help="Folder for values and figures.")] = Path("runs/entropy"),
    document: Annotated[
        Path | None,
        typer.Option(
            help="Also write section `entropy` of this document, such as docs/method.md, and its pictures beside it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the entropy of self-attention at many sizes: its line against log N, and what each rule brings back."""
    from ..entropy_study import Plan, read_prompts
    from ..reports.entropy.entropy_command import Job, run

    plan = Plan(
        sizes=tuple(parse_size(text) for text in sizes.split(",") if text.strip()),
        rules=tuple(read_rule(text.strip()) for text in rules.split(",") if text.strip()),
        captions=read_prompts(prompts or (), count, model),
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch=batch,
    )
    command = shlex.join(["entscale", *sys.argv[1:]])
    job = Job(model=model, plan=plan, train_size=read_size(train_size), out=out, document=document, command=command)
    run(job, Console(stderr=True))


@app.command()
def profile(
    model: Annotated[
        str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")
    ] = "scenes",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the training size if not given.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 5,
    rule: Annotated[str, typer.Option(help="Of self-attention.")] = "entropy",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    out: Annotated[Path, typer.Option(help="A folder for the trace, which XProf and TensorBoard open.")] = Path(
        "runs/profile"
    ),
) -> None:
    """Draw one picture under JAX's profiler; print where its time goes, by module and by operation."""
    from ..profiling import print_profile, profile_picture

    found = profile_picture(model, out, size=read_size(size), steps=steps, rule=rule, dtype=dtype)
    print_profile(found, Console())
    print(f"trace: {out}")
