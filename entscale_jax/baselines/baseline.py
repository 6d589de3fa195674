"""What every baseline is: the size that the model draws, how it draws it, and what is made of the pictures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from jaxtyping import UInt8
from numpy import ndarray

from ..pipeline import Output, TextToImage
from ..program_cache import ProgramMemory
from ..scales import Scaling
from ..weights.folder import ModelInfo
from ..weights.upscaler_folder import UpscalerInfo

Drawn = UInt8[ndarray, "batch H W 3"]
Pixels = UInt8[ndarray, "batch height width 3"]
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Baseline(ABC):
    """A way to draw at sizes off the training size with the scale that the model was trained with.

    A subclass is a frozen dataclass; its fields, of which each has a default, are the options that users write.
    """

    name: ClassVar[str]
    """As users write it."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The fields that are not at their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells a sweep's cell of it from those of its other options."""
        return self.options

    @property
    def label(self) -> str:
        """A short name that tells two methods apart: `multidiffusion`, `multidiffusion:stride=16`."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    @property
    @abstractmethod
    def denoises_as(self) -> str:
        """The label of a method that runs the same denoising program at the size that is drawn, or the own one."""

    def check(self, info: ModelInfo) -> None:
        """Raises UserError where the options do not fit the model."""
        return

    def drawn_size(self, info: ModelInfo, size: Size) -> Size:
        """The size that the model draws for pictures of `size`."""
        return size

    @abstractmethod
    def keywords(self, info: ModelInfo, drawn: Size) -> dict[str, Any]:
        """How `TextToImage` is called and compiled for pictures that are drawn in this size."""

    def work(self, info: ModelInfo, drawn: Size, calls: int = 1, upscaler: UpscalerInfo | None = None) -> float:
        """Latent cells that a step denoises, over those of a picture, where the model is called so often.

        `upscaler` is of the second model that the method has, if it has one.
        """
        return 1.0

    def developed(
        self, pipe: TextToImage, output: Output, prompts: str | Sequence[str], options: Mapping[str, Any]
    ) -> Output:
        """What a second model makes of the drawn pictures; `options` are those of the call that drew them."""
        return output

    def finish(self, images: Drawn, size: Size) -> Pixels:
        """The pictures of `size` from the drawn ones."""
        return images

    def draw(
        self,
        pipe: TextToImage,
        prompts: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        **options: Any,
    ) -> Output:
        """One picture a caption, as a call of `pipe` with these keywords, which has no rule of its own.

        The latents that are returned are those that were drawn. Raises UserError for an input that can't be drawn.
        """
        size = _size(pipe.info, height, width)
        drawn = self.drawn_size(pipe.info, size)
        output = pipe(prompts, **_sides(drawn), **self.keywords(pipe.info, drawn), **options)
        if output.images is None:
            return output
        output = self.developed(pipe, output, prompts, options)
        return replace(output, images=self.finish(output.images, size))  # pyright: ignore[reportArgumentType]

    def compile(
        self, pipe: TextToImage, *, height: int | None = None, width: int | None = None, **options: Any
    ) -> dict[str, ProgramMemory]:
        """Compiles ahead of time what `draw` runs with these keywords; takes and returns as `TextToImage.compile`."""
        drawn = self.drawn_size(pipe.info, _size(pipe.info, height, width))
        return pipe.compile(**_sides(drawn), **self.keywords(pipe.info, drawn), **options)


ORIGINAL = Scaling.of("original")
"""The scale of training."""


def _size(info: ModelInfo, height: int | None, width: int | None) -> Size:
    default = info.train_size
    return default[0] if height is None else height, default[1] if width is None else width


def _sides(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
