"""The command `entscale`: each subcommand reads its arguments and calls one function of the library."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import UserError

app = typer.Typer(
    help="Draw at sizes that a diffusion model was not trained at, by the scale of its self-attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train a model from nothing.", no_args_is_help=True)
app.add_typer(train_app, name="train")


def main() -> None:
    """Runs the command. A user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'entscale-jax[{extra}]'", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


_EXTRAS = {
    "ray": "sweep",
    "pyarrow": "sweep",
    "torch": "parity",
    "diffusers": "parity",
    "optax": "train",
    "orbax": "train",
    "jinja2": "report",
    "matplotlib": "report",
}


def _fail(message: str, code: int) -> None:
    print(f"entscale: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@train_app.command("scenes")
def train_scenes(
    out: Annotated[Path, typer.Option(help="Diffusers folder to write, replaced as training goes on.")] = Path(
        "runs/scenes-model"
    ),
    checkpoints: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path("runs/train-scenes"),
    steps: Annotated[int | None, typer.Option(help="Steps of the diffusion stage; the recipe's if not given.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = True,
) -> None:
    """Train the built-in model: an autoencoder, then a UNet with its text encoder. Takes hours on two cores."""
    from .scenes.train import train_scenes

    console = Console()
    train_scenes(checkpoints, out, steps=steps, resume=resume, say=console.print)
    console.print(f"wrote {out}")


if __name__ == "__main__":
    main()
