"""Diffusion models at sizes that they were not trained at, by the scale of their self-attention, in JAX."""

from . import baselines
from .attention import EntropyScaledAttention, attention_entropy, dot_product_attention
from .buckets import Bucket, token_counts
from .environment import own_version
from .errors import UserError
from .pipeline import Output, TextToImage
from .sampling import DDIM, PNDM, DPMSolver, Euler, EulerAncestral, sample
from .scales import ScaleRule, Scaling, attention_scale

__version__ = own_version()

__all__ = [
    "DDIM",
    "PNDM",
    "Bucket",
    "DPMSolver",
    "EntropyScaledAttention",
    "Euler",
    "EulerAncestral",
    "Output",
    "ScaleRule",
    "Scaling",
    "TextToImage",
    "UserError",
    "attention_entropy",
    "attention_scale",
    "baselines",
    "dot_product_attention",
    "sample",
    "token_counts",
]
