"""Commands about models: what they are, in which format they are, whether they are PyTorch's."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .application import app
from .options import AllowPickle, Model, Revision, TrainEntropyFile, TrainSize, Variant, read_size


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT: tokens and multipliers there, too.", show_default=False)
    ] = None,
    train_size: TrainSize = None,
    revision: Revision = None,
) -> None:
    """Print a model's family, training size and self-attention without fetching or loading its weights."""
    from ..model_summary import print_model
    from ..weights.folder import describe

    info = describe(model, train_size=read_size(train_size), revision=revision, weights=False)
    print_model(info, read_size(size), Console())


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    out: Annotated[Path, typer.Argument(help="A new folder, which --model then takes.")],
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a model as orbax checkpoints with a manifest: arrays in JAX's layout, read by each device by itself."""
    from ..weights.convert import convert

    with Console(stderr=True).status("converting"):
        convert(model, out, revision=revision, variant=variant, allow_pickle=allow_pickle)
    print(f"wrote {out}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that entscale convert wrote.")],
    out: Annotated[Path, typer.Argument(help="A new folder, which PyTorch diffusers opens.")],
) -> None:
    """Write the diffusers folder that a converted model came from, with the same tensors bit for bit."""
    from ..weights.convert import export

    with Console(stderr=True).status("exporting"):
        export(checkpoint, out)
    print(f"wrote {out}")


@app.command()
def parity(
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")],
    model: Model = "scenes",
    steps: Annotated[int | None, typer.Option(help="Compare a run of DDIM of so many steps, too.")] = None,
    rules: Annotated[str, typer.Option(help="Rules to compare under, with commas.")] = "original,entropy",
    train_entropy: TrainEntropyFile = None,
    float64: Annotated[bool, typer.Option("--float64", help="Compute both sides in float64.")] = False,
    train_size: TrainSize = None,
) -> None:
    """Compare a model in PyTorch diffusers and here, module by module; exit code 1 where a bound is missed."""
    from ..parity import compare, exit_status, print_table

    width_height = read_size(size)
    with Console(stderr=True).status("comparing"):
        rows = compare(
            model,
            size=(width_height[1], width_height[0]),
            rules=[name.strip() for name in rules.split(",") if name.strip()],
            steps=steps,
            float64=float64,
            train_entropy=train_entropy,
            train_size=read_size(train_size),
        )
    print_table(rows)
    raise typer.Exit(exit_status(rows))
