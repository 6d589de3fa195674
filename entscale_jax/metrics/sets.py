"""Figures of a whole set of pictures: features and moments in, FID and KID out, with all that they depend on."""

from ..errors import UserError
from .extractor import Extractor, Features
from .figure import Figure
from .frechet import fid
from .kernel import FEWEST, SEED, SUBSET_SIZE, SUBSETS, kid, kid_interval
from .moments import Moments


def moments_of(extractor: Extractor, features: Features) -> Moments:
    """Of features that `extractor` made, under its identity."""
    return Moments.of(features, extractor=extractor.identity)


def fid_figure(
    extractor: Extractor, moments: Moments, against: Moments, *, reference: str, crop: str = "none"
) -> Figure:
    """The Frechet distance of a set from the reference, without an interval, since it is biased.

    Raises UserError for moments of other features, or of fewer than two pictures.
    """
    for each in (moments, against):
        if each.extractor != extractor.identity:
            raise UserError(
                f"features of {each.extractor!r} are no features of {extractor.identity!r}: extract them anew"
            )
    return Figure(
        name=f"{extractor.name}_fid".lstrip("_"),
        value=fid(moments, against),
        count=moments.count,
        reference=reference,
        reference_count=against.count,
        resize=extractor.resize,
        crop=crop,
        extractor=extractor.hash,
        remark=bias_remark(moments, against),
    )


def bias_remark(moments: Moments, against: Moments) -> str:
    """What to know of a Frechet distance of no more pictures than features; nothing where there are more."""
    fewest = min(moments.count, against.count)
    if fewest > moments.width:
        return ""
    return f"of {fewest} pictures for {moments.width} features: dominated by its bias"


def kid_figure(
    extractor: Extractor,
    features: Features,
    against: Features,
    *,
    reference: str,
    crop: str = "none",
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> Figure:
    """The kernel distance of a set from the reference by subsets as published.

    The interval is that of `kid_interval`, of all pictures; sets of fewer than `FEWEST` have none.
    """
    found = kid(features, against, subsets=subsets, subset_size=subset_size, seed=seed)
    return Figure(
        name=f"{extractor.name}_kid".lstrip("_"),
        value=found.mean,
        count=len(features),
        reference=reference,
        reference_count=len(against),
        resize=extractor.resize,
        crop=crop,
        extractor=extractor.hash,
        interval=kid_interval(features, against) if min(len(features), len(against)) >= FEWEST else None,
        remark=f"{found.subsets} subsets of {found.subset_size}",
    )
