"""Checkpoint files to tensors in this project's parameter names: literal rename tables, strict both
ways.
"""

from nti.weights_loader.load import CheckpointError, read_metadata, read_networks
from nti.weights_loader.sd_v1 import text_table, unet_table, vae_table

__all__ = [
    "CheckpointError",
    "read_metadata",
    "read_networks",
    "text_table",
    "unet_table",
    "vae_table",
]
