"""What `smoke.py` runs in its environment: draws by both rules at two sizes with the built-in model, and counts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import entscale_jax as es
from entscale_jax.metrics.objects import compare

CAPTION = "a red circle"
STEPS = 25


def main() -> None:
    assert "site-packages" in es.__file__, es.__file__
    pipe = es.TextToImage.from_pretrained("scenes")

    def draw(width: int, height: int, rule: str) -> np.ndarray:
        out = pipe([CAPTION], height=height, width=width, rule=rule, steps=STEPS, guidance=2.0, seed=0)
        assert out.images is not None
        assert out.images.shape == (1, height, width, 3)
        return out.images[0]

    # At the training size the paper's rule is the original one; elsewhere it is not.
    original, entropy = draw(128, 128, "original"), draw(128, 128, "entropy")
    assert np.array_equal(original, entropy)
    assert compare(entropy, CAPTION).exact
    assert not compare(entropy, "a blue square").exact
    original, entropy = draw(192, 128, "original"), draw(192, 128, "entropy")
    assert not np.array_equal(original, entropy)
    assert compare(entropy, CAPTION).missing == 0

    Image.fromarray(entropy).save("python.png")
    command = Path(sys.executable).with_name("entscale")
    options = {
        "--size": "192x128",
        "--rule": "entropy",
        "--steps": str(STEPS),
        "--guidance": "2.0",
        "-o": "command.png",
    }
    given = [text for option in options.items() for text in option]
    subprocess.run([command, "generate", CAPTION, *given], check=True, capture_output=True)


main()
