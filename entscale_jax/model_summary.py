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
    tables = [_levels(info, size)]  # first, as it may raise
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
    for table in tables:
        console.print(table)


def _levels(info: ModelInfo, size: tuple[int, int] | None) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("level", "heads", "head width", "T"):
        table.add_column(name, justify="right")
    if size is not None:
        bucket = info.bucket(*size)
        for name in (f"N at {bucket}", "multiplier, entropy"):
            table.add_column(name, justify="right")
        now, multipliers = info.tokens(bucket), info.multipliers(bucket, _ENTROPY)
    for level in info.unet.attention_levels:
        heads = info.unet.heads[level]
        row = [str(level), str(heads), str(info.unet.block_out_channels[level] // heads), str(info.train_tokens[level])]
        if size is not None:
            row += [str(now[level]), f"{multipliers[level]:.3f}"]
        table.add_row(*row)
    return table
