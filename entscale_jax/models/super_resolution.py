"""The UNet that enlarges pictures, as in Stable Diffusion's x4 upscaler: what its config.json says beyond others'."""

from dataclasses import dataclass

from ..errors import UserError
from .config import per_level
from .unet_2d_condition import UNet2DConditionConfig


@dataclass(frozen=True, kw_only=True)
class SuperResolutionUNetConfig(UNet2DConditionConfig):
    """Of a `UNet2DConditionModel` that is told how much noise the small picture has, by a table with a row a level.

    `in_channels` are those of latents and of the picture, in this order.
    """

    num_class_embeds: int
    only_cross_attention: bool | tuple[bool, ...] = False
    """One a level: true where `attn1` attends to the text, too."""

    def __post_init__(self):
        # True for all levels would be for the middle block too, which one a level is not.
        if self.only_cross_attention is True:
            raise UserError(
                f"{self.model}: only_cross_attention=True: implemented is False, or a list with one a level"
            )
        _ = self.cross_only  # raises for a wrong count
        super().__post_init__()

    @property
    def class_rows(self) -> int:
        return self.num_class_embeds

    @property
    def cross_only(self) -> tuple[bool, ...]:
        return per_level(self.only_cross_attention, self.levels, name=f"{self.model}: only_cross_attention")
