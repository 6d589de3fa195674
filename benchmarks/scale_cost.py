"""What the scale of self-attention costs: a denoising call under rule `entropy` beside one under `original`.

python benchmarks/scale_cost.py [--sizes 64,128,256] [--rounds 41]

The built-in model, batch 1 with guidance, 5 steps of DDIM and no decoding, both programs compiled before. The programs
differ in the values of their scales alone (tests/test_lowering.py), so what is measured is the machine's noise.
"""

import argparse
from functools import partial
from typing import Any

from timing import alternate, ratio, write

import entscale_jax as es

CAPTION = "a red circle and a blue square"


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--sizes", default="64,128,256")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    pipe = es.TextToImage.from_pretrained("scenes")
    rows = [measure(pipe, int(size), options.rounds) for size in options.sizes.split(",")]
    text = [f"Seconds of one call, medians of {options.rounds} (least to most); the ratio with its 95% interval."]
    header = {"size": "size", "original": "original", "entropy": "entropy", "ratio": "entropy / original"}
    write("scale_cost", text, rows, header)


def measure(pipe: es.TextToImage, size: int, rounds: int) -> dict[str, Any]:
    def draw(rule: str) -> None:
        pipe([CAPTION], height=size, width=size, rule=rule, steps=5, sampler="ddim", guidance=2.0, decode=False)

    found = alternate({rule: partial(draw, rule) for rule in ("original", "entropy")}, rounds, warm=2)
    return {"size": f"{size}x{size}", **found, "ratio": ratio(found["entropy"], found["original"])}


if __name__ == "__main__":
    main()
