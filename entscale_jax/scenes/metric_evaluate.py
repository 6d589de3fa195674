"""How good the metrics' networks are: on pictures and captions that no training showed, each beside its control.

`python -m entscale_jax.scenes.metric_evaluate FILE [--folder FOLDER]` writes FILE, such as
benchmarks/results/scenes_metrics.md; FOLDER holds the networks, those that ship if not given.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import UInt8

from ..errors import UserError
from ..metrics.captions import KINDS, Kind, parse_caption
from ..metrics.frechet import fid
from ..metrics.kernel import kid_interval
from ..metrics.moments import Moments
from ..metrics.scenes_models import CONTRAST, EXTRACTOR, FOLDER, ScenesScorer, load_extractor, scenes_extractor
from ..metrics.scenes_networks import ContrastConfig, ScenesContrast
from ..statistics import interval
from .alter import Alteration, alter
from .captions import held_out_captions
from .draw import draw_batch, place
from .metric_pictures import draw_metric_picture

SIZES = ((64, 64), (96, 96), (128, 128), (128, 64), (192, 128), (160, 160), (192, 192), (256, 256))
"""(height, width); 160x160 is no size of training."""
COUNT, BATCH = 256, 32
SEED = 9_000_001
_PLACINGS = 100

Images = UInt8[np.ndarray, "count height width 3"]


def held_out_sets(rng: np.random.Generator, count: int) -> list[str]:
    """Captions of different sets of kinds, each with a pair that training never showed."""
    found: dict[frozenset[Kind], str] = {}
    while len(found) < count:
        for caption in held_out_captions(rng, count):
            found.setdefault(frozenset(parse_caption(caption)), caption)
    return list(found.values())[:count]


def count_accuracy(tell: Callable[[Images], np.ndarray], height: int, width: int, *, spoilt: bool) -> float:
    """The share of pictures with held-out pairs in which every kind is counted right, and no unknown thing is."""
    rng = np.random.default_rng((SEED, height, width))
    captions, right = held_out_sets(rng, COUNT), 0
    for start in range(0, COUNT, BATCH):
        kinds = [parse_caption(caption) for caption in captions[start : start + BATCH]]
        truth = np.array([[*(kind in each for kind in KINDS), False] for each in kinds], float)
        images = draw_batch(captions[start : start + BATCH], rng, height=height, width=width)
        if spoilt:
            images = np.stack([draw_metric_picture(rng, height, width, each).image for each in kinds])
        right += int((np.abs(tell(images)[:, : len(KINDS) + 1] - truth) < 0.5).all(axis=1).sum())
    return right / COUNT


def retrieval(scorer: ScenesScorer, height: int, width: int) -> tuple[float, float]:
    """Shares of pictures whose own caption is the nearest of 256 that differ, and of captions whose own picture is."""
    rng = np.random.default_rng((SEED + 1, height, width))
    captions = held_out_sets(rng, COUNT)
    images = draw_batch(captions, rng, height=height, width=width)
    cosines = scorer.see(list(images)) @ scorer.read(captions).T
    own = np.arange(COUNT)
    return float((cosines.argmax(axis=1) == own).mean()), float((cosines.argmax(axis=0) == own).mean())


def with_faults(captions: Sequence[str], rng: np.random.Generator, share: float, fault: Alteration) -> Images:
    """True drawings at the training size, of which the first `share` have one fault."""
    images = draw_batch(captions, rng)
    for index in range(round(share * len(captions))):
        images[index] = _altered(captions[index], rng, fault)
    return images


def _altered(caption: str, rng: np.random.Generator, fault: Alteration) -> UInt8[np.ndarray, "height width 3"]:
    """A drawing with a fault; where the objects leave no room for it, they are placed anew."""
    for _ in range(_PLACINGS):
        with contextlib.suppress(UserError):
            return alter(fault, place(parse_caption(caption), rng), rng, height=128, width=128).image
    raise UserError(f"{caption!r} leaves no room for the fault {fault}")


def counting(folder: Path) -> list[str]:
    """The table of the extractor."""
    module = load_extractor(folder / EXTRACTOR)
    run = nnx.jit(lambda module, images: module.tell(images))

    def tell(images: Images) -> np.ndarray:
        return np.asarray(run(module, images))

    rows = []
    for height, width in SIZES:
        clean, spoilt = (count_accuracy(tell, height, width, spoilt=spoilt) for spoilt in (False, True))
        rows.append(f"| {width}x{height} | {clean:.1%} | {spoilt:.1%} |")
    return ["| size | all counts right | of spoilt pictures |", "| --- | --- | --- |", *rows]


def retrieving(folder: Path) -> list[str]:
    """The table of the contrastive model, with one of random weights beside it."""
    scorer = ScenesScorer.load(folder / CONTRAST)
    untrained = ScenesScorer(ScenesContrast(ContrastConfig(), rngs=nnx.Rngs(0)), scorer.tokenizer, "")
    rows = []
    for height, width in SIZES:
        (text, image), (control, _) = (retrieval(each, height, width) for each in (scorer, untrained))
        rows.append(f"| {width}x{height} | {text:.1%} | {image:.1%} | {control:.1%} |")
    return ["| size | caption of a picture | picture of a caption | untrained |", "| --- | --- | --- | --- |", *rows]


def sensitivity(folder: Path) -> list[str]:
    """What figures of 256 pictures at the training size say of faults in some of them."""
    extractor, scorer = scenes_extractor(folder / EXTRACTOR), ScenesScorer.load(folder / CONTRAST)
    rng = np.random.default_rng(SEED + 2)
    reference = extractor(draw_batch(held_out_sets(rng, COUNT), rng))
    rows = []
    for fault in (Alteration.REMOVED, Alteration.REPEATED, Alteration.RECOLOURED, Alteration.HALVED):
        for share in (0.0, 0.25, 1.0):
            if share == 0 and rows:
                continue
            captions = held_out_sets(rng, COUNT)
            images = with_faults(captions, rng, share, fault)
            features = extractor(images)
            distance = kid_interval(features, reference, resamples=300)
            cosines = scorer(list(images), captions)
            what = f"{share:.0%} with one object {fault}" if share else "true drawings"
            rows.append(
                f"| {what} | {fid(Moments.of(features), Moments.of(reference)):.4f} | {interval(distance, 4)} "
                f"| {100 * np.maximum(cosines, 0).mean():.2f} |"
            )
    return ["| pictures | scenes_fid | scenes_kid | scenes_clip |", "| --- | --- | --- | --- |", *rows]


def trained(folder: Path, name: str) -> str:
    """One line of how a network came to be."""
    content = json.loads((folder / name).with_suffix(".json").read_text())
    steps = sum(segment["steps"] for segment in content["segments"])
    seconds = sum(segment["seconds"] for segment in content["segments"])
    size = (folder / name).stat().st_size
    return f"- `{name}`: {size:,} bytes, {steps} steps in {seconds / 60:.0f} minutes beside other work."


def document(folder: Path) -> list[str]:
    """The whole file."""
    return [
        "# The networks that measure scenes",
        "",
        "Made by `python -m entscale_jax.scenes.metric_evaluate benchmarks/results/scenes_metrics.md`; trained by",
        "`entscale train scenes-metrics`, log in scenes_metrics_log.jsonl.",
        "",
        trained(folder, EXTRACTOR),
        trained(folder, CONTRAST),
        "",
        f"Objects: {COUNT} pictures a size, each with a pair of kinds that training never showed. Right is a picture",
        "whose twelve counts, and that of unknown things, all round to the truth.",
        "",
        *counting(folder),
        "",
        f"Retrieval: {COUNT} captions of different sets of kinds, each with such a pair; chance is {1 / COUNT:.1%}.",
        "",
        *retrieving(folder),
        "",
        f"Faults: {COUNT} pictures at 128x128 against {COUNT} true drawings of other captions; KID of all pairs, with",
        "its interval. Captions are those of the true drawing.",
        "",
        *sensitivity(folder),
        "",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures the metrics' networks on pictures that no training showed.")
    parser.add_argument("file", type=Path, help="Markdown to write")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the networks are")
    options = parser.parse_args()
    options.file.write_text("\n".join(document(options.folder)))
