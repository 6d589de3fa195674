"""Trains the metrics' networks on drawn scenes: an extractor of 32 features, and a contrastive model with text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..compilation import enable_cache
from ..errors import UserError
from ..metrics.captions import KINDS, MAX_OBJECTS, Kind, write_caption
from ..metrics.scenes_models import load_extractor
from ..metrics.scenes_networks import (
    KINDS_AND_UNKNOWN,
    ContrastConfig,
    ExtractorConfig,
    ScenesContrast,
    ScenesExtractor,
    Trunk,
)
from ..weights.tokenizer import Tokenizer
from ..weights.torch_format import save_parameters
from .captions import is_held_out
from .metric_pictures import draw_metric_picture
from .provenance import Segment
from .recipe import SIZE, Stage, Upkeep
from .tokenizer import MAX_LENGTH, write_tokenizer
from .trainer import Hooks, Measures, Run, train

SIZES = (
    *((64, 64), (96, 96), (128, 128), (128, 128), (128, 64), (64, 128), (192, 128), (128, 192), (192, 192), (256, 256)),
)
"""(height, width) of the training pictures, a step each at random."""
_SMALLEST_BATCH = 2
_QUALITY_WEIGHT = 0.2
_TEXTS = 64
EXTRACTOR, CONTRAST = "extractor", "contrast"
PARTS = (EXTRACTOR, CONTRAST)
EXTRACTOR_STAGE = Stage(steps=4000, batch=32, learning_rate=2e-3)
CONTRAST_STAGE = Stage(steps=1500, batch=32, learning_rate=1e-3)


@dataclass(frozen=True, kw_only=True)
class MetricRecipe:
    """What is trained and how long: a quarter of an hour each on two cores."""

    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    extractor_stage: Stage = field(default=EXTRACTOR_STAGE)
    contrast_stage: Stage = field(default=CONTRAST_STAGE)
    sizes: tuple[tuple[int, int], ...] = SIZES


def train_metrics(
    checkpoints: Path,
    out: Path,
    *,
    recipe: MetricRecipe = MetricRecipe(),
    parts: Sequence[str] = PARTS,
    upkeep: Upkeep | None = None,
) -> None:
    """Trains both and writes `extractor.safetensors` and `contrast.safetensors`, each beside a JSON of what made it.

    The contrast begins with the extractor's trunk. A stopped training goes on from its newest checkpoint.
    """
    enable_cache()
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        values = {
            "sizes": recipe.sizes,
            part: asdict(getattr(recipe, part)),
            f"{part}_stage": asdict(getattr(recipe, f"{part}_stage")),
        }
        run = Run(name=part, folder=checkpoints, recipe=_plain(values), upkeep=upkeep or Upkeep(save_minutes=2.0))
        {EXTRACTOR: _train_extractor, CONTRAST: _train_contrast}[part](recipe, run, out)


def _train_extractor(recipe: MetricRecipe, run: Run, out: Path) -> None:
    stage = recipe.extractor_stage
    graph, parameters = nnx.split(ScenesExtractor(recipe.extractor, rngs=nnx.Rngs(stage.seed)), nnx.Param)

    def loss(parameters: nnx.State, batch: Mapping[str, Array], keys: jax.Array) -> tuple[Float[Array, ""], Measures]:
        told = nnx.merge(graph, parameters).tell(batch["images"])
        wrong = told - batch["truth"]
        counts, qualities = wrong[:, :KINDS_AND_UNKNOWN], wrong[:, KINDS_AND_UNKNOWN:]
        value = (counts**2).mean() + _QUALITY_WEIGHT * (qualities**2).mean()
        exact = (jnp.abs(counts) < 0.5).all(axis=-1).astype(jnp.float32).mean()
        return value, {"loss": value, "exact": exact, "qualities": (qualities**2).mean()}

    def batches(step: int) -> Mapping[str, np.ndarray]:
        rng, (height, width) = _of_step(stage, recipe.sizes, step)
        pictures = [draw_metric_picture(rng, height, width) for _ in range(_count(stage.batch, height, width))]
        truth = np.stack([np.concatenate([picture.counts, picture.qualities]) for picture in pictures])
        return {"images": np.stack([picture.image for picture in pictures]), "truth": truth}

    train(
        parameters,
        loss,
        batches,
        stage,
        run,
        _export(run, graph, out / f"{EXTRACTOR}.safetensors"),
        smallest_batch=_SMALLEST_BATCH,
    )


def _train_contrast(recipe: MetricRecipe, run: Run, out: Path) -> None:
    stage = recipe.contrast_stage
    write_tokenizer(run.folder / "tokenizer")
    tokenizer = Tokenizer(run.folder / "tokenizer", MAX_LENGTH)
    untrained = ScenesContrast(recipe.contrast, rngs=nnx.Rngs(stage.seed))
    untrained.trunk = _trained_trunk(recipe, out / f"{EXTRACTOR}.safetensors")
    graph, model = nnx.split(untrained, nnx.Param)
    parameters = {"model": model, "log_sharpness": jnp.asarray(np.log(10.0), jnp.float32)}

    def loss(
        parameters: Mapping[str, Any], batch: Mapping[str, Array], keys: jax.Array
    ) -> tuple[Float[Array, ""], Measures]:
        model = nnx.merge(graph, parameters["model"])
        sharpness = jnp.exp(jnp.minimum(parameters["log_sharpness"], jnp.log(jnp.float32(100))))
        logits = sharpness * model.see(batch["images"]) @ model.read(batch["tokens"]).T
        fits = (batch["counts"][:, None] == batch["named"][None]).all(axis=-1)
        value = (_choice(logits, fits) + _choice(logits.T, fits.T)) / 2
        best = jnp.take_along_axis(fits, logits.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        can = fits.any(axis=-1)
        right = (best & can).sum().astype(jnp.float32) / jnp.maximum(can.sum(), 1).astype(jnp.float32)
        return value, {"loss": value, "right": right, "sharpness": sharpness}

    def batches(step: int) -> Mapping[str, np.ndarray]:
        rng, (height, width) = _of_step(stage, recipe.sizes, step)
        kinds = [random_set(rng) for _ in range(_count(stage.batch, height, width))]
        pictures = [draw_metric_picture(rng, height, width, of_caption(rng, each)) for each in kinds]
        texts = [*kinds, *(nearly(rng, kinds[index % len(kinds)]) for index in range(_TEXTS - len(kinds)))]
        captions = [write_caption(shuffled(rng, each), joined_by_with=bool(rng.random() < 0.25)) for each in texts]
        return {
            "images": np.stack([picture.image for picture in pictures]),
            "counts": np.stack([picture.counts for picture in pictures]),
            "named": np.stack([_named(each) for each in texts]),
            "tokens": tokenizer(captions),
        }

    # The pictures of a batch are compared with each other, so one device has them all.
    train(
        parameters,
        loss,
        batches,
        stage,
        run,
        _export(run, graph, out / f"{CONTRAST}.safetensors", "model"),
        smallest_batch=1,
    )


def _trained_trunk(recipe: MetricRecipe, file: Path) -> Trunk:
    """The extractor's, which knows objects by then: from nothing the contrast takes several times as many steps."""
    if recipe.extractor.trunk != recipe.contrast.trunk:
        raise UserError("extractor and contrast have different trunks: give both the same")
    if not file.is_file():
        raise UserError(f"{file} is missing, from which the contrast starts: train the extractor first")
    return load_extractor(file, recipe.extractor).trunk


