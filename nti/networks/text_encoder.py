"""The CLIP text tower: token ids (B, 77) -> the states of all 77 tokens after the final norm (B,
77, width).
"""

import torch
from torch import Tensor, nn

from nti.autocast import without_autocast
from nti.config import TextConfig

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module):
    """open_clip's causal text transformer with quick-GELU, without pooling or projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # open_clip takes seconds to import and is needed by nothing else.
        from open_clip.transformer import QuickGELU, TextTransformer

        self.config = config
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=None,
            pool_type="none",
            act_layer=QuickGELU,
            output_tokens=True,
        )

    def restore_buffers(self, device: torch.device) -> None:
        """Make the causal mask, which no checkpoint holds, after construction on meta."""
        self.tower.attn_mask = self.tower.build_causal_mask().to(device)

    @without_autocast
    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, 77) int64 -> states (B, 77, width) in the weights' dtype."""
        _, states = self.tower(tokens)
        result: Tensor = states
        return result
