"""Entropy of attention: its line against log N, what rules bring back, layer by layer."""
