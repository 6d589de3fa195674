"""What `entscale inspect` prints: a model's family, training size and attention, from its configs alone."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .scales import ScaleRule, Scaling, multiplier_text
from .weights.folder import ModelInfo


def print_model(info: ModelInfo, size: tuple[int, int] | None, console: Console) -> None:
    """Prints a model; with `size` (height, width) in pixels also tokens and multipliers there.

    Raises UserError for a size that the model can't draw.
    """
    table = _levels(info, size)  # first, as it may raise
    height, width = info.train_size
    lines = {
        "model": info.name,
        "family": info.family.name,
        "training size": f"{width}x{height}",
        "latent cell": f"{info.latent_factor}x{info.latent_factor} pixels, {info.vae.latent_channels} channels",
        "text": f"{', '.join(map(str, info.text_lengths))} tokens, {info.unet.cross_attention_dim} wide",
        "sampler": f"{info.schedule.name}, {info.schedule.prediction_type}",
    }
    for name, value in lines.items():
        console.print(f"{name + ':':15}{value}", highlight=False, markup=False, soft_wrap=True)
    console.print(table)


def _levels(info: ModelInfo, size: tuple[int, int] | None) -> Table:
    columns = {
        "level": [str(level) for level in info.unet.attention_levels],
        "heads": _of_attention(info, info.unet.heads),
        "head width": [
            str(info.unet.block_out_channels[level] // info.unet.heads[level]) for level in info.unet.attention_levels
        ],
        "T": _of_attention(info, info.train_tokens),
    }
    if size is not None:
        bucket = info.bucket(*size)
        now = info.tokens(bucket)
        columns[f"N at {bucket}"] = _of_attention(info, now)
        for scaling in _scalings(info):
            multipliers = map(multiplier_text, info.multipliers(bucket, scaling))
            columns[f"multiplier, {scaling.label}"] = _of_attention(info, list(multipliers))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in columns:
        table.add_column(name, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _scalings(info: ModelInfo) -> list[Scaling]:
    """The rules to show: the paper's, and `calibrated` of a model that ships its E_T."""
    entropy = info.train_entropy
    calibrated = [] if entropy is None else [Scaling(ScaleRule.CALIBRATED, train_entropy=entropy)]
    return [Scaling(ScaleRule.ENTROPY), *calibrated]


def _of_attention(info: ModelInfo, values: Sequence[object]) -> list[str]:
    """Those of the levels that have self-attention."""
    return [str(values[level]) for level in info.unet.attention_levels]
