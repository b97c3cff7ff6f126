"""Image files, PIL images, arrays and tensors (B, 3, H, W) in [-1, 1], into each other, at any size
and back to the original's.
"""

from nti.image.array import ImageArray
from nti.image.mask import MaskLike, load_mask
from nti.image.opening import FORMATS, MOST_PIXELS, ImageFile, open_image
from nti.image.pasting import paste_back
from nti.image.placement import FITS, Placement, fit_image, match_original
from nti.image.tensor import ImageLike, load_image, psnr, to_pil

__all__ = [
    "FITS",
    "FORMATS",
    "MOST_PIXELS",
    "ImageArray",
    "ImageFile",
    "ImageLike",
    "MaskLike",
    "Placement",
    "fit_image",
    "load_image",
    "load_mask",
    "match_original",
    "open_image",
    "paste_back",
    "psnr",
    "to_pil",
]
