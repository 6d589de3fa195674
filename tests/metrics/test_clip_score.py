"""CLIP scores are those of transformers' CLIPModel with its own processor, from a folder that transformers saved."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_clip import write_tiny_clip
from transformers import CLIPModel as TorchModel

from entscale_jax.errors import UserError
from entscale_jax.metrics.clip_score import ClipScorer, clip_figure, clip_scores
from entscale_jax.models.clip import CLIPConfig

BOUND = 1e-5  # of a cosine, as asked; measured 2.1e-7 (vectors) and 9e-8 (cosines)
CAPTIONS = ("a red circle", "a blue square and a green triangle", "a yellow circle with a red square, a blue circle")
SIZES = ((40, 40), (37, 61), (90, 50))


@pytest.fixture
def folder(tiny_clip_folder):
    return tiny_clip_folder


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in SIZES]
    return [np.kron(each, np.ones((18, 9, 1), np.uint8))[:h, :w] for each, (h, w) in zip(coarse, SIZES, strict=True)]


def _reference(folder, pictures, captions):
    """transformers' vectors: its slow processor and its tokenizer, from the same folder."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = TorchModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(folder)(list(captions), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    return pixels.numpy().transpose(0, 2, 3, 1), out.image_embeds.numpy(), out.text_embeds.numpy()


def test_scores_are_transformers(folder, pictures):
    scorer = ClipScorer.from_pretrained(folder)
    pixels, images, texts = _reference(folder, pictures, CAPTIONS)
    ours = np.stack([scorer.images(picture) for picture in pictures])
    assert np.abs(ours - pixels).max() < 1e-6
    assert np.abs(scorer.see(pictures) - images).max() < BOUND
    assert np.abs(scorer.read(CAPTIONS) - texts).max() < BOUND
    found = scorer(pictures, CAPTIONS)
    assert np.abs(found - (images * texts).sum(axis=1)).max() < BOUND
    # Control: with other captions, and with pictures resized without their middle cut out, scores are others.
    assert np.abs(found - (images * texts[[1, 2, 0]]).sum(axis=1)).max() > 100 * BOUND
    assert np.abs(found - scorer([picture[:30, :30] for picture in pictures], CAPTIONS)).max() > 100 * BOUND
    assert np.abs(scorer(pictures, CAPTIONS, batch=2) - found).max() < 1e-6


def test_gelu_and_the_old_end_of_text(tmp_path, pictures):
    """OpenCLIP's activation; and eos_token_id 2, which means the highest id, as OpenAI's own configs say."""
    write_tiny_clip(tmp_path, act="gelu", eos=2)
    _, images, texts = _reference(tmp_path, pictures, CAPTIONS)
    scorer = ClipScorer.from_pretrained(tmp_path)
    assert np.abs(scorer.see(pictures) - images).max() < BOUND
    assert np.abs(scorer.read(CAPTIONS) - texts).max() < BOUND
    write_tiny_clip(tmp_path / "quick", eos=2)
    quick = ClipScorer.from_pretrained(tmp_path / "quick")
    assert np.abs(quick.see(pictures) - images).max() > 100 * BOUND


def test_a_score_is_the_mean_of_what_is_not_negative():
    cosines = np.array([0.3, -0.2, 0.1, 0.25])
    np.testing.assert_allclose(clip_scores(cosines), [30, 0, 10, 25])
    figure = clip_figure(cosines, extractor="abc", resize="bicubic to 224")
    assert (figure.name, figure.value, figure.count, figure.extractor) == ("clip", pytest.approx(16.25), 4, "abc")
    assert figure.interval is not None
    assert figure.interval.low < 16.25 < figure.interval.high
    plain = clip_figure(cosines, extractor="abc", resize="x", clipped=False)
    assert (plain.name, plain.value) == ("clip_cosine", pytest.approx(0.1125))


def test_a_config_as_the_first_transformers_wrote_it():
    """The text tower said twice, and fields of generation in both."""
    raw = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": 768,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": {"model_type": "clip_text_model", "hidden_size": 512, "top_k": 50, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 14, "typical_p": 1.0, "projection_dim": 512},
        "vision_config_dict": None,
    }
    config = CLIPConfig.from_json(raw)
    assert (config.text.hidden_size, config.text.eos_token_id, config.text.projection_dim) == (768, 2, 768)
    assert (config.vision.patch_size, config.vision.positions) == (14, 257)


def _break(folder, tmp_path, name, change):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    content = json.loads((broken / name).read_text())
    change(content)
    (broken / name).write_text(json.dumps(content))
    return broken


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda raw: raw.update(model_type="siglip"), "model_type='siglip': implemented is 'clip'"),
        ("config.json", lambda raw: raw.update(surprise=1), "surprise .unknown field"),
        ("config.json", lambda raw: raw["vision_config"].update(hidden_act="relu"), "hidden_act='relu'"),
        ("config.json", lambda raw: raw["vision_config"].update(patch_size=7), "patches that divide the side"),
        ("config.json", lambda raw: raw["vision_config"].update(hidden_size=45), "does not fit its config.json"),
        ("preprocessor_config.json", lambda raw: raw.update(do_normalize=False), "do_normalize=False"),
        ("preprocessor_config.json", lambda raw: raw.update(antialias=True), "antialias=True"),
        ("preprocessor_config.json", lambda raw: raw.update(crop_size=30), "crops to 30x30, the model takes 32x32"),
        ("preprocessor_config.json", lambda raw: raw.update(image_mean=[1]), "1 values for three channels"),
    ],
)
def test_what_is_not_implemented_is_told(folder, tmp_path, name, change, message):
    with pytest.raises(UserError, match=message):
        ClipScorer.from_pretrained(_break(folder, tmp_path, name, change))


def test_mistakes_are_told(folder, tmp_path, pictures):
    with pytest.raises(UserError, match="does not exist"):
        ClipScorer.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match="the hub can't be reached"):
        ClipScorer.from_pretrained("nobody/no-clip")
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(UserError, match=r"preprocessor_config.json is missing"):
        ClipScorer.from_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="3 pictures and 2 captions"):
        ClipScorer.from_pretrained(folder)(pictures, CAPTIONS[:2])
    with pytest.raises(UserError, match="of no pictures"):
        clip_figure(np.zeros(0), extractor="", resize="")
