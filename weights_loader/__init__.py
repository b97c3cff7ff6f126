"""Checkpoint files to tensors in this project's parameter names: literal rename tables, strict both
ways.
"""

from nti.weights_loader.checkpoint_file import (
    CheckpointError,
    read_header,
    read_metadata,
    read_tensor,
)
from nti.weights_loader.descriptions import Description, described
from nti.weights_loader.files import network_files
from nti.weights_loader.layouts import Layout, text_layouts, unet_layouts, vae_layouts
from nti.weights_loader.load import (
    NetworkReport,
    examine,
    not_finite,
    problems_of,
    read_networks,
)
from nti.weights_loader.recognise import is_inpainting

__all__ = [
    "CheckpointError",
    "Description",
    "Layout",
    "NetworkReport",
    "described",
    "examine",
    "is_inpainting",
    "network_files",
    "not_finite",
    "problems_of",
    "read_header",
    "read_metadata",
    "read_networks",
    "read_tensor",
    "text_layouts",
    "unet_layouts",
    "vae_layouts",
]
