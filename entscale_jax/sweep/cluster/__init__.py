"""What draws: devices, nodes and workers of a Ray cluster."""
