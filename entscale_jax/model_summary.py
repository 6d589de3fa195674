"""What `entscale inspect` prints: a model's family, training size and attention, from its configs alone."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .scales import ScaleRule, Scaling
from .weights.folder import ModelInfo

_ENTROPY = Scaling(ScaleRule.ENTROPY)


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
        "heads": [str(info.unet.heads[level]) for level in info.unet.attention_levels],
        "head width": [
            str(info.unet.block_out_channels[level] // info.unet.heads[level]) for level in info.unet.attention_levels
        ],
        "T": [str(info.train_tokens[level]) for level in info.unet.attention_levels],
    }
    if size is not None:
        bucket = info.bucket(*size)
        now, multipliers = info.tokens(bucket), info.multipliers(bucket, _ENTROPY)
        columns[f"N at {bucket}"] = [str(now[level]) for level in info.unet.attention_levels]
        columns["multiplier, entropy"] = [f"{multipliers[level]:.3f}" for level in info.unet.attention_levels]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in columns:
        table.add_column(name, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
