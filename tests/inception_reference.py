"""Inception-v3 of 2015-12-05 in PyTorch as a table of its convolutions and a walk over it, apart from ours."""

import torch
import torch.nn.functional as F
from torch import nn

ONE, THREE, ROW, COLUMN = (1, 1), (3, 3), (1, 7), (7, 1)


def _a(size, pool):
    return {
        "branch1x1": (size, 64, ONE),
        "branch5x5_1": (size, 48, ONE),
        "branch5x5_2": (48, 64, (5, 5)),
        "branch3x3dbl_1": (size, 64, ONE),
        "branch3x3dbl_2": (64, 96, THREE),
        "branch3x3dbl_3": (96, 96, THREE),
        "branch_pool": (size, pool, ONE),
    }


def _c(inner):
    return {
        "branch1x1": (768, 192, ONE),
        "branch7x7_1": (768, inner, ONE),
        "branch7x7_2": (inner, inner, ROW),
        "branch7x7_3": (inner, 192, COLUMN),
        "branch7x7dbl_1": (768, inner, ONE),
        "branch7x7dbl_2": (inner, inner, COLUMN),
        "branch7x7dbl_3": (inner, inner, ROW),
        "branch7x7dbl_4": (inner, inner, COLUMN),
        "branch7x7dbl_5": (inner, 192, ROW),
        "branch_pool": (768, 192, ONE),
    }


def _e(size):
    return {
        "branch1x1": (size, 320, ONE),
        "branch3x3_1": (size, 384, ONE),
        "branch3x3_2a": (384, 384, (1, 3)),
        "branch3x3_2b": (384, 384, (3, 1)),
        "branch3x3dbl_1": (size, 448, ONE),
        "branch3x3dbl_2": (448, 384, THREE),
        "branch3x3dbl_3a": (384, 384, (1, 3)),
        "branch3x3dbl_3b": (384, 384, (3, 1)),
        "branch_pool": (size, 192, ONE),
    }


BLOCKS = {
    "": {
        "Conv2d_1a_3x3": (3, 32, THREE),
        "Conv2d_2a_3x3": (32, 32, THREE),
        "Conv2d_2b_3x3": (32, 64, THREE),
        "Conv2d_3b_1x1": (64, 80, ONE),
        "Conv2d_4a_3x3": (80, 192, THREE),
    },
    "Mixed_5b": _a(192, 32),
    "Mixed_5c": _a(256, 64),
    "Mixed_5d": _a(288, 64),
    "Mixed_6a": {
        "branch3x3": (288, 384, THREE),
        "branch3x3dbl_1": (288, 64, ONE),
        "branch3x3dbl_2": (64, 96, THREE),
        "branch3x3dbl_3": (96, 96, THREE),
    },
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": {
        "branch3x3_1": (768, 192, ONE),
        "branch3x3_2": (192, 320, THREE),
        "branch7x7x3_1": (768, 192, ONE),
        "branch7x7x3_2": (192, 192, ROW),
        "branch7x7x3_3": (192, 192, COLUMN),
        "branch7x7x3_4": (192, 192, THREE),
    },
    "Mixed_7b": _e(1280),
    "Mixed_7c": _e(2048),
}
# Those that see no padding; the ones that halve the size among them.
HALVING = {
    *("Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3"),
    *("Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"),
}
VALID = {*HALVING, "Conv2d_2a_3x3", "Conv2d_4a_3x3"}


def random_weights(seed=0):
    """A state dict whose features keep a spread through all layers, with every statistic away from its start."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(size, low, high):
        return torch.rand(size, generator=generator) * (high - low) + low

    weights = {}
    for block, units in BLOCKS.items():
        for unit, (size_in, size_out, kernel) in units.items():
            name = f"{block}.{unit}".lstrip(".")
            fan = size_in * kernel[0] * kernel[1]
            weights[f"{name}.conv.weight"] = (
                torch.randn(size_out, size_in, *kernel, generator=generator) * (2 / fan) ** 0.5
            )
            weights[f"{name}.bn.weight"] = uniform(size_out, 0.7, 1.3)
            weights[f"{name}.bn.bias"] = uniform(size_out, -0.2, 0.2)
            weights[f"{name}.bn.running_mean"] = uniform(size_out, -0.2, 0.2)
            weights[f"{name}.bn.running_var"] = uniform(size_out, 0.6, 1.4)
            weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    return weights


class Inception(nn.Module):
    """Features of NCHW pixels from 0 to 255. `count_padding` and `average_last` are what later versions do instead."""

    def __init__(self, weights, *, count_padding=False, average_last=False):
        super().__init__()
        self.weights, self.count_padding, self.average_last = weights, count_padding, average_last

    def unit(self, name, hidden):
        kernel, stride = self.weights[f"{name}.conv.weight"], 2 if name in HALVING else 1
        padding = (0, 0) if name in VALID else (kernel.shape[2] // 2, kernel.shape[3] // 2)
        hidden = F.conv2d(hidden, kernel, stride=stride, padding=padding)
        numbers = [self.weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(hidden, *numbers, training=False, eps=1e-3))

    def chain(self, block, stem, hidden, parts):
        for part in parts:
            hidden = self.unit(f"{block}.{stem}{part}", hidden)
        return hidden

    def pooled(self, block, hidden):
        if block == "Mixed_7c" and not self.average_last:
            hidden = F.max_pool2d(hidden, 3, 1, 1)
        else:
            hidden = F.avg_pool2d(hidden, 3, 1, 1, count_include_pad=self.count_padding)
        return self.unit(f"{block}.branch_pool", hidden)

    def block(self, block, x):
        if block.startswith("Mixed_5"):
            five, double = self.chain(block, "branch5x5_", x, "12"), self.chain(block, "branch3x3dbl_", x, "123")
            return torch.cat([self.unit(f"{block}.branch1x1", x), five, double, self.pooled(block, x)], 1)
        if block == "Mixed_6a":
            double = self.chain(block, "branch3x3dbl_", x, "123")
            return torch.cat([self.unit(f"{block}.branch3x3", x), double, F.max_pool2d(x, 3, 2)], 1)
        if block.startswith("Mixed_6"):
            seven, double = self.chain(block, "branch7x7_", x, "123"), self.chain(block, "branch7x7dbl_", x, "12345")
            return torch.cat([self.unit(f"{block}.branch1x1", x), seven, double, self.pooled(block, x)], 1)
        if block == "Mixed_7a":
            three, seven = self.chain(block, "branch3x3_", x, "12"), self.chain(block, "branch7x7x3_", x, "1234")
            return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        three, double = self.chain(block, "branch3x3_", x, "1"), self.chain(block, "branch3x3dbl_", x, "12")
        three = [self.chain(block, "branch3x3_2", three, side) for side in "ab"]
        double = [self.chain(block, "branch3x3dbl_3", double, side) for side in "ab"]
        return torch.cat([self.unit(f"{block}.branch1x1", x), *three, *double, self.pooled(block, x)], 1)

    @torch.no_grad()
    def forward(self, pixels):
        x = (pixels - 128) / 128
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = self.unit(name, x)
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.unit("Conv2d_4a_3x3", self.unit("Conv2d_3b_1x1", x)), 3, 2)
        for block in list(BLOCKS)[1:]:
            x = self.block(block, x)
        return x.mean(dim=(2, 3))
