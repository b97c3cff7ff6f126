"""What the prompt's tokens attend to in an inverted image: full maps, averaged, for looking at."""

import torch
from torch import Tensor
from tqdm import tqdm

from nti.inversion.record import Inversion
from nti.inversion.sampling import check_model
from nti.model import StableDiffusion
from nti.networks.control import AttentionCapture

__all__ = ["average_cross_attention"]


@torch.no_grad()
def average_cross_attention(
    model: StableDiffusion, inversion: Inversion, *, progress: bool = False
) -> Tensor:
    """Average the source's cross-attention over steps, heads and local blend's sites.

    Args:
        model: the model that the inversion was made with.
        inversion: whose latents are looked at.
        progress: show a bar.

    Returns:
        (77, h', w') float32; at each position the tokens' values sum to 1.

    """
    check_model(model, inversion)
    cond = model.encode_text([inversion.prompt])
    schedule = model.schedule(inversion.steps)
    latents = inversion.latents.to(model.device, model.state_dtype)
    level = frozenset({model.config.unet.word_map_level})
    total = torch.zeros((), device=model.device)
    for i in tqdm(range(schedule.steps), "looking", disable=not progress):
        capture = AttentionCapture(frozenset({"cross"}), level)
        model.predict_noise_controlled(
            latents[i : i + 1], schedule.timesteps[i], cond, None, capture
        )
        maps = [m.probabilities[0].float().mean(dim=0) for m in capture.maps if m.site != "middle"]
        total = total + torch.stack(maps).mean(dim=0) / schedule.steps
    return total.permute(2, 0, 1).cpu()
