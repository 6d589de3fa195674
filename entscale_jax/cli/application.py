"""The command itself: its options, and how errors end it."""

import sys
from typing import Annotated, cast

import typer

from ..errors import UserError

app = typer.Typer(
    help="Draw at sizes that a diffusion model was not trained at, by the scale of its self-attention.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

train_app = typer.Typer(help="Train a model from nothing.")
app.add_typer(train_app, name="train")

# Click's, which one version of typer imports and another holds a copy of.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def main() -> None:
    """Runs the command. A user's mistake is one line on standard error and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "entscale"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except UserError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'entscale-jax[{extra}]'", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


_EXTRAS = {
    "ray": "sweep",
    "pyarrow": "sweep",
    "s3fs": "cloud",
    "gcsfs": "cloud",
    "fsspec": "cloud",
    "torch": "parity",
    "diffusers": "parity",
    "optax": "train",
    "jinja2": "report",
    "matplotlib": "report",
}


def _fail(message: str, code: int) -> None:
    print(f"entscale: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def entscale(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Draw at sizes that a diffusion model was not trained at, by the scale of its self-attention."""
    if version:
        from .. import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
