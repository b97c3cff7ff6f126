"""How near an edit is to the true one, where the truth changes and where it does not."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from measure import Pixels

__all__ = ["Nearness", "nearness"]

CHANGED, MARGIN = 2, 4
"""Grey levels above which a pixel of the truth has changed, and pixels around it that count as
neither."""


@dataclass(frozen=True)
class Nearness:
    """Of an edit to the true one; NaN where there is nothing to compare."""

    psnr_inside: float
    """dB, where the truth changes."""
    psnr_outside: float
    """dB, where it does not."""
    ssim_inside: float
    ssim_outside: float


def nearness(edited: Pixels, true_edited: Pixels, true_source: Pixels) -> Nearness:
    """Compare (H, W, 3) uint8 images; structural similarity as scikit-image computes it, with the
    Gaussian window of Wang et al. 2004.
    """
    changed = (np.abs(true_edited.astype(np.int16) - true_source) > CHANGED).any(axis=2)
    grown = F.max_pool2d(
        torch.from_numpy(changed.astype(np.float32))[None], 2 * MARGIN + 1, 1, MARGIN
    )
    same = grown[0].numpy() == 0
    errors = (edited.astype(np.float64) - true_edited) ** 2
    _, similarity = structural_similarity(
        edited, true_edited, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return Nearness(
        *(_psnr(errors[where]) for where in (changed, same)),
        *(_mean(similarity[where]) for where in (changed, same)),
    )


def _psnr(errors: NDArray[np.float64]) -> float:
    error = _mean(errors)
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
