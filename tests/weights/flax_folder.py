"""Turns a folder of PyTorch's classes into one as diffusers' Flax pipeline saves it; names and layout written anew."""

import json
import re
import shutil
from pathlib import Path

from flax.serialization import to_bytes
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

WEIGHTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_flax_model.msgpack"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_flax_model.msgpack"),
    "text_encoder": ("model.safetensors", "flax_model.msgpack"),
}
CLASSES = {
    "unet": ["diffusers", "FlaxUNet2DConditionModel"],
    "vae": ["diffusers", "FlaxAutoencoderKL"],
    "text_encoder": ["transformers", "FlaxCLIPTextModel"],
    "scheduler": ["diffusers", "FlaxDDIMScheduler"],
}
ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
"""In the autoencoder, where Flax's classes kept the old names."""


def flax_tree(tensors: dict, part: str) -> dict:
    """PyTorch's tensors as Flax's tree: as diffusers' `rename_key` names them, and as its `from_pt` lays them out."""
    leaves = {}
    for key, tensor in tensors.items():
        for new, old in ATTENTION.items() if part == "vae" else ():
            key = key.replace(new, old)
        key = key if part == "text_encoder" else re.sub(r"(\w+)[.](\d+)", r"\1_\2", key)
        *modules, leaf = key.split(".")
        if leaf == "weight":
            norm, table = "norm" in modules[-1], "embedding" in modules[-1]
            leaf = "scale" if norm else "embedding" if table else "kernel"
            if leaf == "kernel":
                tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        leaves[*modules, leaf] = tensor
    return unflatten_dict(leaves)


def use_msgpack(folder: Path, change=lambda tree, part: tree) -> Path:
    """Puts each part's msgpack in the place of its safetensors, its tree passed through `change`."""
    for part, (safetensors, msgpack) in WEIGHTS.items():
        tree = change(flax_tree(load_file(folder / part / safetensors), part), part)
        (folder / part / msgpack).write_bytes(to_bytes(tree))
        (folder / part / safetensors).unlink()
    return folder


def edit(file: Path, **fields) -> None:
    """Writes fields into a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def write_flax_folder(source: Path, folder: Path, **options) -> Path:
    """The folder of a Flax pipeline with the weights of `source`, whose UNet has 32 groups."""
    use_msgpack(Path(shutil.copytree(source, folder)), **options)
    edit(folder / "model_index.json", _class_name="FlaxStableDiffusionPipeline", **CLASSES)
    edit(folder / "scheduler" / "scheduler_config.json", _class_name=CLASSES["scheduler"][1])
    for part in ("unet", "vae"):
        edit(folder / part / "config.json", _class_name=CLASSES[part][1])
    edit(folder / "unet" / "config.json", split_head_dim=True, use_memory_efficient_attention=False)
    return folder
