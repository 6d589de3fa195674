"""The code on diffusers' Flax in docs/adapters.md does what the page says."""

import doc_snippets
import jax
import numpy as np
from flax_pipelines import build, their_promotion


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch):
    build(tmp_path)
    (tmp_path / "model").rename(tmp_path / "flax-model")
    monkeypatch.chdir(tmp_path)
    (heading,) = doc_snippets.LEGACY
    with their_promotion():
        scope = doc_snippets.run(heading)
        adapted, pipe, params = (scope[name] for name in ("adapted", "pipe", "params"))
        options = {"num_inference_steps": 1, "height": 24, "width": 24, "guidance_scale": np.float32(4)}
        images = adapted(pipe.prepare_inputs(["a red circle"]), params, jax.random.key(0), **options).images
    assert images.shape == (1, 24, 24, 3)
    assert adapted.unet != pipe.unet
