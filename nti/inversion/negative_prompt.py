"""Negative-prompt inversion's embedding: the prompt's own stands for psi("")."""

import torch
from torch import Tensor

__all__ = ["negative_prompt_embedding"]

STRAIGHT = 1e-4
"""Radians below which an arc is computed as a line."""


def negative_prompt_embedding(cond: Tensor, null: Tensor, towards_null: float) -> Tensor:
    """Go from psi(P) towards psi(""), each token along the arc between its two states.

    At 0 the guided noise is the conditional one, whatever the guidance scale (negative-prompt
    inversion, Miyake et al. 2023, arXiv 2305.16807). Further on an edit is guided more and the
    source followed less.

    Args:
        cond: psi(P) (B, 77, C).
        null: psi("") (B, 77, C).
        towards_null: share of the way, 0 to 1.

    Returns:
        (B, 77, C), contiguous.

    """
    if towards_null == 0:
        return cond.contiguous()
    cosine = torch.cosine_similarity(cond, null, dim=-1)[..., None].clamp(-1, 1)
    angle = cosine.acos()
    straight = angle < STRAIGHT
    whole = angle.where(~straight, torch.ones_like(angle))
    arc = (
        ((1 - towards_null) * whole).sin() * cond + (towards_null * whole).sin() * null
    ) / whole.sin()
    return torch.where(straight, torch.lerp(cond, null, towards_null), arc).contiguous()
