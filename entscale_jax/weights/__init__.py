"""Folders of PyTorch diffusers and transformers, read and written."""
