"""Options that several commands share, and how their texts are read."""

from pathlib import Path
from typing import Annotated, overload

import typer

from ..buckets import parse_size
from ..errors import UserError
from ..scales import Scaling

Model = Annotated[str, typer.Option(help="A diffusers folder, a hub id, or scenes, the built-in model.")]
TrainSize = Annotated[
    str | None,
    typer.Option(help="WIDTHxHEIGHT in training, where the model's config does not say it right.", show_default=False),
]
Revision = Annotated[str | None, typer.Option(help="Of a hub id: a branch, a tag or a commit.", show_default=False)]
Variant = Annotated[str | None, typer.Option(help="Of the weights' files, such as fp16.", show_default=False)]
TrainEntropyFile = Annotated[
    Path | None,
    typer.Option(
        "--train-entropy", help="For rule calibrated, what entscale calibrate wrote; the model's if not given."
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read PyTorch's .bin where there are no safetensors.")
]
Resume = Annotated[bool, typer.Option(help="Keep what the run folder holds, or draw all of it again.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Draw cells again that failed before.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first cell that fails.")]
MaxFailures = Annotated[
    int | None, typer.Option(min=1, help="Stop at so many cells that fail; never if not given.", show_default=False)
]


@overload
def read_size(text: str) -> tuple[int, int]: ...
@overload
def read_size(text: str | None) -> tuple[int, int] | None: ...
def read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT."""
    if text is None:
        return None
    width, height = parse_size(text)
    return height, width


def read_seeds(text: str) -> tuple[int, ...]:
    """One seed, or several with commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r} is no list of whole numbers: write 0, or 0,1000") from None


def read_rule(text: str) -> Scaling:
    """A rule's name; `fixed` with its multiplier of all levels, as fixed:0.8."""
    name, _, multiplier = text.partition(":")
    return Scaling.of(name, read_multiplier(multiplier) if multiplier else 1.0)


def read_multiplier(text: str) -> float | tuple[float, ...]:
    """One of all levels, or one a level with commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--multiplier {text!r} is no number: write 0.8, or one a level as 0.9,0.9,0.8,0.8") from None
    return values[0] if len(values) == 1 else values
