"""Checkpoint files to tensors in this project's parameter names: literal rename tables, strict both
ways.
"""

from nti.weights_loader.files import CheckpointError, network_files, read_metadata
from nti.weights_loader.layouts import Layout, text_layouts, unet_layouts, vae_layouts
from nti.weights_loader.load import (
    NetworkReport,
    examine,
    not_finite,
    problems_of,
    read_networks,
)

__all__ = [
    "CheckpointError",
    "Layout",
    "NetworkReport",
    "examine",
    "network_files",
    "not_finite",
    "problems_of",
    "read_metadata",
    "read_networks",
    "text_layouts",
    "unet_layouts",
    "vae_layouts",
]