def random_set(rng: np.random.Generator) -> tuple[Kind, ...]:
    """One to four kinds, no two of them a held-out pair."""
    while True:
        kinds = tuple(KINDS[index] for index in rng.permutation(len(KINDS))[: rng.integers(1, MAX_OBJECTS + 1)])
        if not is_held_out(kinds):
            return kinds


def of_caption(rng: np.random.Generator, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """What is drawn for a caption: its kinds, and in one case of five one of them twice, which fits no caption."""
    repeated = (kinds[int(rng.integers(len(kinds)))],) if rng.random() < 0.2 and len(kinds) < MAX_OBJECTS else ()
    return (*kinds, *repeated)


def nearly(rng: np.random.Generator, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Other kinds that differ in one: changed, left out or more; no held-out pair among them."""
    while True:
        chosen, others = list(kinds), [kind for kind in KINDS if kind not in kinds]
        other, place = others[int(rng.integers(len(others)))], int(rng.integers(len(chosen)))
        change = rng.integers(4)
        if change >= 2:
            chosen[place] = other
        elif change == 1 and len(chosen) > 1:
            del chosen[place]
        elif len(chosen) < MAX_OBJECTS:
            chosen.append(other)
        else:
            continue
        if not is_held_out(chosen):
            return tuple(chosen)


def shuffled(rng: np.random.Generator, kinds: Sequence[Kind]) -> list[Kind]:
    """In random order."""
    return [kinds[index] for index in rng.permutation(len(kinds))]


def _choice(logits: Float[Array, "rows columns"], fits: Array) -> Float[Array, ""]:
    """Cross-entropy of choosing a column that fits, over the rows that have one.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3, with every right answer counted as right.
    """
    has = fits.any(axis=-1)
    right = jax.nn.logsumexp(jnp.where(fits, logits, -1e9), axis=-1)
    loss = jnp.where(has, jax.nn.logsumexp(logits, axis=-1) - right, 0.0)
    return loss.sum() / jnp.maximum(has.sum(), 1).astype(jnp.float32)


def _named(kinds: Sequence[Kind]) -> np.ndarray:
    named = np.zeros(len(KINDS) + 1, np.float32)
    named[[KINDS.index(kind) for kind in kinds]] = 1
    return named


def _of_step(stage: Stage, sizes: Sequence[tuple[int, int]], step: int) -> tuple[np.random.Generator, tuple[int, int]]:
    rng = np.random.default_rng((stage.seed, step))
    return rng, sizes[int(rng.integers(len(sizes)))]


def _count(batch: int, height: int, width: int) -> int:
    """Pictures of a batch of about as many pixels whatever the size, and not more than texts can be told apart by."""
    return min(_TEXTS // 2, _SMALLEST_BATCH * max(2, round(batch * SIZE**2 / (height * width) / _SMALLEST_BATCH)))


def _export(run: Run, graph: nnx.GraphDef, file: Path, part: str | None = None) -> Hooks:
    def export(average: Any, segments: list[Segment]) -> None:
        provenance = json.dumps({"segments": segments, "recipe": run.recipe}, indent=2) + "\n"
        file.with_suffix(".json").write_text(provenance)
        # Half precision is half the size, and what is lost by it is measured in what ships.
        kept = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), average if part is None else average[part])
        save_parameters(nnx.merge(graph, kept), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    return Hooks(export=export)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
