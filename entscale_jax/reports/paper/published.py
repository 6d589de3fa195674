"""The figures that the paper prints, to stand beside those of a run.

Source: Jin, Shen, Li, Xue, "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis",
NeurIPS 2023, tables 1 to 5.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..records import Size

SD, LDM = "stable-diffusion-2-1-base", "ldm-text2im-large-256"
ORIGINAL, ENTROPY = "original", "entropy"
_DATA = {SD: "LAION-5B", LDM: "LAION-400M"}
_WHAT = {
    "fid": ("captions of {data}, compared with its pictures", "extractor, resize, sampler, steps and guidance"),
    "clip": ("captions of {data}", "CLIP model, resize, sampler, steps and guidance"),
    "rating": ("rated by 45 people", "sampler, steps and guidance"),
    "seconds": ("on a server with four A100s", "images at once, sampler, steps and guidance"),
}
"""By metric what its figures are of, and what it does not tell of them."""


class Published(NamedTuple):
    """A figure of the paper."""

    table: int
    value: float
    pictures: int | None
    """Pictures that it is of, where the paper says so."""


def _by_size(table: int, count: int, lines: Mapping[str, tuple[float, float]]) -> dict[tuple[str, str], Published]:
    return {
        (size, method): Published(table, value, count)
        for size, values in lines.items()
        for method, value in zip((ORIGINAL, ENTROPY), values, strict=True)
    }


_FID = {
    SD: {
        **_by_size(
            1,
            30_000,
            {
                "224x224": (74.5742, 41.8925),
                "448x448": (19.9039, 19.4923),
                "768x768": (29.5974, 28.1372),
                "512x288": (22.6249, 21.3877),
                "512x384": (20.2315, 19.8631),
            },
        ),
        ("512x512", ORIGINAL): Published(1, 19.8168, 30_000),
    },
    LDM: {
        **_by_size(
            1,
            50_000,
            {
                "128x128": (65.2988, 57.5542),
                "224x224": (23.0483, 22.7971),
                "384x384": (20.5466, 20.3842),
                "256x144": (33.8559, 33.0142),
                "256x192": (24.2546, 23.9346),
            },
        ),
        ("256x256", ORIGINAL): Published(1, 20.4102, 50_000),
    },
}
_FID_BESIDE_RESIZE = {
    SD: {
        ("128x128", ORIGINAL): Published(4, 191.5447, None),
        ("128x128", ENTROPY): Published(4, 127.2798, None),
        ("128x128", "resize"): Published(4, 36.0742, None),
        ("224x224", "resize"): Published(4, 21.8415, None),
    }
}
_FID_BESIDE_MULTIDIFFUSION = {
    SD: {
        ("224x224", ENTROPY): Published(5, 50.3515, 4_000),
        ("224x224", "multidiffusion"): Published(5, 154.6925, 4_000),
        ("768x768", ENTROPY): Published(5, 28.1372, 4_000),
        ("768x768", "multidiffusion"): Published(5, 40.9270, 4_000),
    }
}
_CLIP = {
    SD: {
        **_by_size(
            2,
            30_000,
            {
                "224x224": (0.2553, 0.2764),
                "448x448": (0.3176, 0.3180),
                "768x768": (0.3142, 0.3152),
                "512x288": (0.3047, 0.3066),
                "512x384": (0.3134, 0.3139),
            },
        ),
        ("512x512", ORIGINAL): Published(2, 0.3158, 30_000),
    },
    LDM: {
        **_by_size(
            2,
            50_000,
            {
                "128x128": (0.2679, 0.2747),
                "224x224": (0.3094, 0.3096),
                "384x384": (0.3148, 0.3156),
                "256x144": (0.2884, 0.2890),
                "256x192": (0.3070, 0.3075),
            },
        ),
        ("256x256", ORIGINAL): Published(2, 0.3153, 50_000),
    },
}
_RATING = {
    SD: _by_size(
        3,
        50,
        {
            "224x224": (5.13, 6.77),
            "448x448": (6.45, 7.12),
            "768x768": (6.74, 7.56),
            "512x288": (6.11, 7.42),
            "512x384": (6.75, 6.98),
        },
    )
}
_SECONDS = {
    SD: {
        ("128x128", ORIGINAL): Published(4, 3.4953, None),
        ("128x128", ENTROPY): Published(4, 3.4955, None),
        ("128x128", "resize"): Published(4, 17.4377, None),
        ("224x224", ORIGINAL): Published(4, 5.6268, None),
        ("224x224", ENTROPY): Published(4, 5.6274, None),
        ("224x224", "resize"): Published(4, 17.4457, None),
        ("224x224", "multidiffusion"): Published(5, 31.7680, None),
        ("768x768", ENTROPY): Published(5, 36.7140, None),
        ("768x768", "multidiffusion"): Published(5, 122.2485, None),
    }
}
_MEMORY = {
    SD: {
        ("128x128", ORIGINAL): Published(4, 6867, None),
        ("128x128", ENTROPY): Published(4, 6867, None),
        ("128x128", "resize"): Published(4, 9324, None),
        ("224x224", ORIGINAL): Published(4, 7064, None),
        ("224x224", ENTROPY): Published(4, 7064, None),
        ("224x224", "resize"): Published(4, 9324, None),
        ("224x224", "multidiffusion"): Published(5, 7061, None),
        ("768x768", ENTROPY): Published(5, 19797, None),
        ("768x768", "multidiffusion"): Published(5, 9906, None),
    }
}
"""MiB."""
_ALL = {
    "fid": (_FID, _FID_BESIDE_RESIZE, _FID_BESIDE_MULTIDIFFUSION),
    "clip": (_CLIP,),
    "rating": (_RATING,),
    "seconds": (_SECONDS,),
    "memory": (_MEMORY,),
}


def published(metric: str, size: Size, method: str, count: int | None = None) -> Published | None:
    """The paper's figure of a metric (`fid`, `clip`, `rating`, `seconds`, `memory`) at a size, if it has one.

    Of several the one whose pictures are nearest to `count`, else the one of the first table. Models are known by the
    last part of their name.
    """
    model = short_name(size.model)
    places = (table.get(model, {}).get((str(size), method)) for table in _ALL.get(metric, ()))
    return min((place for place in places if place), key=lambda one: _distance(one, count), default=None)


def _distance(place: Published, count: int | None) -> float:
    return math.inf if count is None or place.pictures is None else abs(place.pictures - count)


def paper_notes(metric: str, found: Mapping[str, Collection[Published]]) -> list[str]:
    """A line a model on what the figures found of it are of, and what the paper does not tell of them."""
    notes = []
    for model, figures in sorted(found.items()):
        whose = f" of {model}" if len(found) > 1 else ""
        tables = "; ".join(
            f"Table {one.table}{'' if one.pictures is None else f', {one.pictures:,} images'}"
            for one in sorted({one._replace(value=0.0) for one in figures}, key=lambda one: one.table)
        )
        what, untold = _WHAT[metric]
        notes.append(f"the paper's{whose} ({tables}): {what.format(data=_DATA[model])}; {untold} are not given")
    return notes


def short_name(model: str) -> str:
    """The last part of a model's name, by which the paper's are known."""
    return model.rstrip("/").rsplit("/", 1)[-1]
