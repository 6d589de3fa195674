"""Sweeps over sizes, methods, prompts and seeds: from one YAML file to a folder of images and tables, with Ray."""

from .api import Sweep, plan_sweep, run_sweep

__all__ = ["Sweep", "plan_sweep", "run_sweep"]
