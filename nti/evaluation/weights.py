"""Networks of the metrics, built by well-kept libraries and filled from files of the user's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["dino", "lpips"]


def lpips(path: str | Path, *, spatial: bool = True) -> nn.Module:
    """Return LPIPS over SqueezeNet 1.1 (Zhang et al. 2018, arXiv 1801.03924).

    Args:
        path: the backbone's weights as torchvision distributes them (`squeezenet1_1-....pth`). The
            weights of LPIPS itself come with torchmetrics.
        spatial: whether it gives a map as large as the images, or as published one number.

    Raises ValueError for other weights, or where torchmetrics is not installed.

    """
    try:
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except ImportError as error:
        raise ValueError("LPIPS needs torchmetrics: pip install 'nti[evaluate]'") from error
    network = _NoTrainLpips(net="squeeze", pnet_rand=True, spatial=spatial)
    # A slice's modules are named by their places among torchvision's features.
    places = {name: f"features.{name.split('.', 2)[2]}" for name in network.net.state_dict()}
    weights = _read(path)
    own = {name: weights[there] for name, there in places.items() if there in weights}
    _fill(network.net, own, path, "SqueezeNet 1.1 of torchvision")
    return network.eval()


def dino(path: str | Path) -> nn.Module:
    """Return DINO's ViT-B/8 (Caron et al. 2021, arXiv 2104.14294).

    Args:
        path: `dino_vitbase8_pretrain.pth`, or the same as safetensors.

    Raises ValueError for other weights.

    """
    import timm

    network: nn.Module = timm.create_model(
        "vit_base_patch8_224", pretrained=False, num_classes=0, dynamic_img_size=True
    )
    _fill(network, _read(path), path, "DINO's ViT-B/8")
    return network.eval().requires_grad_(False)


def _read(path: str | Path) -> Mapping[str, Tensor]:
    """Read a checkpoint; no pickle is run."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; expected weights")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{path}: no weights that can be read ({error})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: got {type(found).__name__}, expected tensors by name")
    return found


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: object, what: str) -> None:
    expected = {name: value.shape for name, value in network.state_dict().items()}
    wrong = [n for n, shape in expected.items() if n not in weights or weights[n].shape != shape]
    if wrong:
        raise ValueError(f"{path}: got no {wrong[0]} of its shape, expected the weights of {what}")
    network.load_state_dict({name: weights[name] for name in expected})
