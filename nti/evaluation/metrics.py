"""How good an edit is: what PIE-Bench's evaluator measures, mended, or just as it was published.

Its authors' evaluator (arXiv 2310.01506) has two defects. Metrics of what is not edited count the
edited pixels, too, as black in both pictures, which adds decibels. And DINO gets pixels of 0..255
where it was trained on 0..1. `as_published` repeats both, for figures that can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from nti.evaluation.clip import Clip

__all__ = ["COLUMNS", "Case", "Metrics"]

COLUMNS = (
    "structure_distance",
    "psnr_unedit_part",
    "lpips_unedit_part",
    "mse_unedit_part",
    "ssim_unedit_part",
    "clip_similarity_source_image",
    "clip_similarity_target_image",
    "clip_similarity_target_image_edit_part",
)
"""PIE-Bench's names, in its order."""

NEEDS = {"structure": "dino", "lpips": "lpips", "clip": "clip"}
"""What a metric of this beginning has its weights from."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which DINO was trained with."""

DINO_SIDE = 224
LAYER = 11
"""The block of DINO whose keys are compared."""


@dataclass(frozen=True)
class Case:
    """One edit to be measured."""

    id: str
    kind: str
    source: Image.Image
    edited: Image.Image
    """Of the source's size."""
    mask: Image.Image | None
    """White where to edit; None: nothing is known, and the whole picture counts as unedited."""
    source_prompt: str
    edited_prompt: str


class Metrics:
    """Measures edits by the networks that it was given."""

    def __init__(
        self,
        *,
        lpips: nn.Module | None = None,
        dino: nn.Module | None = None,
        clip: Clip | None = None,
        as_published: bool = False,
    ) -> None:
        """Take networks: see `nti.evaluation.weights` and `load_clip`.

        ValueError where torchmetrics is not installed.
        """
        self._ssim = _torchmetrics().structural_similarity_index_measure
        self._lpips, self._dino, self._clip = lpips, dino, clip
        self._published = as_published
        there = {"lpips": lpips, "dino": dino, "clip": clip}
        self.columns = tuple(c for c in COLUMNS if there.get(_need(c), True) is not None)
        """What is measured."""
        self.missing = tuple(c for c in COLUMNS if c not in self.columns)
        """What is not, as it lacks weights."""

    @torch.no_grad()
    def __call__(self, case: Case) -> dict[str, float]:
        """Return each metric by its column; NaN where there is no pixel to measure.

        ValueError for pictures of different sizes.
        """
        if case.edited.size != case.source.size:
            raise ValueError(
                f"got an edit of {case.edited.width}x{case.edited.height} pixels,"
                f" expected {case.source.width}x{case.source.height}, as the source has"
            )
        source, edited, mask = _unit(case.source), _unit(case.edited), _mask(case)
        found: dict[str, Callable[[], float]] = {
            "structure_distance": lambda: self._structure(source, edited),
            "clip_similarity_source_image": lambda: self._similar(source, case.source_prompt),
            "clip_similarity_target_image": lambda: self._similar(edited, case.edited_prompt),
            "clip_similarity_target_image_edit_part": lambda: (
                self._similar(edited * mask, case.edited_prompt) if mask.any() else torch.nan
            ),
        }
        unedited = {} if mask.all() else self._unedited(source, edited, mask)
        values = {
            name: found[name]() if name in found else unedited.get(name, torch.nan)
            for name in self.columns
        }
        return {name: float(value) for name, value in values.items()}

    def _unedited(self, source: Tensor, edited: Tensor, mask: Tensor) -> dict[str, float]:
        """What is not to change: the share of the mask counts as unchanged, or not at all."""
        outside = ~mask
        if self._published:
            a, b, counted = source * outside, edited * outside, torch.ones_like(outside)
        else:
            a, b, counted = source, torch.where(mask, source, edited), outside
        error = (a - b).square()
        mse = _over(error, counted)
        ssim, ssim_map = self._ssim(b, a, data_range=1.0, return_full_image=True)
        found = {
            "mse_unedit_part": mse,
            "psnr_unedit_part": float(-10.0 * torch.tensor(mse).log10()),
            "ssim_unedit_part": float(ssim) if self._published else _over(ssim_map, counted),
        }
        if self._lpips is not None:
            distance = self._lpips(b * 2 - 1, a * 2 - 1)
            per_pixel = distance.shape[-2:] == counted.shape[-2:]
            found["lpips_unedit_part"] = float(
                _over(distance, counted) if per_pixel else distance.mean()
            )
        return found

    def _structure(self, source: Tensor, edited: Tensor) -> float:
        """Mean squared difference of the self-similarities of DINO's keys."""
        similar = [self._self_similarity(picture) for picture in (source, edited)]
        return float(F.mse_loss(similar[1], similar[0]))

    def _self_similarity(self, picture: Tensor) -> Tensor:
        """Return (tokens, tokens): cosines of the keys of the last block, all heads together."""
        assert self._dino is not None
        from torchvision.transforms.functional import normalize, resize

        scale = 255.0 if self._published else 1.0
        small = resize(picture * scale, [DINO_SIDE], antialias=True)
        kept: list[Tensor] = []
        network: Any = self._dino
        handle = network.blocks[LAYER].attn.qkv.register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        try:
            network.forward_features(normalize(small, list(MEAN), list(STD)))
        finally:
            handle.remove()
        keys = F.normalize(kept[0][0].chunk(3, dim=-1)[1], dim=-1)
        return keys @ keys.T

    def _similar(self, picture: Tensor, prompt: str) -> float:
        """Return 100 times the cosine of a picture and a text, 0 where it is negative."""
        assert self._clip is not None
        image, text = self._clip.images([_picture(picture)]), self._clip.texts([prompt])
        cosine = float((image @ text.T)[0, 0])
        return 100.0 * max(0.0, cosine)


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise ValueError("metrics need torchmetrics: pip install 'nti[evaluate]'") from error
    return image


def _need(column: str) -> str:
    return next((need for begin, need in NEEDS.items() if column.startswith(begin)), "")


def _unit(picture: Image.Image) -> Tensor:
    """Return (1, 3, H, W) in [0, 1]."""
    rgb = picture.convert("RGB")
    values = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return values.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2).float() / 255.0


def _picture(values: Tensor) -> Image.Image:
    """Return (1, 3, H, W) in [0, 1] as a picture."""
    pixels = (values[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width = values.shape[-2:]
    return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))


def _mask(case: Case) -> Tensor:
    """Return (1, 1, H, W) bool, True where to edit."""
    width, height = case.source.size
    if case.mask is None:
        return torch.zeros(1, 1, height, width, dtype=torch.bool)
    grey = case.mask.convert("L").resize((width, height), Image.Resampling.NEAREST)
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return values.view(1, 1, height, width) >= 128


def _over(values: Tensor, counted: Tensor) -> float:
    """Return the mean over the pixels that count."""
    return float(values.masked_select(counted.expand_as(values)).double().mean())
