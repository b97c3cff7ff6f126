"""What the prompt's tokens attend to in an inverted image: full maps, averaged, for looking at."""

import torch
from torch import Tensor

from nti.inversion.record import Inversion
from nti.inversion.sampling import check_model
from nti.model import StableDiffusion
from nti.networks.control import AttentionMap

__all__ = ["average_cross_attention"]


@torch.no_grad()
def average_cross_attention(model: StableDiffusion, inversion: Inversion) -> Tensor:
    """Average the source's cross-attention over steps, heads and local blend's sites.

    Args:
        model: the model that the inversion was made with.
        inversion: whose latents are looked at.

    Returns:
        (77, h', w') float32; at each position the tokens' values sum to 1.

    """
    check_model(model, inversion)
    cond = model.encode_text([inversion.prompt])
    schedule = model.schedule(inversion.steps)
    latents = inversion.latents.to(model.device, model.state_dtype)
    total = torch.zeros((), device=model.device)
    for latent, timestep in zip(latents, schedule.timesteps, strict=False):
        captured: list[AttentionMap] = []
        model.predict_noise_controlled(latent[None], timestep, cond, None, captured)
        level = model.config.unet.word_map_level
        maps = [
            m.probabilities[0].float().mean(dim=0)
            for m in captured
            if m.kind == "cross" and m.level == level and m.site != "middle"
        ]
        total = total + torch.stack(maps).mean(dim=0) / schedule.steps
    return total.permute(2, 0, 1).cpu()
