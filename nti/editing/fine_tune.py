"""A copy of the UNet that learns an image: what Imagic and UniTune train.

The model's own weights stay as they are, and frozen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nti.autocast import without_autocast
from nti.errors import Callback, check_finite, report
from nti.inversion.noised import draw
from nti.model import StableDiffusion
from nti.networks.unet import UNet
from nti.sampling.schedule import Schedule, noised
from nti.sampling.step import noise

__all__ = ["BYTES", "all_timesteps", "fine_tune", "noise_loss", "with_unet"]

BYTES = 16
"""Of memory for each weight that learns, in float32: itself, its gradient, Adam's two moments."""


def all_timesteps(model: StableDiffusion) -> Schedule:
    """Return the timesteps that are drawn from: all that were trained but t = 0."""
    return model.schedule(model.config.schedule.train_steps - 1)


def noise_loss(
    unet: UNet, latent: Tensor, context: Tensor, schedule: Schedule, index: int, eps: Tensor
) -> Tensor:
    """||eps - eps_theta(z_t, t, C)||^2, the mean over a latent (DDPM, arXiv 2006.11239, eq. 14).

    Args:
        unet: the network.
        latent: z_0 (1, 4, h, w).
        context: C (1, 77, C).
        schedule: the timesteps.
        index: of t in the schedule.
        eps: the noise that makes z_t of z_0 (1, 4, h, w).

    Returns:
        A number, differentiable in the context and in the weights that learn.

    """
    z_t = noised(latent, eps, schedule.alpha_bar[index])
    predicted = noise(unet, z_t, schedule.timestep(index, latent), context)
    return (predicted - eps).square().mean()


@torch.inference_mode(mode=False)  # the weights learn, whatever mode the caller is in
@without_autocast  # the backward pass, too
def fine_tune(
    model: StableDiffusion,
    latent: Tensor,
    context: Tensor,
    *,
    learns: Callable[[str], bool],
    iterations: int,
    learning_rate: float,
    batch: int,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> tuple[UNet, Tensor]:
    """Minimise `noise_loss` over weights of a copy of the UNet, by Adam.

    Every weight that learns takes `BYTES` bytes in float32, twice as much in float64; the copy is
    in float32 where the model is in half precision, which would lose steps as small as these.
    Weights that do not learn are the model's own where they are in that precision, else they are
    copied, too. Beside them a pass's activations are kept: one latent's, whatever the batch.

    Args:
        model: whose UNet is copied.
        latent: z_0 (1, 4, h, w).
        context: the token states that stand for the image (1, 77, C).
        learns: whether a weight does, by its name.
        iterations: of Adam.
        learning_rate: of Adam.
        batch: draws of (t, noise) an iteration.
        generator: of the draws, on the CPU.
        callback: called with (iterations done, in all); see `nti.errors.Callback`.

    Returns:
        The copy, frozen again, and the mean loss of each iteration before its step (iterations,).

    Raises:
        NotFiniteError: losses that overflow.
        Stopped: by the callback.

    """
    latent, context = latent.clone(), context.clone()  # the backward pass takes none of that mode
    unet, schedule = _copy(model.unet, learns), all_timesteps(model)
    adam = torch.optim.Adam([w for w in unet.parameters() if w.requires_grad], lr=learning_rate)
    losses = []
    for done in range(1, iterations + 1):
        adam.zero_grad()
        loss = latent.new_zeros(())
        for _ in range(batch):
            index = int(torch.randint(schedule.steps, (), generator=generator))
            (eps,) = draw(generator, 1, latent)
            with torch.enable_grad():
                part = noise_loss(unet, latent, context, schedule, index, eps) / batch
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        check_finite(loss[None], f"fine-tuning at iteration {done}", unet.conv_in.weight.dtype)
        adam.step()
        losses.append(loss)
        report(callback, done, iterations)
    adam.zero_grad()  # frees the gradients
    found = torch.stack(losses) if losses else latent.new_zeros(0)
    return unet.requires_grad_(False), found


def with_unet(model: StableDiffusion, unet: UNet) -> StableDiffusion:
    """Return the model with another UNet, run the same way."""
    other = StableDiffusion(model.config, unet, model.vae, model.text, model.tokenizer)
    return other.with_execution(model.steps.execution)


def _copy(unet: UNet, learns: Callable[[str], bool]) -> UNet:
    """Return the network on weights of its own where they learn.

    Blocks are never run again in the backward pass, where a weight would get no gradient.
    """
    given = unet.conv_in.weight.dtype
    exact = torch.float64 if given == torch.float64 else torch.float32
    backend = unet.backend if given == exact else "reference"  # which may know half precision alone
    with torch.device("meta"):
        copy = UNet(unet.config, schedule=unet.schedule, backend=backend)
    weights = {
        name: weight.to(exact, copy=learns(name)) for name, weight in unet.state_dict().items()
    }
    copy.load_state_dict(weights, assign=True)
    for name, weight in copy.named_parameters():
        weight.requires_grad_(learns(name))
    return copy.eval()
