"""Inception-v3 as FID takes it: the network of 2015-12-05 up to its last pooling, 2,048 features a picture.

It is Szegedy et al. 2016 (arXiv 1512.00567) as the published graph computes it, which differs from later ones: averages
leave out the padding, and the last block pools by the maximum. Names are those of PyTorch's state dicts of these
weights (`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, torch-fidelity's file), given by the user as a file.
"""

from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..errors import UserError
from ..weights.files import Format, WeightFiles
from ..weights.torch_format import AbstractRngs, Match, load_match, match_parameters
from .extractor import Extractor, file_hash
from .resize import CLEAN, clean_batch

SIDE, WIDTH = 299, 2048
_EPSILON = 1e-3
_ENDINGS = {".safetensors": Format.SAFETENSORS, ".pth": Format.PICKLE, ".pt": Format.PICKLE, ".bin": Format.PICKLE}

Hidden = Float[Array, "batch height width channels"]
Mapped = Float[Array, "batch new_height new_width new_channels"]
Kernel = tuple[int, int]


class Make:
    """Makes units of one dtype."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype | type):
        self.rngs, self.dtype = rngs, dtype

    def __call__(self, size_in: int, size_out: int, kernel: int | Kernel = 1, **options: int) -> "BasicConv2d":
        """Of a square or another kernel; `stride`, and `same` for the padding that keeps the size."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        return BasicConv2d(size_in, size_out, kernel, self, **options)


class BasicConv2d(nnx.Module):
    """A convolution without bias, batch normalisation by stored statistics, and the positive part."""

    def __init__(self, size_in: int, size_out: int, kernel: Kernel, make: Make, *, stride: int = 1, same: int = 1):
        margins = [(side // 2, side // 2) if same else (0, 0) for side in kernel]
        self.conv = nnx.Conv(
            size_in,
            size_out,
            kernel,
            strides=stride,
            padding=margins,
            use_bias=False,
            dtype=make.dtype,
            param_dtype=make.dtype,
            rngs=make.rngs,
        )
        self.bn = StoredBatchNorm(size_out, make.dtype)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels], the channels becoming `size_out`."""
        return jax.nn.relu(self.bn(self.conv(hidden)))


class StoredBatchNorm(nnx.Module):
    """Batch normalisation as it is after training."""

    unread: ClassVar = ("num_batches_tracked",)

    def __init__(self, features: int, dtype: jnp.dtype | type):
        self.scale, self.running_var = (nnx.Param(jnp.ones(features, dtype)) for _ in range(2))
        self.bias, self.running_mean = (nnx.Param(jnp.zeros(features, dtype)) for _ in range(2))

    def __call__(self, hidden: Hidden) -> Hidden:
        """Each channel by its own numbers."""
        gain = self.scale[...] * jax.lax.rsqrt(self.running_var[...] + _EPSILON)
        shift = self.bias[...] - self.running_mean[...] * gain
        return hidden * gain.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


class InceptionA(nnx.Module):
    """At 35x35: by 1x1, by 5x5, by 3x3 twice, and the average."""

    def __init__(self, size: int, pooled: int, make: Make):
        self.branch1x1 = make(size, 64)
        self.branch5x5_1, self.branch5x5_2 = make(size, 48), make(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = make(size, 64), make(64, 96, 3), make(96, 96, 3)
        self.branch_pool = make(size, pooled)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels] -> [batch height width 224 + pooled]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        five = self.branch5x5_2(self.branch5x5_1(hidden))
        return _join(self.branch1x1(hidden), five, double, self.branch_pool(_average(hidden)))


class InceptionB(nnx.Module):
    """From 35x35 to 17x17."""

    def __init__(self, size: int, make: Make):
        self.branch3x3 = make(size, 384, 3, stride=2, same=0)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = make(size, 64), make(64, 96, 3)
        self.branch3x3dbl_3 = make(96, 96, 3, stride=2, same=0)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels] -> halved, 480 channels more."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        return _join(self.branch3x3(hidden), double, _maximum(hidden))


class InceptionC(nnx.Module):
    """At 17x17: 7x7 in rows and columns."""

    def __init__(self, size: int, inner: int, make: Make):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = make(size, 192)
        self.branch7x7_1, self.branch7x7_2 = make(size, inner), make(inner, inner, row)
        self.branch7x7_3 = make(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = make(size, inner), make(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = make(inner, inner, row), make(inner, inner, column)
        self.branch7x7dbl_5 = make(inner, 192, row)
        self.branch_pool = make(size, 192)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels] -> [batch height width 768]."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(hidden)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(hidden)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return _join(self.branch1x1(hidden), seven, double, self.branch_pool(_average(hidden)))


class InceptionD(nnx.Module):
    """From 17x17 to 8x8."""

    def __init__(self, size: int, make: Make):
        self.branch3x3_1, self.branch3x3_2 = make(size, 192), make(192, 320, 3, stride=2, same=0)
        self.branch7x7x3_1, self.branch7x7x3_2 = make(size, 192), make(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = make(192, 192, (7, 1)), make(192, 192, 3, stride=2, same=0)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels] -> halved, 512 channels more."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(hidden))))
        return _join(self.branch3x3_2(self.branch3x3_1(hidden)), seven, _maximum(hidden))


class InceptionE(nnx.Module):
    """At 8x8: 3x3 as a row beside a column. The last of the two pools by the maximum."""

    def __init__(self, size: int, make: Make, *, last: bool):
        row, column = (1, 3), (3, 1)
        self.last = last
        self.branch1x1 = make(size, 320)
        self.branch3x3_1 = make(size, 384)
        self.branch3x3_2a, self.branch3x3_2b = make(384, 384, row), make(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = make(size, 448), make(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = make(384, 384, row), make(384, 384, column)
        self.branch_pool = make(size, 192)

    def __call__(self, hidden: Hidden) -> Mapped:
        """[batch height width channels] -> [batch height width 2048]."""
        three, double = self.branch3x3_1(hidden), self.branch3x3dbl_2(self.branch3x3dbl_1(hidden))
        three = _join(self.branch3x3_2a(three), self.branch3x3_2b(three))
        double = _join(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double))
        pooled = _maximum(hidden, stride=1) if self.last else _average(hidden)
        return _join(self.branch1x1(hidden), three, double, self.branch_pool(pooled))


class InceptionV3(nnx.Module):
    """Pixels to 2,048 features, which are not negative."""

    unread: ClassVar = ("fc.weight", "fc.bias")

    def __init__(self, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Make(rngs, dtype)
        self.Conv2d_1a_3x3 = make(3, 32, 3, stride=2, same=0)
        self.Conv2d_2a_3x3 = make(32, 32, 3, same=0)
        self.Conv2d_2b_3x3 = make(32, 64, 3)
        self.Conv2d_3b_1x1 = make(64, 80)
        self.Conv2d_4a_3x3 = make(80, 192, 3, same=0)
        self.Mixed_5b, self.Mixed_5c = InceptionA(192, 32, make), InceptionA(256, 64, make)
        self.Mixed_5d, self.Mixed_6a = InceptionA(288, 64, make), InceptionB(288, make)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128, make), InceptionC(768, 160, make)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160, make), InceptionC(768, 192, make)
        self.Mixed_7a = InceptionD(768, make)
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280, make, last=False), InceptionE(2048, make, last=True)

    def __call__(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch 2048"]:
        """[batch height width 3] from 0 to 255, not rounded -> [batch 2048]. FID's pictures are 299x299."""
        hidden = (pixels - 128) / 128
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(hidden)))
        hidden = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_maximum(hidden)))
        hidden = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_maximum(hidden)))))
        hidden = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(hidden))))
        hidden = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden)))
        return hidden.mean(axis=(1, 2))


