"""Draws at the training size, enlarges by a super-resolution model, then resizes, as in the paper's Figure 7.

The scale of self-attention is that of training in both models: the upscaler is a peer of the scale rule, not its user.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UserError
from ..pipeline import Output, TextToImage
from ..program_cache import ProgramMemory, most_of
from ..upscaler import STEPS, Upscaled, Upscaler
from ..weights.folder import ModelInfo
from ..weights.upscaler_folder import GUIDANCE, NOISE_LEVEL, UpscalerInfo
from .baseline import Drawn, Size
from .resize import Resize


@dataclass(frozen=True)
class Upscale(Resize):
    """The whole picture is enlarged, told the same caption, and what fills the frame is then resized as by `Resize`.

    A picture of the training size, or a smaller one, is enlarged too, and then shrunk.
    """

    upscaler: str = ""
    """Folder or hub id of diffusers' `StableDiffusionUpscalePipeline` or `LDMSuperResolutionPipeline`."""
    steps: int = STEPS
    guidance: float = GUIDANCE
    noise_level: int = NOISE_LEVEL

    name: ClassVar = "upscale"

    def __post_init__(self):
        if not self.upscaler:
            raise UserError(
                "baseline upscale needs a model that enlarges pictures: write {baseline: upscale, upscaler: FOLDER}"
            )
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance is {self.guidance!r}: give a finite number")

    @property
    def label(self) -> str:
        """`upscale:NAME` with the last name of the upscaler's folder or id, and what is not at its default."""
        others = "".join(f",{name}={value}" for name, value in self.options.items() if name != "upscaler")
        return f"{self.name}:{Path(self.upscaler).name}{others}"

    @property
    def identity(self) -> Mapping[str, Any]:
        # By themselves: steps and guidance are names of the first model's, too.
        return {self.name: dict(self.options)}

    def check_upscaler(self, found: UpscalerInfo) -> None:
        """Raises UserError where the options do not fit the model that enlarges."""
        found.guidance(self._given("guidance"))
        found.noise_level(self._given("noise_level"))
        found.check_sampler(found.model.schedule, self.steps)

    def work(self, info: ModelInfo, drawn: Size, calls: int = 1, upscaler: UpscalerInfo | None = None) -> float:
        """With the upscaler's calls, in which each pixel is a latent cell and a cell counts as much as the model's.

        Raises UserError where the upscaler takes no picture of this size.
        """
        guidance, seen = self.guidance, drawn
        if upscaler is not None:
            guidance, seen = upscaler.guidance(self._given("guidance")), upscaler.fitted_size(*drawn)
        own = self.steps * (2 if guidance != 1.0 else 1)
        return 1.0 + math.prod(seen) / math.prod(drawn) * info.latent_factor**2 * own / calls

    def make_ready(self, upscaler: Upscaler, drawn: Size, *, tiling: bool = False) -> dict[str, ProgramMemory]:
        """Compiles what `enlarge` runs on pictures of this size; returns what that needs, by program."""
        height, width = drawn
        own = {"steps": self.steps, "guidance": self._given("guidance")}
        return upscaler.compile(height=height, width=width, tiling=tiling, **own)

    def enlarge(
        self, upscaler: Upscaler, images: Drawn, prompts: Sequence[str], seed: int | Sequence[int], **options: Any
    ) -> Upscaled:
        """The drawn pictures by the opened upscaler, one after the other."""
        own = {"steps": self.steps, **{name: self._given(name) for name in ("guidance", "noise_level")}}
        return upscaler(images, prompts, seed=seed, **own, **options)

    def developed(
        self, pipe: TextToImage, output: Output, prompts: str | Sequence[str], options: Mapping[str, Any]
    ) -> Output:
        also = {name: options[name] for name in ("negative_prompt", "tiling") if name in options}
        made = self.enlarge(self._opened(pipe), output.images, prompts, options.get("seed", 0), **also)  # pyright: ignore[reportArgumentType]
        broken = made.broken if output.broken is None else output.broken + made.broken
        return replace(output, images=made.images, broken=broken)

    def compile(
        self, pipe: TextToImage, *, height: int | None = None, width: int | None = None, **options: Any
    ) -> dict[str, ProgramMemory]:
        memory = super().compile(pipe, height=height, width=width, **options)
        if not options.get("decode", True):
            return memory
        own = self.make_ready(self._opened(pipe), pipe.info.train_size, tiling=options.get("tiling", False))
        return most_of(memory, own)

    def _given(self, option: str) -> Any:
        """An option's value, None at its default: that is the upscaler's own, where it has such an option."""
        return self.options.get(option)

    def _opened(self, pipe: TextToImage) -> Upscaler:
        return _open(self.upscaler, pipe.unet.conv_in.kernel.get_value().dtype)


@lru_cache(1)
def _open(upscaler: str, dtype: Any) -> Upscaler:
    """Kept, as every call of `draw` wants it."""
    return Upscaler.from_pretrained(upscaler, dtype=dtype)
