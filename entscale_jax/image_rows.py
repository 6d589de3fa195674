"""One image over several devices: its rows are split over a mesh, and XLA exchanges what the layers need of others'."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class ImageRows:
    """Splits images over the devices of a mesh of one axis. Weights and text are whole on each of them.

    Where their number does not divide the rows of latents, XLA draws right and saves no memory.
    """

    mesh: Mesh

    @classmethod
    def over(cls, devices: Sequence[Any]) -> "ImageRows":
        """Over these devices, in their order."""
        return cls(jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices))

    @property
    def whole(self) -> NamedSharding:
        """Of what every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, images: jax.Array) -> jax.Array:
        """Inside a program: images [batch height ...] of which each device has some rows."""
        return jax.lax.with_sharding_constraint(images, NamedSharding(self.mesh, PartitionSpec(None, "rows")))

    def join(self, arrays: Tree) -> Tree:
        """Inside a program: arrays of which every device has a copy."""
        return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, self.whole), arrays)