def load_inception(file: str | Path, dtype: jnp.dtype | type = jnp.float32) -> InceptionV3:
    """The network with the weights of a state dict, in safetensors or as PyTorch saves it (tensors only are read).

    Raises UserError as `match_inception` does.
    """
    module = load_match(match_inception(file, dtype), dtype)
    assert isinstance(module, InceptionV3)
    return module


def match_inception(file: str | Path, dtype: jnp.dtype | type = jnp.float32) -> Match:
    """Which tensor of the file is which parameter, before any is read; touches no device.

    Raises UserError for a file that is missing or holds other weights.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(
            f"Inception weights {str(file)!r} do not exist: give the file that pytorch-fid calls pt_inception"
        )
    if file.suffix not in _ENDINGS:
        raise UserError(f"Inception weights {str(file)!r} end in {file.suffix!r}: read are {', '.join(_ENDINGS)}")
    files = WeightFiles((file,), format=_ENDINGS[file.suffix])
    return match_parameters(lambda: InceptionV3(rngs=AbstractRngs(), dtype=dtype), files)


def inception_extractor(file: str | Path) -> Extractor:
    """FID's extractor: `clean_resize` to 299x299, then Inception. Raises UserError as `match_inception` does."""
    module = load_inception(file)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(_features(module, jnp.asarray(clean_batch(images, SIDE, SIDE))))

    return Extractor("", file_hash(Path(file)), WIDTH, CLEAN, run)


@nnx.jit
def _features(module: InceptionV3, pixels: Array) -> Array:
    return module(pixels)


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _average(hidden: Array) -> Array:
    """Over 3x3, of what lies inside the picture."""
    return nnx.avg_pool(hidden, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def _maximum(hidden: Array, *, stride: int = 2) -> Array:
    """Over 3x3: halved without padding, or at stride 1 of the same size."""
    return nnx.max_pool(hidden, (3, 3), strides=(stride, stride), padding="SAME" if stride == 1 else "VALID")
