"""A small untrained CLIP as transformers saves one, with the tokenizer of scenes and its preprocessing."""

import json

import torch
from transformers import CLIPConfig, CLIPModel

from entscale_jax.scenes.tokenizer import write_tokenizer


def write_tiny_clip(folder, *, act="quick_gelu", eos=582, size=32):
    """Saves it as transformers does, and returns PyTorch's module."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 583,
        "hidden_size": 24,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 24,
        "hidden_act": act,
        "eos_token_id": eos,
        "bos_token_id": 581,
        "pad_token_id": 582,
    }
    vision = {
        "hidden_size": 40,
        "intermediate_size": 68,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "image_size": size,
        "patch_size": 8,
        "hidden_act": act,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=28)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from transformers' start, where all layers do next to nothing
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    processor = {
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "image_processor_type": "CLIPImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
