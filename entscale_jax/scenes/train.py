"""Trains the built-in model from nothing: autoencoder, then UNet and text encoder twice, and writes what ships."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax import nnx

from ..compilation import enable_cache
from ..errors import UserError
from ..models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..weights.folder import ModelInfo, describe
from ..weights.tokenizer import Tokenizer
from ..weights.torch_format import AbstractRngs, load_parameters
from .autoencoder_stage import scaling_factor, train_autoencoder
from .diffusion_stage import Export, TextToLatents, train_diffusion, untrained
from .export import export_folder, replace_folder
from .provenance import FILE, Segment, steps_of
from .recipe import Recipe, Stage
from .recipe_file import autoencoder_values, binding_values, recipe_values
from .tokenizer import write_tokenizer
from .trainer import Hooks, Run
from .watch import watch


def train_scenes(
    checkpoints: Path,
    out: Path,
    *,
    recipe: Recipe | None = None,
    init: Path | None = None,
    resume: bool = True,
    say: Callable[[str], None] | None = None,
) -> None:
    """Runs the three stages with checkpoints under `checkpoints`, and writes the folder `out` at each of the last's.

    Args:
        checkpoints: one folder a stage, the tokenizer, the log, and `best`, the folder that drew its captions best.
        out: the exported model, replaced as training goes on.
        recipe: what to train; the package's own if not given.
        init: an exported folder to start from instead of from nothing; its autoencoder stays as it is.
        resume: continue what `checkpoints` holds; without it a folder that holds something is refused.
        say: gets each line; they are printed if not given.

    Raises UserError for a folder or a checkpoint that does not fit the recipe.
    """
    enable_cache()
    recipe = recipe or Recipe()
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise UserError(f"{checkpoints} holds an earlier training: give --resume to go on, or another folder")
    write_tokenizer(checkpoints / "tokenizer")
    run = Run(name="diffusion", folder=checkpoints, resume=resume, recipe=recipe_values(recipe), upkeep=recipe.upkeep)
    run = replace(run, say=say) if say else run
    folder = _initial_folder(checkpoints, init)
    start = _from_nothing(recipe, run) if folder is None else _from_folder(folder, recipe, _vocab_size(checkpoints))
    run.say(f"autoencoder: scaling_factor {start.scaling_factor:.4f}")

    def export(modules: TextToLatents, segments: list[Segment]) -> None:
        export_folder(
            out,
            recipe,
            unet=modules.unet,
            autoencoder=start.autoencoder,
            text=modules.text,
            scaling_factor=start.scaling_factor,
            provenance={"segments": segments, "recipe": run.recipe},
        )

    _learn(
        recipe,
        recipe.diffusion_stage,
        start,
        run,
        pointwise=recipe.pointwise,
        export=export,
        hooks=Hooks(
            score=lambda: watch(out, recipe.upkeep.watch_captions),
            keep_best=lambda: _copy(out, checkpoints / "best"),
        ),
    )


@dataclass(frozen=True)
class _Start:
    """What a stage of UNet and text encoder begins with."""

    modules: TextToLatents
    autoencoder: AutoencoderKL
    scaling_factor: float
    segments: tuple[Segment, ...]


def _from_nothing(recipe: Recipe, run: Run) -> _Start:
    first = replace(run, name="autoencoder", recipe=autoencoder_values(run.recipe))
    autoencoder, segments = train_autoencoder(recipe, first)
    modules = untrained(recipe, _vocab_size(run.folder))
    start = _Start(modules, autoencoder, scaling_factor(autoencoder), tuple(segments))
    return _learn(recipe, recipe.binding_stage, start, replace(run, name="binding", recipe=binding_values(run.recipe)))


def _learn(
    recipe: Recipe,
    stage: Stage,
    start: _Start,
    run: Run,
    *,
    pointwise: Sequence[str] = (),
    export: Export = lambda modules, segments: None,
    hooks: Hooks = Hooks(),  # noqa: B008
) -> _Start:
    """One of the two stages of UNet and text encoder: what the next begins with."""
    modules, segments = train_diffusion(
        recipe,
        stage,
        start.modules,
        start.autoencoder,
        start.scaling_factor,
        Tokenizer(run.folder / "tokenizer", recipe.text.max_position_embeddings),
        replace(run, earlier=start.segments),
        pointwise=pointwise,
        seen=steps_of(start.segments, "binding") + steps_of(start.segments, "diffusion"),
        export=export,
        hooks=hooks,
    )
    return replace(start, modules=modules, segments=tuple(segments))


def _from_folder(folder: Path, recipe: Recipe, vocab_size: int) -> _Start:
    info = describe(folder)
    _check_same(info, recipe, vocab_size)
    modules = TextToLatents(
        _load(info, "unet", lambda: UNet2DConditionModel(info.unet, rngs=AbstractRngs())),  # pyright: ignore[reportArgumentType]
        _load(info, "text_encoder", lambda: CLIPTextModel(info.text, rngs=AbstractRngs())),
        seed=recipe.diffusion_stage.seed,
    )
    autoencoder = _load(info, "vae", lambda: AutoencoderKL(info.vae, rngs=AbstractRngs()))
    return _Start(modules, autoencoder, info.vae.scaling_factor, tuple(_segments(info)))


def _load(info: ModelInfo, part: str, build: Callable[[], nnx.Module]) -> Any:
    return load_parameters(build, info.weight_files(part))


def _segments(info: ModelInfo) -> list[Segment]:
    file = info.folder / FILE
    if file.is_file():
        return json.loads(file.read_text())["segments"]
    return [{"stage": "unknown", "weights": info.weights_hash}]


def _initial_folder(checkpoints: Path, init: Path | None) -> Path | None:
    """The copy, among the checkpoints, of the folder that the training starts from: `init` itself may be `out`."""
    copy = checkpoints / "init"
    if init is None:
        return copy if copy.is_dir() else None
    if not copy.is_dir():
        if any((checkpoints / stage).is_dir() for stage in ("binding", "diffusion")):
            raise UserError(
                f"{checkpoints} holds a training from nothing: leave out --init, or give other --checkpoints"
            )
        describe(init)
        _copy(init, copy)
    return copy


def _check_same(info: ModelInfo, recipe: Recipe, vocab_size: int) -> None:
    """The folder's architecture is the recipe's; weights that fit by shape alone may mean something else."""
    text = replace(recipe.text, vocab_size=vocab_size)
    vae = replace(recipe.autoencoder, scaling_factor=info.vae.scaling_factor)
    faults = []
    for name, ours, theirs in (
        ("unet", recipe.unet, info.unet),
        ("text", text, info.text),
        ("autoencoder", vae, info.vae),
    ):
        wanted, found = dataclasses.asdict(ours), dataclasses.asdict(theirs)
        faults += [
            f"{name}.{key} is {found[key]!r}, the recipe has {wanted[key]!r}" for key in _differing(wanted, found)
        ]
    if faults:
        raise UserError(f"{info.name} is another model than the recipe's: {'; '.join(faults)}")


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [key for key in first if first[key] != second[key]]


def _copy(folder: Path, to: Path) -> None:
    with replace_folder(to) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)


def _vocab_size(checkpoints: Path) -> int:
    return len(json.loads((checkpoints / "tokenizer" / "vocab.json").read_text()))
